"""Megatron-LM's functional tests: what their arguments say of a model and of a plan.

``assets/measured/megatron_tests.yaml`` holds the arguments of each test. An argument that is absent has Megatron's
default (``megatron/training/arguments.py``): learned positions, LayerNorm, biases, GELU, tied embeddings, and dropout
of 0.1 in attention and on the stream. The vocabulary is GPT-2's, padded to a multiple of 128 times the tensor-parallel
size.
"""

from __future__ import annotations

import functools
from typing import Any

from planner.measured.rows import MEASURED, Raw, skip, whole
from planner.presets import read_yaml
from planner.quantities import rounded_up
from planner.spec import ArchitectureSpec, parse_spec

GPT2_VOCABULARY = 50_257
DROPOUT = 0.1
_NOT_SAID = {
    "mtp-num-layers": "multi-token prediction",
    "export-kd-cfg": "distillation",
    "fine-grained-activation-offloading": "activations kept on the host",
    "pipeline-model-parallel-layout": "stages that are laid out one by one",
    "num-distributed-optimizer-instances": "states sharded over a part of the data-parallel ranks",
    "hybrid-layer-pattern": "Megatron's hybrid models",
    "hybrid-override-pattern": "Megatron's hybrid models",
    "spec": "Megatron's hybrid models",
    "first-last-layers-bf16": "layers of different precisions",
    "moe-expert-capacity-factor": "tokens dropped by experts",
    "defer-embedding-wgrad-compute": "gradients of the head put off",
}
"""Arguments that no plan or specification can say, each with the reason that is counted."""


_STAGES = (
    "account-for-embedding-in-pipeline-split",
    "account-for-loss-in-pipeline-split",
    "decoder-first-pipeline-num-layers",
    "decoder-last-pipeline-num-layers",
)
"""Arguments that say how layers are dealt out, by which the plan's fields are named."""


@functools.cache
def tests() -> dict[str, dict[str, Any]]:
    """The arguments of each test, by its path below ``test_cases``."""
    found: dict[str, dict[str, Any]] = read_yaml((MEASURED / "megatron_tests.yaml").read_text(encoding="utf-8"))
    return found


def arguments(raw: Raw) -> dict[str, Any]:
    """The arguments of a row's test; the row is skipped where they are not known or differ from it."""
    name = raw["source_path"].partition("test_cases/")[2].rpartition("/")[0]
    kind = name.partition("/")[0]
    if kind in ("bert", "t5", "mimo", "multimodal-llava"):
        skip("no decoder-only language model")
    if name not in tests():
        skip("a test whose arguments are not known")
    given = tests()[name]
    for argument, reason in _NOT_SAID.items():
        if given.get(argument):
            skip(reason)
    if given.get("cross-entropy-loss-fusion") and given.get("cross-entropy-fusion-impl") != "te":
        skip("a loss that is compiled from several operations")
    for argument, column in (
        ("tensor-model-parallel-size", "tensor_parallel"),
        ("pipeline-model-parallel-size", "pipeline_parallel"),
        ("context-parallel-size", "context_parallel"),
        ("expert-model-parallel-size", "expert_parallel"),
    ):
        if given.get(argument, 1) != whole(raw, column):
            skip("a row that differs from its test's arguments")
    return given


def _feed_forward(given: dict[str, Any]) -> int:
    width: int = given["hidden-size"]
    if given.get("swiglu"):
        default = int((4 * width * 2 / 3) / 64) * 64
    else:
        default = 4 * width
    return int(given.get("ffn-hidden-size", default))


