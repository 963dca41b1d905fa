"""Weights of transformers' models, read through the layout map of their family."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from planner.components import Attention, LatentAttention
from planner.components.rotary import LongRopeScaling
from planner.interop import ADAPTERS, from_huggingface, resolved
from planner.interop.base import Adapter, Placed, laid_out
from planner.spec import ArchitectureSpec, Layer, RotaryPositions
from runners.models.context import Kernels
from runners.models.decoder import Decoder

CORRECTED = {
    "hy_v3": "model.layers.{layer}.mlp.e_score_correction_bias",
    "lfm2_moe": "model.layers.{layer}.feed_forward.expert_bias",
    "minimax_m2": "model.layers.{layer}.mlp.e_score_correction_bias",
}
"""Its name where it does not stand beside the router's matrix as ``e_score_correction_bias``."""

CORRECTIONS = ("e_score_correction_bias", "expert_bias")
"""The buffer that steers the choice of experts (DeepSeek-V3, LFM2); it is no parameter, so no layout rule names it."""

COMPUTED = (
    *(".inv_freq", ".attn.bias", ".attn.masked_bias", ".attn.causal_mask", ".attention.bias", ".attention.masked_bias"),
    *(f".self_attn.{name}" for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")),
)
"""Ends of the names of buffers that follow from the configuration: rotary frequencies, masks, lightning attention's
decays."""

PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers")
PREDICTION = re.compile(r"(^|\.)mtp[._]")
"""Where files hold layers that predict further tokens, which are no part of the model that generates: as layers behind
its own, as many as a configuration says, or under a name of theirs."""

UNPADDED = frozenset(
    {
        *("bloom", "codegen", "falcon", "falcon_mamba", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
        *("gpt_neox_japanese", "gptj", "mamba", "mamba2", "mpt", "nemotron_h", "openai-gpt", "rwkv"),
    }
)
"""Families in which the token that fills up shorter rows of a batch is one like the others."""

PADDING: Mapping[str, int] = {
    **dict.fromkeys(("bamba", "cohere", "cohere2", "cohere2_moe", "ernie4_5", "ernie4_5_moe", "exaone"), 0),
    **dict.fromkeys(("exaone_moe", "falcon_h1", "gemma", "gemma2", "gemma3_text", "hunyuan_v1_dense"), 0),
    **dict.fromkeys(("hunyuan_v1_moe", "jamba", "lfm2", "lfm2_moe", "recurrent_gemma", "sarvam_moe", "vaultgemma"), 0),
    **dict.fromkeys(("biogpt", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "seed_oss"), 1),
    **{"apertus": 3, "flex_olmo": 100277, "glm": 151329, "glm4": 151329, "helium": 3, "internlm3": 2},
    **{"kimi_linear": 163839, "ministral3": 11, "olmo_hybrid": 100277, "phi3": 32000, "smollm3": 128004},
}
"""transformers' ``pad_token_id`` of the families that have one where a file has none."""

XIELU = {"act_fn.beta": 0.5, "act_fn.eps": -1e-6}
"""What Apertus' files hold beside the parameters of its activation."""

PART = re.compile(r"(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)")
"""Where multimodal models keep their language model's tensors."""


def load_into(model: Decoder, state_dict: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Copy the weights of a state dict into a model built from the same configuration.

    Raises
    ------
    ValueError
        naming a tensor that is missing, has another shape, or has no place in the model.
    """
    inner = resolved(config)
    if inner.config["model_type"] != config.get("model_type"):
        state_dict = {alone: state_dict[name] for alone, name in language_names(state_dict).items()}
    if inner.path and inner.within is None and (model.spec.logit_scale or model.spec.final_logit_softcap):
        raise ValueError(f"model_type: whether a {config.get('model_type')!r} scales and caps its logits is not known")
    config = inner.config
    adapter, spec = ADAPTERS[config["model_type"]], model.spec
    for field, value in adapter.unmodelled_in(config).items():
        raise ValueError(
            f"{field} is {value!r}, which no specification can say: the model would not compute what these weights mean"
        )
    model.embed_tokens.padding_idx = _padding(config, spec.vocab_size)
    scaling = getattr(spec.positions, "scaling", None)
    if adapter.model_type == "phi3" and isinstance(scaling, LongRopeScaling):
        model.reread_beyond = scaling.original_max_position_embeddings
    own = dict(model.named_parameters())
    layers = [layer for _, layer in spec.iterate_layers()]
    unread = set(state_dict)
    for placed in laid_out(adapter, spec):
        if placed.name not in state_dict:
            raise ValueError(f"the state dict has no tensor {placed.name!r}, which {config['model_type']} needs")
        unread.discard(placed.name)
        theirs = state_dict[placed.name]
        if tuple(theirs.shape) != placed.shape:
            raise ValueError(f"{placed.name} has the shape {tuple(theirs.shape)}, not {placed.shape}")
        with torch.no_grad():
            if placed.row is not None:
                own[placed.ours[0]][placed.row].copy_(theirs)
                continue
            targets = [own[name] for name in placed.ours]
            for target, part in zip(targets, _parts(theirs, placed, targets, layers[placed.layer]), strict=True):
                target.copy_(part)
    for name in [name for name in unread if name.endswith(CORRECTIONS)]:
        index = next(part for part in name.split(".") if part.isdecimal())
        model.get_buffer(f"layers.{index}.channel_mixer.router.score_correction_bias").copy_(state_dict[name].flatten())
        unread.discard(name)
    for name in [name for name in unread if name.endswith(tuple(XIELU))]:
        constant = next(value for end, value in XIELU.items() if name.endswith(end))
        if not torch.isclose(state_dict[name].double(), torch.tensor(constant, dtype=torch.float64), rtol=0.01):
            raise ValueError(f"{name} is {float(state_dict[name])}, and here it is always {constant}")
        unread.discard(name)
    if spec.tie_word_embeddings:  # the head, by the family's name of it
        rules = adapter.layout(spec) if callable(adapter.layout) else adapter.layout
        heads = {rule.theirs for rule in rules if rule.ours == ("lm_head.weight",)} | {"lm_head.weight"}
        for name in heads & unread:
            if not torch.equal(state_dict[name].to(model.embed_tokens.weight), model.embed_tokens.weight):
                raise ValueError(f"{name} is not the embedding's matrix, and tie_word_embeddings says that it is")
        unread -= heads
    written = [config.get(name) for name in PREDICTING]
    predicting = max((count for count in written if isinstance(count, int)), default=0)
    unread = {
        name
        for name in unread
        if not name.endswith(COMPUTED)
        and not PREDICTION.search(name)
        and not any(name.startswith(f"model.layers.{spec.num_layers + index}.") for index in range(predicting))
        and state_dict[name].numel()
    }
    if unread:
        raise ValueError(f"the model has no place for {', '.join(sorted(unread)[:5])}")
    with torch.no_grad():
        for name, orders in _orders(adapter, config, spec).items():
            if name in own:
                for order in orders:
                    _reorder(name, own[name], order)


def _padding(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """The token whose row of the embedding never learns from where it is read, as transformers has it."""
    model_type = config["model_type"]
    token = None if model_type in UNPADDED else config.get("pad_token_id", PADDING.get(model_type))
    if not isinstance(token, int) or not -vocab_size <= token < vocab_size:
        return None
    return token % vocab_size


@torch.no_grad()
def state_dict_of(model: Decoder, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """transformers' tensors of a model of this configuration, by the names of its modules, one after the other.

    What :func:`load_into` reads back. A head that is the embedding's matrix comes once, as the embedding; tensors that
    are the model's own, unchanged, share its memory.
    """
    adapter, spec = ADAPTERS[config["model_type"]], model.spec
    own = dict(model.named_parameters())
    orders = _orders(adapter, config, spec)
    layers = [layer for _, layer in spec.iterate_layers()]

    def read(name: str) -> Tensor:
        tensor = own[name].detach()
        if name in orders:
            tensor = tensor.clone()
            for place in reversed(orders[name]):
                _reorder(name, tensor, replace(place, order=place.order.argsort()))
        return tensor

    for placed in laid_out(adapter, spec):
        if placed.row is not None:
            yield placed.name, read(placed.ours[0])[placed.row]
        else:
            yield placed.name, _joined([read(name) for name in placed.ours], placed, layers[placed.layer])
    buffers = dict(model.named_buffers())
    for placed in laid_out(adapter, spec):
        ours, (stem, _, _) = placed.ours[0], placed.name.rpartition(".")
        correction = buffers.get(f"{ours.removesuffix('weight')}score_correction_bias")
        if ours.endswith("router.weight") and correction is not None:
            name = CORRECTED.get(adapter.model_type, f"{stem}.e_score_correction_bias")
            yield name.format(layer=placed.layer), correction
        if ours.endswith("xielu.alpha_p"):
            for end, constant in XIELU.items():
                yield f"{stem.removesuffix('act_fn')}{end}", torch.tensor(constant, dtype=own[ours].dtype)


def language_names(names: Iterable[str]) -> dict[str, str]:
    """Names of the tensors of the language model inside a multimodal one: what they are alone, and what they are."""
    found, flat = {}, {}
    for name in names:
        part = PART.match(name)
        if part is not None:
            found[f"model.{name[part.end() :]}"] = name
        elif name.endswith("lm_head.weight"):
            found["lm_head.weight"] = name
        elif name.startswith("model."):
            flat[name] = name
    # Qwen2-VL's files hold the language model as if it were alone, beside what reads images.
    return found if any(name != "lm_head.weight" for name in found) else flat | found


def _parts(theirs: Tensor, placed: Placed, targets: Sequence[Tensor], layer: Layer) -> list[Tensor]:
    """The parts of one of transformers' tensors that our ``targets`` are."""
    rows = theirs.transpose(-1, -2) if placed.rule.transposed else theirs
    rows = rows[0] if placed.rule.as_one_row else rows
    if placed.rule.halves_in_turn:
        rows = torch.cat((rows[:, 0::2], rows[:, 1::2]), 1)
    sizes = [target.shape[0] for target in targets]
    if placed.rule.interleaved_by is None:
        return list(rows.split(sizes))
    by = placed.rule.interleaved_by
    blocks = by if isinstance(by, int) else getattr(placed.rule.mixer(layer), by)
    by_block = rows.reshape(blocks, rows.shape[0] // blocks, *rows.shape[1:])
    return [part.flatten(0, 1) for part in by_block.split([size // blocks for size in sizes], 1)]


def _joined(parts: Sequence[Tensor], placed: Placed, layer: Layer) -> Tensor:
    """One of transformers' tensors of the parts that are ours: the other way from :func:`_parts`."""
    by = placed.rule.interleaved_by
    if by is not None:
        blocks = by if isinstance(by, int) else getattr(placed.rule.mixer(layer), by)
        rows = torch.cat([part.unflatten(0, (blocks, part.shape[0] // blocks)) for part in parts], 1).flatten(0, 1)
    else:
        rows = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if placed.rule.halves_in_turn:
        rows = torch.stack(rows.chunk(2, 1), 2).flatten(1, 2)
    rows = rows[None] if placed.rule.as_one_row else rows
    return rows.transpose(-1, -2) if placed.rule.transposed else rows


@dataclass(frozen=True, slots=True)
class _Order:
    """The rotated channels of the heads whose projection or norm a parameter is, and the order they are brought in."""

    before: int
    """Channels of a head before the rotated ones."""
    width: int
    """Channels of a head."""
    order: Tensor


def _orders(adapter: Adapter, config: Mapping[str, Any], spec: ArchitectureSpec) -> dict[str, list[_Order]]:
    """How the rows of transformers' tensors are ordered on the way to ours, by our names, where they are.

    Rotated channels come to stand as real parts, then imaginary parts. Queries and keys are reordered alike, so their
    products stay what they were; the norms of both follow them.
    """
    kinds: list[Callable[[int], Tensor]] = []
    in_pairs = adapter.rotary_in_pairs
    if in_pairs(config) if callable(in_pairs) else in_pairs:
        kinds.append(lambda rope: torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2))))
    if adapter.rotary_backwards:
        kinds.append(lambda rope: torch.arange(rope).roll(rope // 2))
    found: dict[str, list[_Order]] = {}
    if not kinds or not isinstance(spec.positions, RotaryPositions):
        return found
    places = [
        (f"layers.{index}.sequence_mixer{end}", part)
        for index, layer in spec.iterate_layers()
        if layer.sequence_mixer is not None
        for end, part in layer.sequence_mixer.parts()
    ]
    for place, mixer in places:
        if isinstance(mixer, LatentAttention):
            rope, nope = mixer.qk_rope_head_dim, mixer.qk_nope_head_dim
            query = "q_proj" if mixer.q_lora_rank is None else "q_b_proj"
            # Name, channels before the rotated ones, and channels of a head; the keys' rotated part serves all heads.
            parts = [(query, nope, nope + rope), ("kv_a_proj", mixer.kv_lora_rank, mixer.kv_lora_rank + rope)]
        elif isinstance(mixer, Attention) and mixer.rotary_dim:
            rope = mixer.rotary_dim
            parts = [(name, 0, mixer.head_dim) for name in ("q_proj", "k_proj", "q_norm", "k_norm")]
        else:
            continue
        for name, before, width in parts:
            for end in ("weight", "bias"):
                found[f"{place}.{name}.{end}"] = [_Order(before, width, order_of(rope)) for order_of in kinds]
    return found


def _reorder(name: str, parameter: Tensor, by: _Order) -> None:
    """Reorder the rows of a parameter in place."""
    # Rows are channels of the heads one after the other; a norm may have a row a head instead.
    rest = () if "norm" in name.split(".")[-2] else parameter.shape[1:]
    channels = parameter.view(-1, by.width, *rest)
    rotated = slice(by.before, by.before + len(by.order))
    channels[:, rotated] = channels[:, rotated][:, by.order.to(parameter.device)]


def load_huggingface(
    source: Mapping[str, Tensor] | str | os.PathLike[str],
    config: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "auto",
) -> Decoder:
    """The model of a configuration (what ``json.load`` gives for a ``config.json``) with transformers' weights.

    ``source`` is a state dict, or a folder with safetensors, and with a ``config.json`` where no configuration is
    given. Of a folder one tensor at a time is in memory beside the model.

    Raises
    ------
    ValueError
        naming a tensor that is missing, has another shape, or has no place in the model.
    """
    from runners.models import build
    from runners.models.huggingface_files import FolderTensors, read_config

    if isinstance(source, Mapping):
        if config is None:
            raise ValueError("a state dict does not say what it is of: give the configuration, too")
        model = build(from_huggingface(config), device, dtype, kernels)
        load_into(model, source, config)
        return model
    config = read_config(source) if config is None else config
    spec = from_huggingface(config)
    tensors = FolderTensors(source, config, spec)
    model = build(spec, device, dtype, kernels)
    load_into(model, tensors, resolved(config).config)
    return model
