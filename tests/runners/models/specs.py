"""Small specifications over every component and option, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from planner.spec import ArchitectureSpec, parse_spec

HIDDEN = 16


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4]))
    window = draw(st.sampled_from([None, 1, 3, 8]))
    return {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": 8,
        "sliding_window": window,
        "dilation": draw(st.sampled_from([None, 2, 3])) if window is not None else None,
        "query_key_norm": draw(st.sampled_from([None, "head", "projection"])),
        "query_key_value_bias": draw(st.booleans()),
        "output_bias": draw(st.booleans()),
        "rope_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "logit_softcap": draw(st.sampled_from([None, 10.0])),
        "softmax_scale": draw(st.sampled_from([None, 0.3])),
    }


@st.composite
def latent_attentions(draw: st.DrawFn) -> dict[str, Any]:
    return {
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
        "parameter_norms": draw(st.booleans()),
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
    }


@st.composite
def mlps(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "kind": "mlp",
        "intermediate_size": 20,
        "gated": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu_squared"])),
    }


@st.composite
def moes(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 2]))
    shared = draw(st.sampled_from([None, 8]))
    return {
        "kind": "moe",
        "num_experts": 4,
        "num_experts_per_tok": draw(st.sampled_from([1, 2])),
        "intermediate_size": draw(st.sampled_from([8, 10])),
        "shared_intermediate_size": shared,
        "shared_expert_gate": draw(st.booleans()) if shared else False,
        "gated": draw(st.booleans()),
        "router_scores": draw(st.sampled_from(["softmax", "sigmoid"])),
        "normalize_weights": draw(st.booleans()),
        "num_expert_groups": groups,
        "groups_per_tok": draw(st.sampled_from([1, groups])),
        "score_correction_bias": draw(st.booleans()),
    }


@st.composite
def layers(draw: st.DrawFn, rotary: bool) -> dict[str, Any]:
    mixers = [attentions(), mamba1s(), mamba2s(), st.none()] + ([latent_attentions()] if rotary else [])
    sequence = draw(st.one_of(mixers))
    channel = draw(st.one_of(mlps(), moes(), st.none()) if sequence is not None else st.one_of(mlps(), moes()))
    placement = draw(st.sampled_from(["pre", "post", "sandwich"]))
    return {"sequence_mixer": sequence, "channel_mixer": channel, "norm_placement": placement}


@st.composite
def specs(draw: st.DrawFn) -> ArchitectureSpec:
    """A model of a few narrow layers."""
    positions = draw(st.sampled_from([{"kind": "rotary"}, {"kind": "learned", "num_positions": 32}, {"kind": "none"}]))
    rotary = positions["kind"] == "rotary"
    norm = draw(
        st.sampled_from(
            [
                {"kind": "rms_norm"},
                {"kind": "rms_norm", "zero_centered": True},
                {"kind": "layer_norm"},
                {"kind": "layer_norm", "bias": False},
            ]
        )
    )
    groups = draw(
        st.lists(
            st.builds(
                lambda repeats, pattern: {"repeats": repeats, "layers": pattern},
                st.sampled_from([1, 2]),
                st.lists(layers(rotary), min_size=1, max_size=2),
            ),
            min_size=1,
            max_size=2,
        )
    )
    return parse_spec(
        {
            "vocab_size": 24,
            "hidden_size": HIDDEN,
            "tie_word_embeddings": draw(st.booleans()),
            "positions": positions,
            "norm": norm,
            "final_norm": draw(st.booleans()),
            "lm_head_bias": draw(st.booleans()),
            "embedding_scale": draw(st.sampled_from([None, 4.0])),
            "final_logit_softcap": draw(st.sampled_from([None, 15.0])),
            "layer_groups": groups,
        }
    )
