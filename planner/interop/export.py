"""Hugging Face configurations from specifications, in any family that is read.

No family has an exporter of its own. A configuration's fields are filled with what the specification holds under the
same or a kindred name; the family's own adapter reads the result, and fields are changed one at a time, each to the
value that brings what was read nearest to the specification, until the two are the same. So what is exported is what
would be imported, and a design that no family can say is refused.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from planner.components import Attention, Component, LatentAttention, MoE
from planner.errors import PlannerError, UnsupportedArchitecture
from planner.interop import ADAPTERS
from planner.interop.base import ACTIVATIONS, Adapter
from planner.spec import ArchitectureSpec, Layer, RotaryPositions

FIRST = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "gpt2", "deepseek_v3")
"""Families that most software reads: taken before others that say the same."""
TRIED = 6
"""Families, the nearest first, whose fields are searched."""
BEGINNING = frozenset({"model_type", "pad_token_id", "num_hidden_layers", "n_layer", "n_layers", "num_layers"})
LAGGING = 0.75
"""Share of the differences that a round may leave; a family that comes no nearer says something else."""
ROUNDS = 4
"""Times that every field is looked at."""

KINDRED: Mapping[str, tuple[str, ...]] = {
    "activation_function": ("activation",),
    "attention_bias": ("query_key_value_bias",),
    "attention_multiplier": ("softmax_scale",),
    "attention_window_size": ("sliding_window",),
    "attn_logit_softcapping": ("logit_softcap",),
    "block_size": ("lightning_attention.chunk_size",),
    "conv1d_width": ("conv_kernel",),
    "conv_kernel": ("conv_kernel",),
    "d_model": ("hidden_size",),
    "embedding_multiplier": ("embedding_scale",),
    "final_logit_softcapping": ("final_logit_softcap",),
    "hidden_act": ("activation",),
    "hidden_activation": ("activation",),
    "layer_norm_eps": ("epsilon",),
    "layer_norm_epsilon": ("epsilon",),
    "linear_allow_neg_eigval": ("negative_eigenvalues",),
    "linear_conv_kernel_dim": ("conv_kernel",),
    "linear_key_head_dim": ("key_head_dim",),
    "linear_num_key_heads": ("num_key_heads",),
    "linear_num_value_heads": ("num_value_heads",),
    "linear_value_head_dim": ("value_head_dim",),
    "logits_soft_cap": ("final_logit_softcap",),
    "lru_width": ("rg_lru.width",),
    "mamba_act": ("activation",),
    "mamba_chunk_size": ("chunk_size",),
    "mamba_conv_bias": ("use_conv_bias",),
    "mamba_d_conv": ("conv_kernel",),
    "mamba_d_head": ("mamba2.head_dim",),
    "mamba_d_ssm": ("mamba2.intermediate_size",),
    "mamba_d_state": ("state_size",),
    "mamba_dt_rank": ("time_step_rank",),
    "mamba_n_groups": ("n_groups",),
    "mamba_n_heads": ("num_heads",),
    "mamba_proj_bias": ("use_bias",),
    "mlp_bias": ("mlp.bias",),
    "moe_intermediate_size": ("moe.intermediate_size",),
    "n_embd": ("hidden_size",),
    "n_group": ("num_expert_groups",),
    "n_head": ("num_attention_heads",),
    "n_heads": ("num_attention_heads",),
    "n_inner": ("mlp.intermediate_size",),
    "n_layer": ("num_layers",),
    "n_layers": ("num_layers",),
    "n_positions": ("num_positions",),
    "n_routed_experts": ("num_experts",),
    "norm_epsilon": ("epsilon",),
    "norm_topk_prob": ("normalize_weights",),
    "num_heads": ("num_attention_heads",),
    "num_hidden_layers": ("num_layers",),
    "num_local_experts": ("num_experts",),
    "rms_norm_eps": ("epsilon",),
    "rope_local_base_freq": ("rope_theta",),
    "rope_theta": ("theta",),
    "shared_expert_intermediate_size": ("shared_intermediate_size",),
    "topk_group": ("groups_per_tok",),
    "window_size": ("sliding_window",),
}
"""A configuration's field and the specification's that says the same, where the names differ."""
WORDS: Mapping[str, tuple[str, ...]] = {
    "expert_selection_fn": ("softmax", "sigmoid"),
    "position_embedding_type": ("nope", "rope"),
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
}
"""Words that the fields of families choose from, beside activations."""
SMALL = tuple(range(9))


def to_huggingface(spec: ArchitectureSpec, model_type: str | None = None) -> dict[str, Any]:
    """The ``config.json`` of a specification, in the family ``model_type`` or in the first that can say it.

    Raises
    ------
    UnsupportedArchitecture
        where no family (or not the one that is asked for) can express the specification.
    """
    if model_type is not None and model_type not in ADAPTERS:
        raise UnsupportedArchitecture.of(
            f"The architecture {model_type!r} is not supported.",
            path="model_type",
            remedy=f"Supported are {', '.join(ADAPTERS)}.",
            code="unsupported_model_type",
        )
    target = _Target(spec)
    names = [model_type] if model_type is not None else _in_order(target)
    near = []
    for order, name in enumerate(names):
        # A class's own padding token may lie outside the vocabulary, and a specification knows no tokens.
        config = {"model_type": name, "pad_token_id": None, **target.seeds(ADAPTERS[name])}
        config, distance = _patterned(target, config)
        if distance == 0:
            return target.written(config)
        if distance == float("inf"):
            # Seeds may contradict each other: begin from the family's own values and take over what helps.
            config = {name: value for name, value in config.items() if name in BEGINNING}
            config, distance = _patterned(target, config)
        near.append((distance, order, config))
    for _, _, config in sorted(near, key=lambda entry: entry[:2])[:TRIED]:
        found = _search(target, config)
        if found is not None:
            return target.written(found)
    raise UnsupportedArchitecture.of(
        "No family of Hugging Face configurations expresses this design."
        if model_type is None
        else f"The family {model_type} cannot express this design.",
        path="layer_groups",
        remedy="Export it as YAML or JSON instead.",
        code="no_family",
    )


def _patterned(target: _Target, config: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The configuration with each layer what it is: that comes first, since it decides which fields count."""
    distance = target.distance(config)
    for field in ADAPTERS[config["model_type"]].defaults if distance else ():
        for value in target.by_layer(field):
            patterned = target.distance({**config, field: value})
            if patterned < distance:
                config, distance = {**config, field: value}, patterned
    return config, distance


