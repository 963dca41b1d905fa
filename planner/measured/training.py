"""Measured training runs as plans, by source: what each says of its setting, and what it leaves to be known."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.compute import flops
from planner.errors import PlannerError
from planner.hardware import hardware
from planner.measured import megatron
from planner.measured.models import identify, plain_name, with_num_layers
from planner.measured.rows import (
    GIB,
    MEASURED,
    MeasuredMemory,
    MemoryKind,
    NotUsed,
    Raw,
    Skipped,
    TrainingRow,
    read_asset,
    skip,
    whole,
)
from planner.measured.stages import deepspeed_stages, nanotron_stages
from planner.plans import TrainingPlan, parse_plan
from planner.presets import read_yaml
from planner.sizing import count_parameters
from planner.spec import ArchitectureSpec

SMALLEST_TIMED = 1_000_000_000
"""Parameters below which a test's step time says more of its launches than of the model."""

A100_KERNELS_BYTES = 1573 * 2**20
"""What CUDA's kernels took on an A100 beside tensors, by ``nvidia-smi``, which BLOOM's trials were read with too
(bigscience, ``tr11-176B-ml/chronicles-prequel.md``)."""
JEAN_ZAY_NETWORK = 6.25
"""GB/s of a device in the cluster of BigScience's runs: four Omni-Path links of 100 Gb/s for the eight devices of a
node (the repository's train/tr11-176B-ml/README.md)."""

RECIPE_RANK = 16
"""Of the adapters in NVIDIA's recipes."""
_DEVICES = (
    ("A100 40GB", "a100_40gb"),
    ("A100-SXM4-40GB", "a100_40gb"),
    ("A100", "a100"),
    ("H100 95GB", None),
    ("H100", "h100"),
    ("H200", "h200"),
    ("GB200", "gb200"),
    ("GB300", "gb300"),
    ("B200", "b200"),
    ("B300", "b300"),
    ("MI300X", "mi300x"),
    ("MI355X", "mi355x"),
    ("NVIDIA L40S", "l40s"),
    ("RTX 4090", "rtx4090"),
)


def device_of(gpu: str) -> str | None:
    """The catalogue's id of a device by the name that a source gives it; ``None``: it has none."""
    return next((identifier for name, identifier in _DEVICES if gpu.startswith(name)), None)


@dataclass
class _Read:
    """What a source's reader found of a line."""

    spec: ArchitectureSpec
    fields: dict[str, Any]
    assumed: list[str]
    rank: Any = "worst"
    beside_bytes: int | None = None
    memory_reason: str | None = None
    time_reason: str | None = None


def _note(raw: Raw, pattern: str) -> str | None:
    found = re.search(pattern, raw.get("notes", ""))
    return found.group(1) if found else None


OTHER_ADAPTERS = "adapters on other matrices than a plan says, or of another kind"
UNCOUNTED_STAGES = "stages of an interleaved pipeline that the source does not count"


def _virtual(raw: Raw, fields: dict[str, Any]) -> None:
    """The interleaved stages that the notes name."""
    stages = _note(raw, r"\bVPP?=(\d+)") or _note(raw, r"virtual pipeline (\d+)")
    if whole(raw, "pipeline_parallel") > 1 and "card item" in raw.get("notes", ""):
        skip(UNCOUNTED_STAGES)
    if stages is not None and int(stages) > 1 and whole(raw, "pipeline_parallel") > 1:
        fields |= {"pipeline_schedule": "interleaved", "virtual_stages": int(stages)}


def _model(raw: Raw) -> ArchitectureSpec:
    return identify(
        raw["model"], whole(raw, "num_layers") if "num_layers" in raw else None, whole(raw, "sequence_length")
    )


_PRECISIONS = {
    "BF16": "bf16_mixed",
    "bf16": "bf16_mixed",
    "FP8": "fp8",
    "FP8-CS": "fp8",
    "FP8-MX": "fp8",
    "FP8-CS (FP8-MX)": "fp8",
    "FP8-CS_or_FP8-MX": "fp8",
    "MXFP8": "fp8",
    "NVFP4": "nvfp4",
    "nvfp4": "nvfp4",
    "fp8_mx": "fp8",
    "FP8 (precision column absent; default granularity)": "fp8",
}


