"""A small model of the same structure: what a prototype trains in place of the whole.

The kinds of layers and their pattern stay, and so do the ratios that make a design what it is: query heads a KV head,
MLP width over hidden size, experts and experts a token, a window's share of the context. Depth and width shrink
together until the parameters fit the budget; what each field became, and why, is said in ``rules``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.components import MLP, Attention, ChannelMixer, LatentAttention, Mamba1, Mamba2, MoE, SequenceMixer
from planner.components.narrowing import eights, nearest_heads
from planner.errors import UnsupportedPlan
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec, Layer, LayerGroup, LearnedPositions, parse_spec

BYTE_VOCABULARY = 256
REFERENCE_CONTEXT = 8192
"""The context that windows are a share of, where positions do not name one: the length that models of the size for
which windows are chosen are mostly trained on."""
LEAST_WIDTH = 16
COMFORTABLE_WIDTH = 32
"""Experts are given up before the residual stream becomes narrower than this."""
ENOUGH = 0.95
"""Share of the budget with which the search for finer steps ends."""
LEAST_FILL = 0.86
"""Share of the budget that counts before the shape does."""


@dataclass(frozen=True, slots=True)
class ScaledSpec:
    """The small model, and how each field came to be."""

    spec: ArchitectureSpec
    rules: list[str]
    parameters: int


_Build = Callable[[int, float, int], ArchitectureSpec]
"""From hidden size, share of the depth and divisor of the experts to a model."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """One candidate: the new width, and what depth and experts are divided by."""

    hidden_size: int
    width: float
    """New hidden size over old."""
    depth: float
    expert_divisor: int
    window: float
    """New sequence length over the context that windows are a share of."""


def scale_down(
    spec: ArchitectureSpec, parameter_budget: int, *, vocab_size: int = BYTE_VOCABULARY, sequence_length: int = 256
) -> ScaledSpec:
    """The largest model of the structure of ``spec`` with at most ``parameter_budget`` parameters, embeddings included.

    Raises
    ------
    UnsupportedPlan
        where not even the smallest such model fits, naming the least budget that works.
    """
    whole = spec.model_copy(update={"vocab_size": vocab_size})
    if count_parameters(whole).total <= parameter_budget:
        return _result(spec, whole)
    context = spec.positions.num_positions if isinstance(spec.positions, LearnedPositions) else REFERENCE_CONTEXT
    window = min(1.0, sequence_length / context)

    def build(hidden_size: int, depth: float, divisor: int) -> ArchitectureSpec:
        scale = _Scale(hidden_size, hidden_size / spec.hidden_size, depth, divisor, window)
        return _scaled(spec, scale, vocab_size, sequence_length)

    divisors = _expert_divisors(spec)
    depths = _depths(spec)
    narrowest = min(LEAST_WIDTH, spec.hidden_size)
    least = count_parameters(build(narrowest, depths[0], divisors[-1])).total
    if least > parameter_budget:
        raise UnsupportedPlan.of(
            f"The smallest model of this structure has {least:,} parameters, more than {parameter_budget:,}.",
            path="parameter_budget",
            remedy=f"Choose at least {least:,}.",
            code="budget_too_small",
        )
    best: tuple[tuple[float, float], float, ArchitectureSpec] | None = None
    for divisor in divisors:
        for step in (8, 4, 2):
            for depth in depths:
                found = _widest(build, spec.hidden_size, narrowest, step, depth, divisor, parameter_budget)
                if found is None:
                    continue
                candidate, total = found
                fill = total / parameter_budget
                # Depth and width shrink alike where they can: a small model neither flat nor thin.
                skew = abs(math.log(depth * spec.hidden_size / candidate.hidden_size))
                score = (min(fill, LEAST_FILL), min(fill, ENOUGH) - 0.05 * skew)
                if best is None or score > best[0]:
                    best = (score, fill, candidate)
            if best is not None and best[1] >= ENOUGH:
                break
        if best is not None and (best[2].hidden_size >= min(COMFORTABLE_WIDTH, spec.hidden_size)):
            break
    if best is None:
        raise AssertionError("the smallest model fits, so some candidate does")
    return _result(spec, best[2])


def _widest(
    build: _Build, hidden_size: int, narrowest: int, step: int, depth: float, divisor: int, budget: int
) -> tuple[ArchitectureSpec, int] | None:
    """The widest model of one depth that the budget allows, in steps of ``step``, and its parameters."""
    low, high = 0, (hidden_size - narrowest) // step + 1

    def at(position: int) -> tuple[ArchitectureSpec, int]:
        candidate = build(narrowest + position * step, depth, divisor)
        return candidate, count_parameters(candidate).total

    found = at(0)
    if found[1] > budget:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        tried = at(middle)
        if tried[1] <= budget:
            low, found = middle, tried
        else:
            high = middle
    return found


def _depths(spec: ArchitectureSpec) -> list[float]:
    """Shares of the depth to try: every number of repeats of the longest group, thinned out where they are many."""
    longest = max(group.repeats for group in spec.layer_groups)
    repeats = sorted({min(longest, round(1.12**power)) for power in range(200)} & set(range(1, longest + 1)))
    return [count / longest for count in repeats]


def _expert_divisors(spec: ArchitectureSpec) -> list[int]:
    """Powers of two by which the number of experts may be divided, ending where every mixture is at its least."""
    mixtures = [layer.channel_mixer for _, layer in spec.iterate_layers() if isinstance(layer.channel_mixer, MoE)]
    spans = [mixture.num_experts / _least_experts(mixture) for mixture in mixtures]
    return [2**power for power in range(math.ceil(math.log2(max(spans, default=1))) + 1)]


def _least_experts(mixture: MoE) -> int:
    """Fewest experts that leave the choice a choice: twice those of a token, in whole groups."""
    per_group = math.ceil(mixture.num_experts_per_tok / mixture.groups_per_tok)
    wanted = max(2 * mixture.num_experts_per_tok, mixture.num_expert_groups * per_group)
    in_groups = math.ceil(wanted / mixture.num_expert_groups) * mixture.num_expert_groups
    return min(mixture.num_experts, in_groups)


def _scaled(spec: ArchitectureSpec, scale: _Scale, vocab_size: int, sequence_length: int) -> ArchitectureSpec:
    groups = tuple(
        LayerGroup.model_construct(
            repeats=max(1, round(group.repeats * scale.depth)),
            layers=tuple(_layer(layer, scale) for layer in group.layers),
        )
        for group in spec.layer_groups
    )
    changed: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": scale.hidden_size,
        "layer_groups": groups,
    }
    if isinstance(spec.positions, LearnedPositions):
        kept = min(spec.positions.num_positions, sequence_length)
        changed["positions"] = spec.positions.model_copy(update={"num_positions": kept})
    if spec.embedding_size is not None:
        changed["embedding_size"] = eights(spec.embedding_size * scale.width)
    if spec.embedding_scale is not None:
        changed["embedding_scale"] = spec.embedding_scale * math.sqrt(scale.width)
    return spec.model_copy(update=changed)


def _layer(layer: Layer, scale: _Scale) -> Layer:
    return Layer.model_construct(
        sequence_mixer=None if layer.sequence_mixer is None else _sequence_mixer(layer.sequence_mixer, scale),
        channel_mixer=None if layer.channel_mixer is None else _channel_mixer(layer.channel_mixer, scale),
        norm_placement=layer.norm_placement,
        residual=layer.residual,
    )


def _sequence_mixer(mixer: SequenceMixer, scale: _Scale) -> SequenceMixer:
    match mixer:
        case Attention():
            return _attention(mixer, scale)
        case LatentAttention():
            return _latent_attention(mixer, scale)
        case Mamba1():
            return mixer.model_copy(
                update={
                    "intermediate_size": eights(mixer.intermediate_size * scale.width),
                    "time_step_rank": max(1, round(mixer.time_step_rank * scale.width)),
                }
            )
        case Mamba2():
            return _mamba2(mixer, scale)
        case _:
            return mixer.narrowed(scale.width)


def _attention(mixer: Attention, scale: _Scale) -> Attention:
    queries_per_key = mixer.num_attention_heads // mixer.num_key_value_heads
    target = mixer.num_attention_heads * mixer.head_dim * scale.width
    head_dim, key_value_heads = nearest_heads(
        mixer.head_dim, mixer.num_key_value_heads, queries_per_key, target, scale.width
    )
    changed: dict[str, object] = {
        "num_key_value_heads": key_value_heads,
        "num_attention_heads": queries_per_key * key_value_heads,
        "head_dim": head_dim,
        # An even number of channels is rotated, so the share may move to the nearest that allows it.
        "rope_share": 2 * round(mixer.rope_share * head_dim / 2) / head_dim,
    }
    if mixer.sliding_window is not None:
        share = max(8, round(mixer.sliding_window * scale.window))
        changed["sliding_window"] = min(mixer.sliding_window, share)
    if mixer.softmax_scale is not None:
        changed["softmax_scale"] = mixer.softmax_scale * math.sqrt(mixer.head_dim / head_dim)
    return mixer.model_copy(update=changed)


def _latent_attention(mixer: LatentAttention, scale: _Scale) -> LatentAttention:
    target = mixer.num_attention_heads * mixer.qk_nope_head_dim * scale.width
    nope, heads = nearest_heads(mixer.qk_nope_head_dim, mixer.num_attention_heads, 1, target, scale.width)
    shrunk = nope / mixer.qk_nope_head_dim
    rope, value = eights(mixer.qk_rope_head_dim * shrunk), eights(mixer.v_head_dim * shrunk)
    changed: dict[str, object] = {
        "num_attention_heads": heads,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "kv_lora_rank": eights(mixer.kv_lora_rank * scale.width),
    }
    if mixer.q_lora_rank is not None:
        changed["q_lora_rank"] = eights(mixer.q_lora_rank * scale.width)
    if mixer.softmax_scale is not None:
        before = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
        changed["softmax_scale"] = mixer.softmax_scale * math.sqrt(before / (nope + rope))
    return mixer.model_copy(update=changed)


def _mamba2(mixer: Mamba2, scale: _Scale) -> Mamba2:
    target = mixer.num_heads * mixer.head_dim * scale.width
    groups = max(
        group for group in range(1, mixer.n_groups + 1) if mixer.n_groups % group == 0 and group * 8 <= max(8, target)
    )
    head_dim, per_group = nearest_heads(mixer.head_dim, mixer.num_heads // groups, groups, target, scale.width)
    return mixer.model_copy(
        update={
            "num_heads": groups * per_group,
            "head_dim": head_dim,
            "n_groups": groups,
            "state_size": min(mixer.state_size, max(16, eights(mixer.state_size * scale.width))),
        }
    )


def _channel_mixer(mixer: ChannelMixer, scale: _Scale) -> ChannelMixer:
    if isinstance(mixer, MLP):
        return mixer.model_copy(update={"intermediate_size": eights(mixer.intermediate_size * scale.width)})
    changed: dict[str, object] = {"intermediate_size": eights(mixer.intermediate_size * scale.width)}
    if mixer.shared_intermediate_size is not None:
        changed["shared_intermediate_size"] = eights(mixer.shared_intermediate_size * scale.width)
    if scale.expert_divisor > 1:
        fewer = mixer.num_experts // scale.expert_divisor
        in_groups = fewer // mixer.num_expert_groups * mixer.num_expert_groups
        changed["num_experts"] = max(_least_experts(mixer), in_groups)
    return mixer.model_copy(update=changed)


_WHY = {
    "vocab_size": "bytes in place of a trained tokenizer",
    "hidden_size": "the width that the budget allows",
    "embedding_size": "the ratio to the hidden size is kept, in steps of 8",
    "repeats": "depth shrinks with width, at least one whole pattern stays",
    "num_attention_heads": "query heads a KV head are kept",
    "num_key_value_heads": "query heads a KV head are kept",
    "head_dim": "a multiple of 8",
    "intermediate_size": "the ratio to the hidden size is kept, in steps of 8",
    "shared_intermediate_size": "the ratio to the hidden size is kept, in steps of 8",
    "num_experts": "fewer, as the budget is small; those of a token are kept",
    "sliding_window": "the window's share of the context is kept, at least 8",
    "rope_share": "the nearest share that rotates an even number of channels",
    "num_positions": "the prototype's sequence length",
    "embedding_scale": "follows the square root of the hidden size",
    "softmax_scale": "follows the square root of the size of a head",
    "q_lora_rank": "the ratio to the hidden size is kept, in steps of 8",
    "kv_lora_rank": "the ratio to the hidden size is kept, in steps of 8",
    "qk_nope_head_dim": "a multiple of 8",
    "qk_rope_head_dim": "scaled with the rest of the head, a multiple of 8",
    "v_head_dim": "scaled with the rest of the head, a multiple of 8",
    "time_step_rank": "the ratio to the hidden size is kept",
    "state_size": "shrinks with the width, at least 16",
    "num_heads": "the ratio of all heads' channels to the hidden size is kept",
    "n_groups": "a divisor that leaves each group a head",
}


def _result(before: ArchitectureSpec, after: ArchitectureSpec) -> ScaledSpec:
    name = f"{before.name[:108]} prototype"
    checked = parse_spec({**after.model_dump(mode="json"), "name": name})
    places: dict[tuple[str, str], list[str]] = {}
    for path, old, new in _changes(before.model_dump(mode="json"), checked.model_dump(mode="json")):
        if path != "name":
            places.setdefault((path.rsplit(".", 1)[-1], f"{_plain(old)} → {_plain(new)}"), []).append(path)
    rules = [
        f"{paths[0]}{f' and {len(paths) - 1} more like it' if len(paths) > 1 else ''}: {change} ({_why(field)})"
        for (field, change), paths in places.items()
    ]
    return ScaledSpec(checked, rules, count_parameters(checked).total)


def _why(field: str) -> str:
    return _WHY.get(field, "follows the width")


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _changes(before: object, after: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Fields that differ between two specifications of one structure."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from _changes(value, after[key], f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield path, before, after
