"""Which architecture a measured row's model is."""

from __future__ import annotations

import functools
import re
from typing import Any

from planner.measured.rows import MEASURED, skip
from planner.presets import preset, read_data, read_yaml
from planner.spec import ArchitectureSpec, parse_spec

BLOOM_VOCABULARY = 250_880
"""Of the "about 250k" of BigScience's table: the padded vocabulary of the model that came of it."""


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    rows = read_yaml((MEASURED / "models.yaml").read_text(encoding="utf-8"))
    return {_letters(name): row for row in rows for name in row["names"]}


def _letters(name: str) -> str:
    """A name without what sources write differently: case, spaces and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_fused(name: str) -> bool:
    """Whether llama.cpp keeps the model's queries, keys and values as one tensor."""
    return bool(_table().get(_letters(name), {}).get("fused", False))


def plain_name(model: str) -> str:
    """A model's name without what stands in brackets behind it."""
    return re.sub(r"\s*[(\[].*$", "", model).strip()


def _setting(model: str, pattern: str) -> int | None:
    found = re.search(pattern, model)
    return int(found.group(1)) if found else None


def _decoder(name: str, layers: int, attention: dict[str, Any], mlp: dict[str, Any], **model: Any) -> ArchitectureSpec:
    layer = {"sequence_mixer": {"kind": "attention", **attention}, "channel_mixer": {"kind": "mlp", **mlp}}
    return parse_spec({"name": name, **model, "layer_groups": [{"repeats": layers, "layers": [layer]}]})


def _heads(hidden_size: int, heads: int, key_value_heads: int | None = None) -> dict[str, int]:
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads or heads,
        "head_dim": hidden_size // heads,
    }


def _in_words(model: str, layers: int | None, sequence_length: int) -> ArchitectureSpec | None:
    """A model whose sizes stand in its name, as four of the sources write them; ``None``: it has none there."""
    hidden_size = _setting(model, r"\bh(\d+)\b") or _setting(model, r"d_model (\d+)")
    heads = _setting(model, r"heads ?(\d+)")
    if hidden_size is None or heads is None:
        return None
    if layers is None:
        skip("the number of layers is not published")
    if model.startswith("MPT"):
        # With biases, unlike the published MPT: so the parameters come out as the source prints them.
        return _decoder(
            plain_name(model),
            layers,
            {**_heads(hidden_size, heads), "query_key_value_bias": True, "output_bias": True},
            {"intermediate_size": 4 * hidden_size, "gated": False, "activation": "gelu", "bias": True},
            vocab_size=_setting(model, r"vocab (\d+)"),
            hidden_size=hidden_size,
            tie_word_embeddings=True,
            positions={"kind": "learned", "num_positions": sequence_length},
            norm={"kind": "layer_norm"},
        )
    if model.startswith("Llama-arch"):
        return _decoder(
            plain_name(model),
            layers,
            _heads(hidden_size, heads),
            {"intermediate_size": _setting(model, r"ffn(\d+)"), "gated": True, "activation": "silu"},
            vocab_size=_setting(model, r"vocab(\d+)"),
            hidden_size=hidden_size,
            tie_word_embeddings="untied" not in model,
        )
    if "Megatron-DeepSpeed" in model:
        return _decoder(
            plain_name(model),
            layers,
            {**_heads(hidden_size, heads), "query_key_value_bias": True, "output_bias": True},
            {"intermediate_size": 4 * hidden_size, "gated": False, "activation": "gelu_tanh", "bias": True},
            vocab_size=BLOOM_VOCABULARY,
            hidden_size=hidden_size,
            tie_word_embeddings=True,
            positions={"kind": "alibi"},
            norm={"kind": "layer_norm"},
        )
    return None


def identify(model: str, layers: int | None, sequence_length: int) -> ArchitectureSpec:
    """The architecture of a model by the name that its source gives it, with as many layers as the run had."""
    spec = _in_words(model, layers, sequence_length)
    if spec is not None:
        return spec
    name = plain_name(model)
    row = _table().get(_letters(name))
    if row is None:
        skip("a model without published sizes here")
    if "preset" in row:
        spec = preset(row["preset"]).spec
    else:
        config = dict(row["config"])
        if "sizes" in row:
            config["n_embd"], config["n_head"] = row["sizes"][name]
            config["n_layer"] = layers
        spec = read_data(config).spec.model_copy(update={"name": name})
    return spec if layers is None else with_num_layers(spec, layers)


def with_num_layers(spec: ArchitectureSpec, layers: int, first: int = 0) -> ArchitectureSpec:
    """The same model with the given number of its layers, from that of index ``first`` on."""
    if layers == spec.num_layers:
        return spec
    stack = [layer for _, layer in spec.iterate_layers()]
    if layers > len(stack):
        skip("more layers than the published model has")
    return spec.with_layers(stack[first : first + layers])
