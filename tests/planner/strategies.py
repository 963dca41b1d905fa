"""Drawn specifications that cover every component, every optional field and every norm placement; all of them small."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from planner import ArchitectureSpec, parse_spec


@st.composite
def mask_fields(draw: st.DrawFn, largest: int) -> dict[str, Any]:
    """Fields of an attention layer's mask, whose sizes are at most ``largest``."""
    size = st.integers(1, largest)
    near = draw(st.sampled_from(["all", "window", "dilated window", "chunks", "stride", "window and stride", "blocks"]))
    fields: dict[str, Any] = {}
    if "window" in near:
        fields["sliding_window"] = draw(size)
    if "dilated" in near:
        fields["dilation"] = draw(st.integers(2, 5))
    if "stride" in near:
        fields["stride"] = draw(st.integers(2, 1 + largest))
    if near == "chunks":
        fields["attention_chunk_size"] = draw(size)
        if draw(st.booleans()):
            fields["previous_chunks"] = draw(st.integers(1, 3))
        if draw(st.booleans()):
            fields["chunk_summaries"] = draw(st.integers(1, fields["attention_chunk_size"]))
    if near == "blocks":
        fields["block_size"] = draw(size)
        if draw(st.booleans()):
            fields["block_offsets"] = tuple(sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))))
        if draw(st.booleans()):
            fields["random_blocks"] = draw(st.integers(1, 4))
            fields["random_seed"] = draw(st.none() | st.integers(0, 2**31 - 1))
    if near != "all" and draw(st.booleans()):
        fields["global_tokens"] = draw(size)
    return fields


def _attention() -> st.SearchStrategy[dict[str, Any]]:
    def build(draw: Any) -> dict[str, Any]:
        key_value_heads = draw(st.integers(1, 4))
        mixer: dict[str, Any] = {
            "kind": "attention",
            "num_key_value_heads": key_value_heads,
            "num_attention_heads": key_value_heads * draw(st.integers(1, 4)),
            "head_dim": draw(st.sampled_from([8, 16, 24, 40])),
            "value_head_dim": draw(st.sampled_from([None, 8, 32])),
            "query_key_norm": draw(st.sampled_from([None, "head", "projection", "each_head"])),
            "query_key_value_bias": draw(st.booleans()),
            "query_key_value_clip": draw(st.sampled_from([None, 8.0])),
            "output_gate": draw(st.sampled_from([None, "elementwise", "headwise"])),
            "value_multiplier": draw(st.sampled_from([None, 0.7])),
            "sub_norm": draw(st.booleans()),
            "output_bias": draw(st.booleans()),
            "sinks": draw(st.booleans()),
        }
        if mixer["query_key_norm"] is not None:
            kind = draw(st.sampled_from(["rms_norm", "layer_norm"]))
            mixer |= {"query_key_norm_kind": kind, "query_key_norm_bias": kind == "layer_norm" and draw(st.booleans())}
        return mixer | draw(mask_fields(64))

    return st.composite(build)()


def _latent_attention() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("latent_attention"),
            "num_attention_heads": st.integers(1, 8),
            "q_lora_rank": st.none() | st.integers(4, 48),
            "kv_lora_rank": st.integers(4, 48),
            "qk_nope_head_dim": st.sampled_from([8, 16, 24]),
            "qk_rope_head_dim": st.sampled_from([4, 8]),
            "v_head_dim": st.sampled_from([8, 16]),
            "attention_bias": st.booleans(),
        }
    )


def _mamba1() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("mamba1"),
            "intermediate_size": st.integers(8, 96),
            "state_size": st.integers(2, 16),
            "conv_kernel": st.integers(2, 5),
            "time_step_rank": st.integers(1, 8),
            "use_bias": st.booleans(),
            "use_conv_bias": st.booleans(),
            "parameter_norms": st.booleans(),
            "parameter_norm_weights": st.booleans(),
            "activation": st.sampled_from(["silu", "relu"]),
        }
    )


def _mamba2() -> st.SearchStrategy[dict[str, Any]]:
    def build(draw: Any) -> dict[str, Any]:
        groups = draw(st.integers(1, 3))
        return {
            "kind": "mamba2",
            "n_groups": groups,
            "num_heads": groups * draw(st.integers(1, 4)),
            "head_dim": draw(st.sampled_from([8, 16])),
            "state_size": draw(st.integers(4, 32)),
            "conv_kernel": draw(st.integers(2, 5)),
            "chunk_size": draw(st.sampled_from([16, 32, 100])),
            "use_bias": draw(st.booleans()),
            "use_conv_bias": draw(st.booleans()),
            "norm": draw(st.booleans()),
            "norm_groups": draw(st.sampled_from([None, 1, 2, 4])),
            "activation": draw(st.sampled_from(["silu", "relu"])),
            "longest_time_step": draw(st.sampled_from([None, 0.1])),
        }

    return st.composite(build)()