def _precision(raw: Raw) -> str:
    """``bf16_mixed``, ``fp8`` or ``nvfp4`` of the sources that train in any of them."""
    named = raw["precision"]
    if named in _PRECISIONS:
        return _PRECISIONS[named]
    skip("layers or products of different precisions")


def _nvidia(raw: Raw) -> _Read:
    """Megatron-Bridge, NeMo and DGX Cloud: Megatron-Core with a distributed optimizer and gradients in bf16."""
    if "card item peft" in raw.get("notes", ""):
        skip("a functional run, not tuned, as its source says")
    if "tokendrop" in raw["model"]:
        skip("tokens dropped by experts")
    if "functional/support run" in raw.get("notes", ""):
        skip("a functional run, not tuned, as its source says")
    bits = _precision(raw)
    spec = _model(raw)
    name = plain_name(raw["model"])
    if name in ("DeepSeekV3", "deepseek-v3", "DeepSeek-V3-671B") and "w/o MTP" not in raw["model"]:
        skip("multi-token prediction")
    fields: dict[str, Any] = {
        "precision": bits,
        "zero_stage": 3 if "FSDP" in raw.get("zero_or_fsdp", "") else 1,
        "engine": "megatron",
        "sequence_parallel": whole(raw, "tensor_parallel") > 1,
        "tp_comm_overlap": whole(raw, "tensor_parallel") > 1,
    }
    assumed = ["sequence parallel with tensor parallel, its exchanges beside products, as in the recipes"]
    if "LoRA" in raw["model"] or "task=LoRA" in raw.get("notes", ""):
        fields["adapter_rank"] = RECIPE_RANK
        assumed.append(f"adapters of rank {RECIPE_RANK} beside attention's matrices, as the recipes' default is")
    if raw.get("recompute", "none") != "none":
        skip("a part of the layers computed again")
    if "Megatron-Bridge" in raw["source_repo"]:
        if fields["zero_stage"] == 3 and name == "LLAMA3_70B":
            skip("activations kept on the host")
        if fields["zero_stage"] == 3 and name == "LLAMA3_8B" and bits != "bf16_mixed":
            skip("a part of the layers computed again")
        modules = _recipe(name, raw["gpu"], "bf16" if bits == "bf16_mixed" else bits)
        assumed.append(f"computed again: {', '.join(modules) or 'nothing'}, as in the recipes of 2026-08-22")
        if modules:
            fields |= {"recompute": "selective", "recompute_modules": modules}
    else:
        assumed.append("nothing computed again, as the source says nothing of it")
    etp = _note(raw, r"\bETP=(\d+)")
    if etp is not None:
        fields["expert_tensor_parallel"] = int(etp)
    elif _has_experts(spec) and whole(raw, "tensor_parallel") > 1:
        assumed.append("experts whole, not split over tensor-parallel ranks")
    _virtual(raw, fields)
    return _Read(spec, fields, assumed)


@functools.cache
def _recipes() -> list[dict[str, list[str]]]:
    found: list[dict[str, list[str]]] = read_yaml((MEASURED / "recipes.yaml").read_text(encoding="utf-8"))
    return found


def _recipe(model: str, gpu: str, precision: str) -> tuple[str, ...]:
    found: list[str] = []
    for row in _recipes():
        if model in row["models"] and gpu in row["gpus"] and precision in row["precisions"]:
            found = row["modules"]
    return tuple(found)


def _has_experts(spec: ArchitectureSpec) -> bool:
    mixers = (layer.channel_mixer for group in spec.layer_groups for layer in group.layers)
    return any(getattr(mixer, "kind", "") == "moe" for mixer in mixers)