def _in_order(target: _Target) -> list[str]:
    """All families: first those whose own default has all kinds of parts that the target has, the best known first."""
    known = [name for name in FIRST if name in ADAPTERS]
    names = [*known, *(name for name in ADAPTERS if name not in known)]
    return sorted(names, key=lambda name: len(target.kinds - _kinds_of(name)))


def _kinds(spec: ArchitectureSpec) -> frozenset[str]:
    """Kinds of the mixers of a specification."""
    mixers = [mixer for _, layer in spec.iterate_layers() for mixer in (layer.sequence_mixer, layer.channel_mixer)]
    return frozenset(mixer.kind for mixer in mixers if mixer is not None)


@functools.cache
def _kinds_of(model_type: str) -> frozenset[str]:
    """Kinds that a family may have: those of its default, and the plain MLP that mixtures may be replaced by."""
    try:
        return _kinds(ADAPTERS[model_type].specification({"model_type": model_type})) | {"mlp"}
    except PlannerError:  # the defaults of some families are no model
        return frozenset()


@functools.lru_cache(4096)
def _leaves(layer: Layer) -> Mapping[str, Any]:
    """The fields of a layer by their paths."""
    return dict(_flat(layer.model_dump(mode="json")))


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _around(spec: ArchitectureSpec) -> Mapping[str, Any]:
    """The fields of a specification outside its layers, by their paths."""
    return dict(_flat(spec.model_dump(mode="json", exclude={"name", "layer_groups"})))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    return sum(one.get(key, _flat) != other.get(key, _flat) for key in {**one, **other})