def _gated_delta_net() -> st.SearchStrategy[dict[str, Any]]:
    def build(draw: Any) -> dict[str, Any]:
        key_heads = draw(st.integers(1, 3))
        return {
            "kind": "gated_delta_net",
            "num_key_heads": key_heads,
            "num_value_heads": key_heads * draw(st.integers(1, 3)),
            "key_head_dim": draw(st.sampled_from([8, 16, 24])),
            "value_head_dim": draw(st.sampled_from([8, 16, 20])),
            "conv_kernel": draw(st.integers(1, 5)),
            "chunk_size": draw(st.sampled_from([16, 64, 100])),
            "activation": draw(st.sampled_from(["silu", "relu"])),
            "negative_eigenvalues": draw(st.booleans()),
        }

    return st.composite(build)()


def _kimi_delta_attention() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("kimi_delta_attention"),
            "num_heads": st.integers(1, 6),
            "head_dim": st.sampled_from([8, 16, 20]),
            "gate_rank": st.integers(4, 24),
            "conv_kernel": st.integers(1, 5),
            "chunk_size": st.sampled_from([16, 64, 128]),
            "activation": st.sampled_from(["silu", "relu"]),
        }
    )


def _gated_linear_attention() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("gated_linear_attention"),
            "num_heads": st.integers(1, 6),
            "key_head_dim": st.sampled_from([8, 16, 20]),
            "value_head_dim": st.sampled_from([8, 16, 20]),
            "gate_rank": st.integers(4, 24),
            "chunk_size": st.sampled_from([16, 64, 128]),
        }
    )


def _lightning_attention() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("lightning_attention"),
            "num_attention_heads": st.integers(1, 6),
            "head_dim": st.sampled_from([8, 16, 20]),
            "chunk_size": st.sampled_from([16, 64, 100]),
            "activation": st.sampled_from(["silu", "relu"]),
            "slower_with_depth": st.booleans(),
        }
    )


def _rg_lru() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("rg_lru"),
            "num_heads": st.integers(1, 4),
            "head_dim": st.sampled_from([8, 16, 20]),
            "conv_kernel": st.integers(1, 5),
            "use_bias": st.booleans(),
            "use_conv_bias": st.booleans(),
        }
    )


def _rwkv_time_mix() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"kind": st.just("rwkv_time_mix"), "attention_hidden_size": st.integers(8, 96)})


def _rwkv_channel_mix() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"kind": st.just("rwkv_channel_mix"), "intermediate_size": st.integers(8, 200)})


def _short_convolution() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"kind": st.just("short_convolution"), "conv_kernel": st.integers(1, 5), "use_bias": st.booleans()}
    )


def _mlp() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "kind": st.just("mlp"),
            "intermediate_size": st.integers(8, 200),
            "gated": st.booleans(),
            "bias": st.booleans(),
            "activation": st.sampled_from(["silu", "gelu", "relu", "linear"]),
        }
    )


def _moe() -> st.SearchStrategy[dict[str, Any]]:
    def build(draw: Any) -> dict[str, Any]:
        groups = draw(st.sampled_from([1, 1, 2]))
        per_group = draw(st.integers(1, 4))
        chosen_groups = draw(st.integers(1, groups))
        shared, latent = draw(st.none() | st.integers(8, 64)), draw(st.none() | st.integers(8, 64))
        corrected = draw(st.booleans())
        return {
            "kind": "moe",
            "num_experts": groups * per_group,
            "num_expert_groups": groups,
            "groups_per_tok": chosen_groups,
            "num_experts_per_tok": draw(st.integers(1, chosen_groups * per_group)),
            "intermediate_size": draw(st.integers(8, 64)),
            "shared_intermediate_size": shared,
            "shared_expert_gate": shared is not None and draw(st.booleans()),
            "shared_expert_bias": shared is not None and draw(st.booleans()),
            "shared_scaling_factor": 1.0 if shared is None else draw(st.sampled_from([1.0, 0.5])),
            "latent_size": latent,
            "latent_bias": latent is not None and draw(st.booleans()),
            "expert_bias": draw(st.booleans()),
            "router_bias": draw(st.booleans()),
            "weights_on_input": draw(st.booleans()),
            "gated": draw(st.booleans()),
            "score_correction_bias": corrected,
            "score_correction_is_parameter": corrected and draw(st.booleans()),
        }

    return st.composite(build)()