def _mlperf(raw: Raw) -> _Read:
    if whole(raw, "pipeline_parallel") > 1:
        skip(UNCOUNTED_STAGES)
    bits = _precision(raw)
    fields: dict[str, Any] = {
        "precision": bits,
        "zero_stage": 1,
        "engine": "megatron",
        "sequence_parallel": whole(raw, "tensor_parallel") > 1,
        "tp_comm_overlap": whole(raw, "tensor_parallel") > 1,
    }
    rank = re.search(r"LoRA r(\d+)", raw["model"])
    if rank is not None:
        fields["adapter_rank"] = int(rank.group(1))
    return _Read(_model(raw), fields, ["nothing computed again, as the source says nothing of it"])


def _megatron(raw: Raw) -> _Read:
    given = megatron.arguments(raw)
    name = raw["source_path"].partition("test_cases/")[2].rpartition("/")[0]
    fields = megatron.plan_fields(given, raw)
    spec = megatron.specification(name, given)
    found = _Read(spec, fields, [], rank="last_stage")
    if given.get("fp16"):
        found.assumed.append("fp16 as bf16, which is as wide and as fast")
    if count_parameters(spec).total < SMALLEST_TIMED:
        found.time_reason = "a test's step time, of a model too small to tell"
    return found


def _bigscience(raw: Raw) -> _Read:
    spec, stages = _model(raw), whole(raw, "pipeline_parallel")
    half = raw["precision"].startswith("fp16")
    fields = {
        "precision": "bf16_mixed",
        "gradient_dtype": "bf16" if half else "fp32",
        "zero_stage": 1,
        "attention": "eager",
        "recompute": "full",
        "engine": "deepspeed",
        "cross_entropy": "parallel",
        **deepspeed_stages(spec.num_layers, stages),
        "network_gb_per_second": JEAN_ZAY_NETWORK,
    }
    assumed = ["ALiBi and no dropout, as in BLOOM", "the network of the cluster that the repository describes"]
    if half:
        assumed.append("fp16 as bf16, which is as wide and as fast")
    return _Read(spec, fields, assumed, beside_bytes=A100_KERNELS_BYTES)


def _zero_stage(raw: Raw) -> int:
    found = re.fullmatch(r"ZeRO-([0-3])", raw.get("zero_or_fsdp", ""))
    if found is None:
        skip("a way of sharding that is not read")
    return int(found.group(1))


def _nanotron(raw: Raw) -> _Read:
    spec, stages = _model(raw), whole(raw, "pipeline_parallel")
    fields = {
        "precision": "bf16_mixed",
        "gradient_dtype": "fp32",
        "zero_stage": _zero_stage(raw),
        "sequence_parallel": whole(raw, "tensor_parallel") > 1,
        # Its own operators: logits in fp32, and weight gradients in bf16 before they are summed.
        "engine": "megatron",
        "cross_entropy": "parallel",
        "gradient_fusion": False,
        "pipeline_layers": nanotron_stages(spec, stages) if stages > 1 else (),
    }
    return _Read(spec, fields, ["nothing computed again, and a 1F1B pipeline, as nanotron's benchmark has it"])


def _llm_foundry(raw: Raw) -> _Read:
    fields = {
        "precision": "bf16_autocast" if raw["precision"].startswith("amp") else "bf16_mixed",
        "zero_stage": 3,
        "recompute": raw["recompute"],
    }
    found = _Read(_model(raw), fields, [])
    stated = _note(raw, r"n_params (\d+)")
    if stated is not None and count_parameters(found.spec).total != int(stated):
        skip("a model whose parameters do not come out as stated")
    return found


def _torchtitan(raw: Raw) -> _Read:
    bits = _PRECISIONS.get(raw["precision"]) or {"Float8": "fp8", "MXFP8 linears + grouped GEMMs": "fp8"}.get(
        raw["precision"]
    )
    if bits is None:
        skip("layers or products of different precisions")
    if raw.get("recompute", "none") not in ("none", "full"):
        skip("a part of the operators computed again, or not said which")
    fields = {
        "precision": bits,
        "gradient_dtype": "fp32",
        "zero_stage": 3,
        "recompute": raw.get("recompute", "none"),
        "sequence_parallel": whole(raw, "tensor_parallel") > 1,
    }
    found = _Read(_model(raw), fields, [])
    found.memory_reason = "weights kept in fp32 and cast for each gather"
    return found