class _Target:
    """A specification to be expressed: what it holds, by name, and how far a configuration is from it."""

    def __init__(self, spec: ArchitectureSpec) -> None:
        self.spec = spec
        self.layers = [layer for _, layer in spec.iterate_layers()]
        self.around = _around(spec)
        self.kinds = _kinds(spec)
        mixers = [layer.sequence_mixer for layer in self.layers]
        heads = {mixer.num_attention_heads for mixer in mixers if isinstance(mixer, LatentAttention)}
        self.latent_heads = heads.pop() if len(heads) == 1 else None
        self.held: dict[str, list[Any]] = {"num_layers": [spec.num_layers]}
        for path, value in self.around.items():
            self._hold(path.rpartition(".")[2], value)
        for layer in dict.fromkeys(self.layers):
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                if mixer is not None:
                    for _, part in mixer.parts():
                        for name, value in part.model_dump(mode="json").items():
                            self._hold(name, value)
                            self._hold(f"{getattr(part, 'kind', '')}.{name}", value)
                        if isinstance(part, MoE):  # families write how many shared experts there are, not their width
                            width = part.shared_intermediate_size or 0
                            self._hold("n_shared_experts", width // part.intermediate_size)
                        for name, value in _derived(part):
                            self._hold(name, value)
                            self._hold(f"{getattr(part, 'kind', '')}.{name}", value)
        values = [value for found in self.held.values() for value in found]
        self.wholes = sorted({v for v in values if isinstance(v, int) and not isinstance(v, bool)} | set(SMALL))
        # Some families write an MLP's width twice as large as it is.
        self.wholes += sorted({2 * v for v in self.wholes} - set(self.wholes))
        ratios = {a // b for a, b in itertools.product(self.wholes, repeat=2) if b and not a % b and a // b <= 64}
        self.wholes += sorted(ratios - set(self.wholes))
        reals = {float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)}
        turned = {y for v in reals if v > 0 for x in (1 / v, v**-2, v / spec.hidden_size) for y in (x, round(x, 9))}
        self.reals = sorted(v for v in values if isinstance(v, float)) + sorted(turned) + [1.0, 0.5, 0.25]

    def _hold(self, name: str, value: Any) -> None:
        found = self.held.setdefault(name, [])
        if value not in found:
            found.append(value)

    def distance(self, config: Mapping[str, Any]) -> float:
        """Fields in which what the family reads differs, those of layers as their share of all; 0: the very same."""
        try:
            found = ADAPTERS[config["model_type"]].specification(config)
        except PlannerError:
            return float("inf")
        if found.content_hash() == self.spec.content_hash():
            return 0.0
        layers = [layer for _, layer in found.iterate_layers()]
        inside = sum(
            _differing(_leaves(one), _leaves(other)) for one, other in zip(layers, self.layers, strict=False)
        ) / min(len(layers), len(self.layers))
        return 0.01 + inside + _differing(_around(found), self.around) + 50.0 * (len(layers) != len(self.layers))

    def seeds(self, adapter: Adapter) -> dict[str, Any]:
        """A family's fields with what the specification holds under their names."""
        made: dict[str, Any] = {}
        for name, default in adapter.defaults.items():
            values = self.named(name, default)
            if values:
                made[name] = values[0]
        scaling = self.around.get("positions.scaling.kind")
        if scaling is not None and isinstance(self.spec.positions, RotaryPositions):
            fields = {k: v for k, v in self.spec.positions.model_dump(mode="json")["scaling"].items() if v is not None}
            made["rope_scaling"] = {"rope_type": fields.pop("kind"), **fields}
            if scaling == "dynamic":
                made["max_position_embeddings"] = fields["original_max_position_embeddings"]
        stretched_by_default = (adapter.defaults.get("rope_parameters") or {}).get("rope_type", "default") != "default"
        if scaling is None and stretched_by_default and "positions.theta" in self.around:  # GPT-OSS
            made["rope_parameters"] = {"rope_type": "default", "rope_theta": self.around["positions.theta"]}
        in_layers = [getattr(layer.sequence_mixer, "rope_scaling", None) for layer in self.layers]
        stretched = next((one for one in in_layers if one is not None), None)
        if stretched is not None:  # the older field speaks of layers without a window alone (Gemma 3)
            fields = {k: v for k, v in stretched.model_dump(mode="json").items() if v is not None}
            made["rope_scaling"] = {"rope_type": fields.pop("kind"), **fields}
        return made

    def named(self, name: str, default: Any) -> list[Any]:
        """Values of a field that the specification holds under its name or a kindred one, as the family writes them."""
        found: list[Any] = []
        for source in (*KINDRED.get(name, ()), name):
            for value in self.held.get(source, []):
                found += _as_written(name, value, default)
        return [value for value in found if not isinstance(value, (dict, list))] + self.by_layer(name)

    def by_layer(self, name: str) -> list[Any]:
        """Lists of a word, a number or an index a layer, and periods, for the fields that have them."""
        sequence = [layer.sequence_mixer for layer in self.layers]
        mixers = [mixer.kind if mixer is not None else None for mixer in sequence]
        sparse = [getattr(layer.channel_mixer, "kind", None) == "moe" for layer in self.layers]
        attends = [kind in ("attention", "latent_attention") for kind in mixers]
        windows = [getattr(mixer, "sliding_window", None) for mixer in sequence]
        chunks = [getattr(mixer, "attention_chunk_size", None) for mixer in sequence]
        rotated = [int(getattr(mixer, "rope_share", 1.0) > 0) for mixer in sequence]
        if name in ("layer_types", "layers_block_type", "block_types"):
            words = [
                "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
                for window, chunk in zip(windows, chunks, strict=True)
            ]
            others = ("linear_attention", "mamba", "conv", "recurrent") if not all(attends) else ("",)
            return [
                [word if attend else other for word, attend in zip(kinds, attends, strict=True)]
                for kinds in (words, *([word] * len(words) for word in ("attention", "full_attention")))
                for other in others
            ]
        if name == "time_step_limit":
            shortest, longest = (self.held.get(f"{end}_time_step", [None])[0] for end in ("shortest", "longest"))
            return [[shortest or 0.0, float("inf") if longest is None else longest]]
        if name.endswith(("_alpha_factor", "_beta_factor")):  # MiniMax-01's, of the stream and of what is added
            which, place = name.split("_", 1)[0], 0 if "alpha" in name else 1
            kind = {"full": "attention", "linear": "lightning_attention"}.get(which)
            pairs = [
                layer.channel_multipliers if which == "mlp" else layer.sequence_multipliers
                for layer in self.layers
                if which == "mlp" or getattr(layer.sequence_mixer, "kind", None) == kind
            ]
            return [pair[place] for pair in dict.fromkeys(pairs) if pair is not None]
        if name == "num_attention_heads_per_layer":
            return [[getattr(mixer, "num_attention_heads", 0) for mixer in sequence]]
        if name == "layer_rope_theta":  # 0 where nothing is rotated
            theta = self.around.get("positions.theta") or 0.0
            return [
                [(getattr(m, "rope_theta", None) or theta) * turn for m, turn in zip(sequence, rotated, strict=True)]
            ]
        if name == "moe_topk":
            return [[getattr(layer.channel_mixer, "num_experts_per_tok", 1) for layer in self.layers]]
        if name == "use_sliding_window":
            return [any(windows)]
        if name == "max_window_layers" and any(windows):
            return [next(index for index, window in enumerate(windows) if window)]
        if name == "attention_types":
            return [[[["local" if window else "global" for window in windows], 1]]]
        if name == "mlp_layer_types":
            return [["sparse" if one else "dense" for one in sparse]]
        if name == "hybrid_override_pattern":
            signs = {"mamba2": "M", "attention": "*", "mlp": "-", "moe": "E"}
            return [
                "".join(
                    signs.get(getattr(layer.sequence_mixer or layer.channel_mixer, "kind", ""), "?")
                    for layer in self.layers
                )
            ]
        if name == "no_rope_layers":
            return [rotated]
        if name == "moe_layers":
            return [[index for index, one in enumerate(sparse) if one]]
        if name == "mlp_only_layers":
            return [[], [index for index, one in enumerate(sparse) if not one]]
        if name == "attn_layer_indices":
            return [[index for index, one in enumerate(attends) if one]]
        if name == "first_k_dense_replace":
            return [sparse.index(True) if any(sparse) else len(sparse)]
        for prefix, marks in (("attn", attends), ("expert", sparse)):
            if name in (f"{prefix}_layer_period", f"{prefix}_layer_offset") and any(marks):
                places = [index for index, one in enumerate(marks) if one]
                period = places[1] - places[0] if len(places) > 1 else len(marks)
                return [period if name.endswith("period") else places[0]]
        return []

    def _rotations(self) -> dict[str, Any]:
        """``rope_parameters`` of each type of layer, as families have them whose windows have a base of their own."""
        found: dict[str, Any] = {}
        for layer in self.layers:
            if isinstance(layer.sequence_mixer, Attention):
                mixer = layer.sequence_mixer.model_dump(mode="json")
                scaling = {key: value for key, value in (mixer["rope_scaling"] or {}).items() if value is not None}
                found["sliding_attention" if mixer["sliding_window"] else "full_attention"] = {
                    "rope_type": scaling.pop("kind", "default"),
                    "rope_theta": mixer["rope_theta"] or self.around.get("positions.theta"),
                    **scaling,
                }
        return found

    def candidates(self, name: str, default: Any) -> list[Any]:
        """Values to try for a field, likely ones first."""
        tried = self.named(name, default)
        if name in ("rope_parameters", "rope_scaling"):
            return [self._rotations()] if name == "rope_parameters" else []
        if name == "attn_config":  # MPT's
            return [{"clip_qkv": clip} for clip in self.held.get("query_key_value_clip", []) if clip is not None]
        if isinstance(default, bool):
            tried += [True, False]
        elif isinstance(default, str):
            tried += [*ACTIVATIONS] if default in ACTIVATIONS else [*WORDS.get(name, ()), *self.wholes]
        elif isinstance(default, float):
            tried += self.reals
        elif isinstance(default, int):
            tried += self.wholes
        elif default is None:
            tried += [None, *WORDS.get(name, ()), *self.wholes, *self.reals]
        if None in self.held.get(name, ()):  # a part that the target has not: DeepSeek-V2-Lite's latent of queries
            tried.append(None)
        unique: dict[str, Any] = {}
        for value in tried:
            unique.setdefault(repr(value), value)
        return list(unique.values())

    def written(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration without the fields that say nothing: those of no value at all."""
        adapter = ADAPTERS[config["model_type"]]
        kept = dict(config)
        for name in config:
            default = adapter.defaults.get(name, config)
            fewer = {key: value for key, value in kept.items() if key != name}
            says_nothing = kept[name] is None or (kept[name] == default and name not in KINDRED)
            if says_nothing and default is not config and self.distance(fewer) == 0:
                kept = fewer
        return self._computed(kept, adapter)

    def _computed(self, config: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
        """A configuration with the fields that no specification holds, where the family's own values mean another one.

        Llama 4 tempers its queries unless a field says no; heads of latent attention are counted twice.
        """
        if self.latent_heads is not None and "num_key_value_heads" in adapter.ignored:
            config = {**config, "num_key_value_heads": self.latent_heads}
        for name in adapter.unmodelled_in(config):
            field, _, entry = name.partition(".")
            # Some classes of transformers compute with the field, so nothing at all is the last resort.
            for value in sorted(adapter.unmodelled.get(name, ()), key=lambda value: value is None):
                changed = {**config, field: value}
                if entry:  # transformers reads the older field before the newer one, so one of them says it all
                    older = changed.pop("rope_scaling", None) if field == "rope_parameters" else None
                    changed[field] = {**(older or config.get(field) or adapter.defaults.get(field) or {}), entry: value}
                if self.distance(changed) == 0 and name not in adapter.unmodelled_in(changed):
                    config = changed
                    break
        return config


def _derived(part: Component) -> Iterator[tuple[str, int]]:
    """Whole numbers that a block derives from its fields: its rotated channels, for one."""
    for kind in type(part).__mro__:
        for name, attribute in vars(kind).items():
            if isinstance(attribute, property) and kind.__module__.startswith("planner.components."):
                value = getattr(part, name)
                if type(value) is int:
                    yield name, value


def _as_written(name: str, value: Any, default: Any) -> list[Any]:
    """A value of the specification as a configuration may write it."""
    if value is None and default is not None:
        return []
    if isinstance(value, str):
        return [theirs for theirs, ours in ACTIVATIONS.items() if ours == value] if isinstance(default, str) else []
    if isinstance(value, float) and isinstance(default, int) and not isinstance(default, bool):
        return [int(value)] if value.is_integer() else []
    if isinstance(value, bool) != isinstance(default, bool) and default is not None:
        return []
    return [value]


def _search(target: _Target, config: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration, changed field by field until it says the target; nothing where that does not come to pass."""
    defaults = ADAPTERS[config["model_type"]].defaults
    best = target.distance(config)
    for _ in range(ROUNDS):
        before = best
        for name, default in defaults.items():
            for value in target.candidates(name, default):
                if name in config and config[name] == value and type(config[name]) is type(value):
                    continue
                changed = {**config, name: value}
                distance = target.distance(changed)
                if distance < best:
                    config, best = changed, distance
                if best == 0:
                    return config
        if best > LAGGING * before:
            return None
    return None