def _positions(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    if kind == "learned":
        return st.fixed_dictionaries(
            {"kind": st.just(kind), "num_positions": st.just(128), "offset": st.sampled_from([0, 2])}
        )
    return st.just({"kind": kind})


def _layer(
    first: dict[str, Any] | None, second: dict[str, Any] | None, placement: str, residual: str
) -> dict[str, Any]:
    """A layer of these mixers, with its residual in sequence where it could not be in parallel."""
    alone = first is None or second is None or placement == "after_residual"
    if alone or (residual == "parallel_shared_norm" and placement == "post"):
        residual = "sequential"
    return {"sequence_mixer": first, "channel_mixer": second, "norm_placement": placement, "residual": residual}


@st.composite
def specs(draw: Any, most_layers: int = 3) -> ArchitectureSpec:
    """One to ``most_layers`` groups of as many layers each, over all components."""
    positions = draw(st.sampled_from(["rotary", "learned", "alibi", "none"]))
    mixers = [_attention(), _mamba1(), _mamba2(), _short_convolution(), _gated_delta_net(), _rg_lru()]
    mixers += [_lightning_attention(), _kimi_delta_attention(), _rwkv_time_mix(), _gated_linear_attention()]
    mixers += [_latent_attention()] if positions == "rotary" else []
    beside = {"kind": st.just("parallel_mixers"), "first": st.one_of(mixers), "second": st.one_of(mixers)}
    mixers += [st.fixed_dictionaries(beside)]
    layer = st.tuples(
        st.none() | st.one_of(mixers),
        st.none() | st.one_of(_mlp(), _moe(), _rwkv_channel_mix()),
        st.sampled_from(["pre", "post", "sandwich", "after_residual"]),
        st.sampled_from(["sequential", "parallel", "parallel_shared_norm"]),
    ).filter(lambda parts: parts[0] is not None or parts[1] is not None)
    groups = draw(
        st.lists(
            st.tuples(st.integers(1, 5), st.lists(layer, min_size=1, max_size=most_layers)),
            min_size=1,
            max_size=most_layers,
        )
    )
    return parse_spec(
        {
            "name": "drawn",
            "vocab_size": draw(st.integers(2, 500)),
            "hidden_size": draw(st.integers(8, 96)),
            "tie_word_embeddings": draw(st.booleans()),
            "embedding_size": draw(st.none() | st.none() | st.integers(4, 60)),
            "positions": draw(_positions(positions)),
            "norm": draw(
                st.sampled_from(
                    [
                        {"kind": "rms_norm"},
                        {"kind": "rms_norm", "has_weight": False},
                        {"kind": "layer_norm"},
                        {"kind": "layer_norm", "bias": False},
                        {"kind": "layer_norm", "zero_centered": True},
                        {"kind": "layer_norm", "bias": False, "has_weight": False},
                    ]
                )
            ),
            "embedding_norm": draw(st.booleans()),
            "final_norm": draw(st.booleans()),
            "residual_multiplier": draw(st.sampled_from([None, 0.22])),
            "logit_scale": draw(st.sampled_from([None, 0.0625])),
            "lm_head_bias": draw(st.booleans()),
            "layer_groups": [
                {
                    "repeats": repeats,
                    "layers": [_layer(*parts) for parts in layers],
                }
                for repeats, layers in groups
            ],
        }
    )


CHUNKED: ArchitectureSpec = parse_spec(
    {
        "name": "chunked",
        "vocab_size": 32,
        "hidden_size": 8,
        "layer_groups": [
            {
                "layers": [
                    {
                        "sequence_mixer": {
                            "kind": "attention",
                            "num_key_value_heads": 1,
                            "num_attention_heads": 1,
                            "head_dim": 8,
                            "attention_chunk_size": 38,
                            "previous_chunks": 3,
                            "chunk_summaries": 33,
                            "global_tokens": 1,
                        }
                    }
                ]
            }
        ],
    }
)
"""Chunks of twice an odd number: SymPy drops the rounding of ``Max(0, 160 - 38*p)/38``, which is no whole number."""