def _torchtune(raw: Raw) -> _Read:
    if "LoRA" in raw["model"]:
        skip(OTHER_ADAPTERS)
    if "unpacked" in raw["model"]:
        skip("sequences of different lengths")
    if raw.get("recompute") not in ("none", "full"):
        skip("recomputation that the source does not say")
    optimizer = "adamw_8bit" if raw["optimizer"] == "AdamW8bit" else "adamw"
    return _Read(_model(raw), {"precision": "bf16", "recompute": raw["recompute"], "optimizer": optimizer}, [])


def _universal(raw: Raw) -> _Read:
    if "[Full]" not in raw["model"]:
        skip(OTHER_ADAPTERS)
    if "offload" in raw["zero_or_fsdp"]:
        skip("parameters and states on the host")
    found = _Read(_model(raw), {"precision": "bf16", "recompute": "full"}, [])
    found.memory_reason = "memory in whole GiB, read beside the process"
    return found


def _swift(raw: Raw) -> _Read:
    if "LoRA" in raw["model"]:
        skip(OTHER_ADAPTERS)
    if "device_map" in raw["zero_or_fsdp"]:
        skip("layers spread over devices that take turns")
    if raw["model"].startswith("qwen-"):
        found = _Read(_model(raw), {"precision": "bf16", "recompute": "full"}, [])
        found.time_reason = "sequences of different lengths"
        return found
    if _note(raw, r"(Megatron-SWIFT)") is None:
        fields = {"precision": "bf16_mixed", "zero_stage": _zero_stage(raw), "recompute": "full"}
        return _Read(_model(raw), fields, [])
    fields = {
        "precision": "bf16_mixed",
        "gradient_dtype": "fp32",
        "zero_stage": 1,
        "recompute": "selective" if raw["recompute"] == "selective" else "full",
        "sequence_parallel": whole(raw, "tensor_parallel") > 1,
    }
    return _Read(_model(raw), fields, ["sequence parallel with tensor parallel, as in the scripts"])


def _llm_c(raw: Raw) -> _Read:
    return _Read(_model(raw), {"precision": "bf16_mixed", "zero_stage": 1}, [])


def _automodel(raw: Raw) -> _Read:
    if "expert_parallel" not in raw:
        skip("expert parallelism that the source does not say")
    fields: dict[str, Any] = {"precision": "bf16_mixed", "zero_stage": 3}
    _virtual(raw, fields)
    return _Read(_model(raw), fields, ["nothing computed again, as the source says nothing of it"])


def _jax(raw: Raw) -> _Read:
    if raw["model"].startswith("T5"):
        skip("no decoder-only language model")
    skip("recomputation that the source does not say")


def _adapters(raw: Raw) -> _Read:
    skip(OTHER_ADAPTERS)


_READERS: dict[str, Callable[[Raw], _Read]] = {
    "NVIDIA/Megatron-LM": _megatron,
    "NVIDIA-NeMo/Megatron-Bridge": _nvidia,
    "NVIDIA/NeMo": _nvidia,
    "NVIDIA/dgxc-benchmarking": _nvidia,
    "NVIDIA-NeMo/Automodel": _automodel,
    "NVIDIA/JAX-Toolbox": _jax,
    "mlcommons/training_results_v4.0": _mlperf,
    "mlcommons/training_results_v5.1": _mlperf,
    "bigscience-workshop/bigscience": _bigscience,
    "huggingface/nanotron": _nanotron,
    "huggingface/peft": _adapters,
    "Lightning-AI/litgpt": _adapters,
    "karpathy/llm.c": _llm_c,
    "ljm565/universal-llm-trainer": _universal,
    "modelscope/ms-swift": _swift,
    "mosaicml/llm-foundry": _llm_foundry,
    "pytorch/ao": _torchtitan,
    "pytorch/torchtitan": _torchtitan,
    "pytorch/torchtune": _torchtune,
}


def _memory_kind(stated: str) -> MemoryKind:
    if stated.startswith(("allocated", "active")):
        return "allocated"
    return "reserved" if stated.startswith("reserved (") or stated == "reserved" else "printed"


