"""Small specifications over every component and option, for hypothesis."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from planner.components.mlp import Pointwise
from planner.spec import ArchitectureSpec, parse_spec
from tests.planner.strategies import mask_fields

HIDDEN = 16

SCALINGS: list[dict[str, Any]] = [
    {"kind": "linear", "factor": 4.0},
    {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {
        "kind": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]
"""Rotary scalings by which a position turns alike, however long the sequence is."""


@st.composite
def query_key_norms(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a layer's norms of queries and keys."""
    over = draw(st.sampled_from([None, "head", "projection", "each_head"]))
    if over is None:
        return {}
    kind = draw(st.sampled_from(["rms_norm", "layer_norm"]))
    weight = over == "each_head" or draw(st.booleans())
    return {
        "query_key_norm": over,
        "query_key_norm_kind": kind,
        "query_key_norm_weight": weight,
        "query_key_norm_bias": kind == "layer_norm" and weight and draw(st.booleans()),
        "query_key_norm_after_rope": draw(st.booleans()),
        "query_key_norm_epsilon": draw(st.sampled_from([None, 1e-3])),
    }


OUTPUT_GATES = [
    {"output_gate": kind, "output_gate_activation": activation}
    for kind in ("elementwise", "headwise")
    for activation in ("sigmoid", "softplus")
]


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4]))
    return {
        **draw(query_key_norms()),
        "value_head_dim": draw(st.sampled_from([None, None, 6, 12])),
        "query_key_value_clip": draw(st.sampled_from([None, None, 0.02])),
        **draw(st.sampled_from([{}, *OUTPUT_GATES])),
        "sub_norm": draw(st.booleans()),
        "value_multiplier": draw(st.sampled_from([None, None, 0.7])),
        "sinks": draw(st.sampled_from([False, False, True])),
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": 8,
        **draw(mask_fields(8)),
        "query_key_value_bias": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "rope_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "logit_softcap": draw(st.sampled_from([None, None, 10.0])),
        "softmax_scale": draw(st.sampled_from([None, 0.3])),
    }


@st.composite
def latent_attentions(draw: st.DrawFn, rotary: bool) -> dict[str, Any]:
    return {
        "rotated": rotary and draw(st.booleans()),
        "latent_norm_epsilon": draw(st.sampled_from([None, 1e-3])),
        "kind": "latent_attention",
        "num_attention_heads": draw(st.sampled_from([1, 4])),
        "q_lora_rank": draw(st.sampled_from([None, 6])),
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": draw(st.sampled_from([6, 10, 12])),
        "attention_bias": draw(st.booleans()),
    }


@st.composite
def mamba1s(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "mamba1",
        "intermediate_size": 24,
        "state_size": draw(st.sampled_from([1, 4])),
        "conv_kernel": draw(st.sampled_from([1, 4])),
        "time_step_rank": 3,
        "use_bias": draw(st.booleans()),
        "use_conv_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "relu", "quick_gelu"])),
        "parameter_norms": draw(st.booleans()),
        "parameter_norm_weights": draw(st.booleans()),
        "parameter_norm_epsilon": draw(st.sampled_from([None, 1e-3])),
        "chunk_size": draw(st.sampled_from([2, 4, 32])),
    }


@st.composite
def mamba2s(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "mamba2",
        "num_heads": 4,
        "head_dim": 6,
        "state_size": draw(st.sampled_from([1, 8])),
        "n_groups": draw(st.sampled_from([1, 2, 4])),
        "conv_kernel": draw(st.sampled_from([2, 4])),
        "chunk_size": draw(st.sampled_from([3, 8])),
        "use_bias": draw(st.booleans()),
        "use_conv_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "relu", "quick_gelu"])),
        "norm": draw(st.booleans()),
        "norm_before_gate": draw(st.booleans()),
        "norm_groups": draw(st.sampled_from([None, 1, 3])),
        "norm_epsilon": draw(st.sampled_from([None, 1e-3])),
        "shortest_time_step": draw(st.sampled_from([None, 0.3])),
        "longest_time_step": draw(st.sampled_from([None, 0.7])),
        "projection_multipliers": draw(st.sampled_from([None, None, (0.5, 1.5, 0.75, 2.0, 0.9)])),
    }


@st.composite
def gated_delta_nets(draw: st.DrawFn) -> dict[str, Any]:
    key_heads = draw(st.sampled_from([1, 2]))
    return {
        "kind": "gated_delta_net",
        "num_key_heads": key_heads,
        "num_value_heads": key_heads * draw(st.sampled_from([1, 2])),
        "key_head_dim": draw(st.sampled_from([1, 6])),
        "value_head_dim": draw(st.sampled_from([4, 6])),
        "conv_kernel": draw(st.sampled_from([1, 4])),
        "chunk_size": draw(st.sampled_from([1, 5, 8])),
        "activation": draw(st.sampled_from(["silu", "relu"])),
        "output_activation": draw(st.sampled_from(["silu", "sigmoid"])),
        "negative_eigenvalues": draw(st.booleans()),
        "norm_epsilon": draw(st.sampled_from([None, 1e-3])),
    }