def _attention(given: dict[str, Any], bias: bool) -> dict[str, Any]:
    heads: int = given["num-attention-heads"]
    if given.get("multi-latent-attention"):
        return {
            "kind": "latent_attention",
            "num_attention_heads": heads,
            "q_lora_rank": given.get("q-lora-rank"),
            "kv_lora_rank": given.get("kv-lora-rank", 512),
            "qk_nope_head_dim": given.get("qk-head-dim", 128),
            "qk_rope_head_dim": given.get("qk-pos-emb-head-dim", 64),
            "v_head_dim": given.get("v-head-dim", 128),
        }
    mixer: dict[str, Any] = {
        "kind": "attention",
        "num_attention_heads": heads,
        "num_key_value_heads": given.get("num-query-groups", heads) if given.get("group-query-attention") else heads,
        "head_dim": given.get("kv-channels", given["hidden-size"] // heads),
        "query_key_value_bias": bias,
        "output_bias": bias,
    }
    if given.get("rotary-percent", 1) != 1:
        mixer["rope_share"] = given["rotary-percent"]
    if given.get("qk-layernorm"):
        norm = "rms_norm" if given.get("normalization") == "RMSNorm" else "layer_norm"
        mixer |= {"query_key_norm": "head", "query_key_norm_kind": norm, "query_key_norm_bias": norm == "layer_norm"}
    return mixer


def _layers(given: dict[str, Any]) -> list[dict[str, Any]]:
    bias = not given.get("disable-bias-linear", False)
    gated = bool(given.get("swiglu"))
    activation = "relu_squared" if given.get("squared-relu") else "silu" if gated else "gelu"
    mlp = {"gated": gated, "activation": activation}
    dense = {"kind": "mlp", "intermediate_size": _feed_forward(given), "bias": bias, **mlp}
    attention = _attention(given, bias)
    depth: int = given["num-layers"]
    if "num-experts" not in given:
        return [{"sequence_mixer": attention, "channel_mixer": dense}] * depth
    experts = {
        "kind": "moe",
        "num_experts": given["num-experts"],
        "num_experts_per_tok": given.get("moe-router-topk", 2),
        "intermediate_size": given.get("moe-ffn-hidden-size", _feed_forward(given)),
        "shared_intermediate_size": given.get("moe-shared-expert-intermediate-size"),
        "expert_bias": bias,
        **mlp,
    }
    pattern = given.get("moe-layer-freq", 1)
    if isinstance(pattern, int):
        chosen = [index % pattern == 0 for index in range(depth)]
    else:
        chosen = _pattern(str(pattern))
    if len(chosen) != depth:
        skip("a pattern of experts that does not fit the depth")
    return [{"sequence_mixer": attention, "channel_mixer": experts if sparse else dense} for sparse in chosen]


def _pattern(text: str) -> list[bool]:
    """``([0]*1+[1]*14)`` as one flag a layer."""
    flags: list[bool] = []
    for term in text.strip("() ").split("+"):
        value, _, times = term.strip().partition("*")
        digits = value.strip("[] ")
        if digits not in ("0", "1") or not (times.strip() or "1").isdigit():
            skip("a pattern of experts that is not read")
        flags += [digits == "1"] * int(times.strip() or 1)
    return flags


def vocabulary(given: dict[str, Any]) -> int:
    """Rows of the embedding: the tokenizer's, padded."""
    if "vocab-size" in given:
        size = int(given["vocab-size"])
    elif given.get("tokenizer-type", "GPT2BPETokenizer") == "GPT2BPETokenizer":
        size = GPT2_VOCABULARY
    else:
        skip("a vocabulary that is not published")
    multiple = given.get("make-vocab-size-divisible-by", 128) * given.get("tensor-model-parallel-size", 1)
    return int(rounded_up(size, multiple))


def specification(name: str, given: dict[str, Any]) -> ArchitectureSpec:
    """The model of a test."""
    kind = given.get("position-embedding-type", "learned_absolute")
    if given.get("multi-latent-attention") or kind == "rope":
        positions: dict[str, Any] = {"kind": "rotary", "theta": float(given.get("rotary-base", 10_000))}
    elif kind == "learned_absolute":
        positions = {"kind": "learned", "num_positions": given["max-position-embeddings"]}
    elif kind == "none":
        positions = {"kind": "none"}
    else:
        skip("positions that no specification has")
    norm = "rms_norm" if given.get("normalization") == "RMSNorm" else "layer_norm"
    spec = parse_spec(
        {
            "name": name,
            "vocab_size": vocabulary(given),
            "hidden_size": given["hidden-size"],
            "tie_word_embeddings": not given.get("untie-embeddings-and-output-weights", False),
            "positions": positions,
            "norm": {"kind": norm},
            "layer_groups": [{"layers": [layer]} for layer in _layers(given)],
        }
    )
    return spec.with_layers([layer for _, layer in spec.iterate_layers()])


def plan_fields(given: dict[str, Any], raw: Raw) -> dict[str, Any]:
    """The fields of a plan that a test's arguments decide, beside those in the row."""
    tensor = given.get("tensor-model-parallel-size", 1)
    stages = given.get("pipeline-model-parallel-size", 1)
    fields: dict[str, Any] = {"sequence_parallel": bool(given.get("sequence-parallel")) and tensor > 1}
    if "num-experts" in given:
        fields["expert_tensor_parallel"] = given.get("expert-tensor-parallel-size", tensor)
    virtual = given.get("num-virtual-stages-per-pipeline-rank", 1)
    if "num-layers-per-virtual-pipeline-stage" in given:
        virtual = given["num-layers"] // stages // given["num-layers-per-virtual-pipeline-stage"]
    if virtual > 1 and stages > 1:
        fields |= {"pipeline_schedule": "interleaved", "virtual_stages": virtual}
    for argument in _STAGES:
        if argument in given:
            fields[argument.replace("-", "_")] = given[argument]
    if given.get("tp-comm-overlap"):
        fields["tp_comm_overlap"] = True
    if given.get("fp8-format"):
        fields |= {
            "precision": "fp8",
            "fp8_recipe": given.get("fp8-recipe", "delayed"),
            "fp8_param_gather": bool(given.get("fp8-param-gather")),
        }
    else:
        fields["precision"] = "bf16_mixed" if given.get("bf16") or given.get("fp16") else "fp32"
    # With bf16, Megatron keeps and reduces gradients in fp32; with fp16 they are in fp16.
    half = given.get("fp16") and not given.get("accumulate-allreduce-grads-in-fp32")
    fields["gradient_dtype"] = "bf16" if half or given.get("main-grads-dtype") == "bf16" else "fp32"
    if given.get("main-params-dtype") or given.get("exp-avg-dtype") or given.get("megatron-fsdp-main-params-dtype"):
        skip("states of the optimizer in other types")
    if given.get("use-megatron-fsdp"):
        if given.get("data-parallel-sharding-strategy") != "optim_grads_params" or given.get(
            "outer-dp-sharding-strategy"
        ):
            skip("states sharded over a part of the data-parallel ranks")
        fields["zero_stage"] = 3
    else:
        fields["zero_stage"] = 1 if given.get("use-distributed-optimizer") else 0
    granularity = given.get("recompute-granularity")
    if granularity == "full":
        if given.get("recompute-method") != "uniform" or given.get("recompute-num-layers", 1) != 1:
            skip("a part of the layers computed again")
        fields["recompute"] = "full"
    elif granularity == "selective":
        modules = given.get("recompute-modules", ["core_attn"])
        words = modules if isinstance(modules, list) else str(modules).strip("[]").replace(",", " ").split()
        fields |= {"recompute": "selective", "recompute_modules": tuple(words)}
    unfused = given.get("attention-backend") == "unfused" or (
        given.get("transformer-impl") == "local" and not given.get("use-flash-attn")
    )
    fields["attention"] = "eager" if unfused else "fused"
    dropouts = {given.get(f"{where}-dropout", DROPOUT) for where in ("attention", "hidden")}
    if len(dropouts) != 1:
        skip("different dropout in attention and on the stream")
    fields["dropout"] = float(dropouts.pop())
    fields |= {
        "engine": "megatron",
        "cross_entropy": "fused" if given.get("cross-entropy-loss-fusion") else "parallel",
        "gradient_fusion": not given.get("no-gradient-accumulation-fusion", False),
        "context_exchange": "all_to_all" if given.get("cp-comm-type") == "a2a" else "ring",
    }
    if given.get("optimizer", "adam") not in ("adam", "muon"):
        skip("an optimizer that is not read")
    return fields