def _step_seconds(raw: Raw, spec: ArchitectureSpec, batch: int, devices: int) -> float | None:
    """The step's time as the source gives it, or from its rate of tokens, or from its share of the peak."""
    if "step_ms" in raw:
        return float(raw["step_ms"]) / 1e3
    length = whole(raw, "sequence_length")
    if "tokens_per_second_per_gpu" in raw:
        return batch * length / float(raw["tokens_per_second_per_gpu"]) / devices
    device = device_of(raw["gpu"])
    if "mfu" in raw and device is not None:
        # nanotron divides three forward passes, attention over the whole square, by the step's time and the peak.
        needed = flops(spec, length, batch, training=True).total
        return float(needed / (float(raw["mfu"]) * hardware(device).peak_flops["bf16"] * devices))
    return None


def _row(identifier: str, raw: Raw) -> TrainingRow:
    if raw["source_repo"] not in _READERS:
        skip("a source that is not read")
    if "sequence_length" not in raw or "global_batch_size" not in raw or "micro_batch_size" not in raw:
        skip("a batch or a length that the source does not say")
    found = _READERS[raw["source_repo"]](raw)
    batch = whole(raw, "global_batch_size")
    fields = {
        "micro_batch_size": whole(raw, "micro_batch_size"),
        "global_batch_size": batch,
        "sequence_length": whole(raw, "sequence_length"),
        "hardware": device_of(raw["gpu"]),
        **{
            name: whole(raw, name)
            for name in (
                "data_parallel",
                "tensor_parallel",
                "pipeline_parallel",
                "context_parallel",
                "expert_parallel",
            )
        },
        "optimizer": "muon" if raw.get("optimizer", "").lower() == "muon" else "adamw",
        **found.fields,
    }
    plan = parse_plan(TrainingPlan, fields)
    devices = plan.data_parallel * plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel
    if devices != whole(raw, "gpu_count"):
        skip("sizes that do not multiply to the number of devices")
    if batch % (plan.micro_batch_size * plan.data_parallel):
        skip("a batch that the devices do not divide")
    memory = None
    if "peak_memory_gib" in raw and found.memory_reason is None:
        between = _note(raw, r"(?:^|;)mem-allocated-bytes=(\d+)")
        exact = _note(raw, r"mem-max-allocated-bytes=(\d+)")
        memory = MeasuredMemory(
            int(exact) if exact else round(float(raw["peak_memory_gib"]) * GIB),
            _memory_kind(raw["memory_kind"]),
            found.rank,
            int(between) if between else None,
            found.beside_bytes,
        )
    seconds = _step_seconds(raw, found.spec, batch, devices)
    if seconds is not None and found.time_reason is None and plan.hardware is None:
        found.time_reason = "a device that is not in the catalogue"
    return TrainingRow(
        id=identifier,
        model=raw["model"],
        source=f"{raw['source_repo']}/{raw['source_path']}",
        as_of=raw["as_of"],
        license=raw["license"],
        gpu=raw["gpu"],
        spec=found.spec,
        plan=plan,
        memory=memory,
        step_seconds=seconds if found.time_reason is None else None,
        memory_reason=found.memory_reason if "peak_memory_gib" in raw else None,
        time_reason=found.time_reason if seconds is not None else None,
        assumed=tuple(found.assumed),
        notes=raw.get("notes", ""),
    )


B200_SOURCE = "MooreThreads/SimuMax/docs/b200/b200_release_v1.2_summary.json"