@st.composite
def kimi_delta_attentions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "kimi_delta_attention",
        "num_heads": draw(st.sampled_from([1, 2])),
        "head_dim": draw(st.sampled_from([1, 6])),
        "gate_rank": draw(st.sampled_from([1, 5])),
        "conv_kernel": draw(st.sampled_from([1, 4])),
        "chunk_size": draw(st.sampled_from([1, 4, 8])),
        "activation": draw(st.sampled_from(["silu", "relu"])),
        "norm_epsilon": draw(st.sampled_from([None, 1e-3])),
    }


@st.composite
def gated_linear_attentions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "gated_linear_attention",
        "num_heads": draw(st.sampled_from([1, 2])),
        "key_head_dim": draw(st.sampled_from([1, 6])),
        "value_head_dim": draw(st.sampled_from([4, 6])),
        "gate_rank": draw(st.sampled_from([1, 5])),
        "gate_logit_normalizer": draw(st.sampled_from([1.0, 16.0])),
        "chunk_size": draw(st.sampled_from([1, 4, 8])),
        "norm_epsilon": draw(st.sampled_from([None, 1e-3])),
    }


@st.composite
def lightning_attentions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "lightning_attention",
        "num_attention_heads": draw(st.sampled_from([1, 2, 4])),
        "head_dim": draw(st.sampled_from([1, 6])),
        "chunk_size": draw(st.sampled_from([1, 5, 8])),
        "activation": draw(st.sampled_from(["silu", "relu", "quick_gelu"])),
        "slower_with_depth": draw(st.booleans()),
        "norm_epsilon": draw(st.sampled_from([None, 1e-3])),
    }


@st.composite
def rg_lrus(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "rg_lru",
        "num_heads": draw(st.sampled_from([1, 3])),
        "head_dim": draw(st.sampled_from([1, 6])),
        "conv_kernel": draw(st.sampled_from([1, 4])),
        "activation": draw(st.sampled_from(["gelu_tanh", "relu"])),
        "use_bias": draw(st.booleans()),
        "use_conv_bias": draw(st.booleans()),
    }


def rwkv_time_mixes() -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from([{"kind": "rwkv_time_mix", "attention_hidden_size": size} for size in (1, 12)])


def rwkv_channel_mixes() -> st.SearchStrategy[dict[str, Any]]:
    return st.just({"kind": "rwkv_channel_mix", "intermediate_size": 20})


@st.composite
def short_convolutions(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "short_convolution",
        "conv_kernel": draw(st.sampled_from([1, 3])),
        "use_bias": draw(st.booleans()),
    }


def activations(gated: bool) -> st.SearchStrategy[str]:
    """Names of activations that a layer with or without a gate may have."""
    return st.sampled_from([*get_args(Pointwise), *(["clamped_swiglu"] if gated else [])])


@st.composite
def mlps(draw: st.DrawFn) -> dict[str, Any]:
    gated = draw(st.booleans())
    return {
        "kind": "mlp",
        "intermediate_size": 20,
        "gated": gated,
        "bias": draw(st.booleans()),
        "activation": draw(activations(gated) if gated or draw(st.integers(0, 4)) else st.just("xielu")),
        "gate_multiplier": draw(st.sampled_from([None, None, 0.7])) if gated else None,
        "output_multiplier": draw(st.sampled_from([None, None, 0.4])),
        "sub_norm": draw(st.booleans()),
    }


@st.composite
def moes(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 2]))
    shared, latent = draw(st.sampled_from([None, 8])), draw(st.sampled_from([None, 8]))
    gated = draw(st.booleans())
    corrected = draw(st.booleans())
    return {
        "kind": "moe",
        "num_experts": 4,
        "num_experts_per_tok": draw(st.sampled_from([1, 2])),
        "intermediate_size": draw(st.sampled_from([8, 10])),
        "shared_intermediate_size": shared,
        "shared_expert_gate": draw(st.booleans()) if shared else False,
        "shared_expert_bias": draw(st.booleans()) if shared else False,
        "shared_scaling_factor": draw(st.sampled_from([1.0, 0.5])) if shared else 1.0,
        "latent_size": latent,
        "latent_bias": draw(st.booleans()) if latent else False,
        "gated": gated,
        "activation": draw(activations(gated)),
        "expert_bias": draw(st.booleans()),
        "router_bias": draw(st.booleans()),
        "weights_on_input": draw(st.booleans()),
        "group_score": draw(st.sampled_from(["sum_of_two", "max"])),
        "router_scores": draw(st.sampled_from(["softmax", "sigmoid"])),
        "normalize_weights": draw(st.booleans()),
        "num_expert_groups": groups,
        "groups_per_tok": draw(st.sampled_from([1, groups])),
        "score_correction_bias": corrected,
        "score_correction_is_parameter": corrected and draw(st.booleans()),
    }


@st.composite
def parallel_mixers(draw: st.DrawFn, mixers: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "parallel_mixers",
        "first": draw(mixers),
        "second": draw(mixers),
        "first_multiplier": draw(st.sampled_from([None, 0.6])),
        "second_multiplier": draw(st.sampled_from([None, 1.5])),
    }


@st.composite
def layers(draw: st.DrawFn, positions: str) -> dict[str, Any]:
    mixers = [attentions(), attentions(), mamba1s(), mamba2s(), short_convolutions(), gated_delta_nets(), rg_lrus()]
    mixers += [lightning_attentions(), kimi_delta_attentions(), rwkv_time_mixes(), gated_linear_attentions()]
    mixers += [latent_attentions(positions == "rotary")] if positions != "alibi" else []
    sequence = draw(st.one_of(*mixers, parallel_mixers(st.one_of(mixers)), st.none()))
    channels = [mlps(), moes(), rwkv_channel_mixes()]
    channel = draw(st.one_of(*channels, st.none()) if sequence is not None else st.one_of(channels))
    placement = draw(st.sampled_from(["pre", "post", "sandwich", "after_residual"]))
    residuals = ["sequential"]
    if sequence is not None and channel is not None and placement != "after_residual":
        residuals += ["parallel"] if placement == "post" else ["parallel", "parallel_shared_norm"]
    residual = draw(st.sampled_from(residuals))
    factors = {
        f"{stem}_multipliers": draw(st.sampled_from([None, None, (1.5, 0.7)]))
        if residual == "sequential" and mixer
        else None
        for stem, mixer in (("sequence", sequence), ("channel", channel))
    }
    return {
        **factors,
        "sequence_mixer": sequence,
        "channel_mixer": channel,
        "norm_placement": placement,
        "residual": residual,
    }


@st.composite
def position_encodings(draw: st.DrawFn) -> dict[str, Any]:
    """How a model knows positions, up to 32 of them."""
    kind = draw(st.sampled_from(["rotary", "rotary", "rotary", "learned", "alibi", "none"]))
    if kind == "rotary":
        return {"kind": kind, "scaling": draw(st.sampled_from([None, *SCALINGS]))}
    if kind == "learned":
        return {"kind": kind, "num_positions": 32, "offset": draw(st.sampled_from([0, 2]))}
    if kind == "alibi":
        return {"kind": kind, "scaled": draw(st.booleans())}
    return {"kind": kind}


def _share_key_values(pattern: list[dict[str, Any]]) -> None:
    """Append a layer that reads the keys and values of the pattern's last attention layer, if it has one."""
    for layer in reversed(pattern):
        mixer = layer["sequence_mixer"]
        if mixer is not None and mixer["kind"] == "attention":
            pattern.append({**layer, "sequence_mixer": {**mixer, "shares_key_values": True}})
            return


@st.composite
def specs(draw: st.DrawFn) -> ArchitectureSpec:
    """A model of a few narrow layers."""
    positions = draw(position_encodings())
    norm = draw(
        st.sampled_from(
            [
                {"kind": "rms_norm"},
                {"kind": "rms_norm", "zero_centered": True},
                {"kind": "layer_norm"},
                {"kind": "layer_norm", "bias": False},
                {"kind": "layer_norm", "zero_centered": True},
                {"kind": "rms_norm", "has_weight": False},
                {"kind": "layer_norm", "bias": False, "has_weight": False},
            ]
        )
    )
    groups = draw(
        st.lists(
            st.builds(
                lambda repeats, pattern: {"repeats": repeats, "layers": pattern},
                st.sampled_from([1, 2]),
                st.lists(layers(positions["kind"]), min_size=1, max_size=2),
            ),
            min_size=1,
            max_size=2,
        )
    )
    if draw(st.booleans()):
        _share_key_values(groups[-1]["layers"])
    return parse_spec(
        {
            "vocab_size": 24,
            "hidden_size": HIDDEN,
            "embedding_size": draw(st.sampled_from([None, None, 6, 20])),
            "tie_word_embeddings": draw(st.booleans()),
            "positions": positions,
            "norm": norm,
            "embedding_norm": draw(st.booleans()),
            "final_norm": draw(st.booleans()),
            "lm_head_bias": draw(st.booleans()),
            "embedding_scale": draw(st.sampled_from([None, 4.0])),
            "residual_multiplier": draw(st.sampled_from([None, 0.5])),
            "logit_scale": draw(st.sampled_from([None, 0.25])),
            "final_logit_softcap": draw(st.sampled_from([None, 15.0])),
            "layer_groups": groups,
        }
    )