def _b200_row(identifier: str, raw: Raw) -> TrainingRow:
    """Steps of Megatron on eight B200 (SimuMax): models cut to their first layers, DeepSeek-V3 to one dense one."""
    layers = whole(raw, "num_layers")
    published = identify(raw["model"], None, whole(raw, "sequence_length"))
    dense = sum(getattr(layer.channel_mixer, "kind", "") == "mlp" for _, layer in published.iterate_layers())
    spec = with_num_layers(published, layers, first=dense - 1 if _has_experts(published) and dense else 0)
    plan = parse_plan(
        TrainingPlan,
        {
            **{
                name: whole(raw, name)
                for name in (
                    "micro_batch_size",
                    "sequence_length",
                    "data_parallel",
                    "tensor_parallel",
                    "pipeline_parallel",
                    "context_parallel",
                    "expert_parallel",
                )
            },
            "global_batch_size": whole(raw, "micro_batch_size")
            * whole(raw, "num_microbatches")
            * whole(raw, "data_parallel"),
            "precision": "bf16_mixed",
            "gradient_dtype": "fp32",
            "zero_stage": 1,
            "sequence_parallel": whole(raw, "tensor_parallel") > 1,
            # simu_tools/megatron_scripts of the same repository.
            "engine": "megatron",
            "cross_entropy": "fused",
            "context_exchange": "all_to_all",
            "hardware": "b200",
        },
    )
    return TrainingRow(
        id=identifier,
        model=f"{raw['model']} ({layers} layers)",
        source=B200_SOURCE,
        as_of="2026-05-01",
        license="Apache-2.0",
        gpu="B200",
        spec=spec,
        plan=plan,
        memory=MeasuredMemory(round(float(raw["measured_peak_allocated_gib"]) * GIB), "allocated"),
        step_seconds=float(raw["measured_step_ms"]) / 1e3,
        memory_reason=None,
        time_reason=None,
        assumed=(),
        notes=raw["case"],
    )


@functools.cache
def _read_all() -> tuple[tuple[TrainingRow, ...], tuple[Skipped, ...]]:
    rows: list[TrainingRow] = []
    skipped: list[Skipped] = []
    files: list[tuple[str, Callable[[str, Raw], TrainingRow]]] = [
        ("training_b200.csv", _b200_row),
        ("training_world.csv", _row),
    ]
    for identifier, raw, read in ((*line, read) for name, read in files for line in read_asset(name)):
        try:
            rows.append(read(identifier, raw))
        except (NotUsed, PlannerError) as error:
            reason = error.reason if isinstance(error, NotUsed) else f"refused: {error}"
            timed = any(name in raw for name in ("step_ms", "tokens_per_second_per_gpu", "mfu", "measured_step_ms"))
            held = any(name in raw for name in ("peak_memory_gib", "measured_peak_allocated_gib"))
            source = f"{raw['source_repo']}/{raw['source_path']}" if "source_repo" in raw else B200_SOURCE
            skipped.append(Skipped(identifier, raw["model"], source, reason, held, timed))
    return tuple(rows), tuple(skipped)


def training_rows() -> tuple[TrainingRow, ...]:
    """Every training run that a plan can say, in the order of the files."""
    return _read_all()[0]


def skipped_rows() -> tuple[Skipped, ...]:
    """Every training run that none can, with the reason."""
    return _read_all()[1]


@dataclass(frozen=True, slots=True)
class Summary:
    """How many rows are used for what, and why others are not."""

    rows: int
    used_for_memory: int
    used_for_time: int
    with_memory: int
    with_time: int
    skipped: dict[str, int]
    """Rows that are not used at all, by reason."""
    memory_left_out: dict[str, int]
    """Rows that are used, but for their memory."""
    time_left_out: dict[str, int]
    """Rows that are used, but for their time."""


def summary() -> Summary:
    """The rows counted; those of ``assets/measured``."""
    rows, skipped = _read_all()
    memory_out = Counter(row.memory_reason for row in rows if row.memory_reason is not None)
    time_out = Counter(row.time_reason for row in rows if row.time_reason is not None)
    used_for_memory = sum(row.memory is not None for row in rows)
    used_for_time = sum(row.step_seconds is not None for row in rows)
    return Summary(
        rows=len(rows) + len(skipped),
        used_for_memory=used_for_memory,
        used_for_time=used_for_time,
        with_memory=used_for_memory + memory_out.total() + sum(row.has_memory for row in skipped),
        with_time=used_for_time + time_out.total() + sum(row.has_time for row in skipped),
        skipped=dict(Counter(row.reason for row in skipped).most_common()),
        memory_left_out=dict(memory_out.most_common()),
        time_left_out=dict(time_out.most_common()),
    )
