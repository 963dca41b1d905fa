"""Measured runs of serving as plans: what each source says of its setting, and what it leaves to be known.

A reading is either memory, as the engine's allocator has it, or a time: of a token (``token``), of a whole answer with
its prompt (``answer``), or of the prompts of a batch (``prompt``). Where a row gives several, each is a reading of its
own.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import PlannerError
from planner.hardware import hardware
from planner.measured.models import identify, plain_name
from planner.measured.rows import GIB, NotUsed, Raw, read_asset, skip, whole
from planner.plans import ServingPlan, parse_plan
from planner.serving.estimate import check_serving, fits
from planner.serving.times import peak_of
from planner.spec import ArchitectureSpec

Reading = Literal["memory", "token", "answer", "prompt"]
FIRST_BY_LAYERS = 1842
"""llama.cpp's build, or nearly, since which several devices take whole layers (pull request 4766, January 2024)."""
GPU_FILE = "serving_gpu.csv"
GPU_SOURCE = "ai-dynamo/aiconfigurator/tools/accuracy_tracking/silicon_refs.csv"

_DEVICES = (
    (r"A100[- ](SXM4-)?40GB|A100-SXM4-40GB", "a100_40gb"),
    (r"A100.*PCIe", "a100_pcie"),
    (r"A100|a100_sxm", "a100"),
    (r"H100 PCIe", "h100_pcie"),
    (r"H100|h100_sxm", "h100"),
    (r"H200|h200_sxm", "h200"),
    (r"GB200|gb200", "gb200"),
    (r"gb300", "gb300"),
    (r"B200|b200_sxm", "b200"),
    (r"b300_sxm", "b300"),
    (r"MI300X", "mi300x"),
    (r"L40S|l40s", "l40s"),
    (r"(Nvidia )?(RTX )?4090", "rtx4090"),
    (r"(Nvidia )?(RTX )?4080", "rtx4080"),
    (r"RTX 3090 24GB", "rtx3090"),
    (r"Nvidia RTX 3060", "rtx3060"),
    (r"H20 96GB", "h20"),
    (r"(Nvidia )?RTX 3080 Ti", "rtx3080ti"),
    (r"(Nvidia )?RTX 4070 Ti", "rtx4070ti"),
    (r"RTX 4000 Ada", "rtx_4000_ada"),
    (r"RTX 5000 Ada", "rtx_5000_ada"),
    (r"RTX A6000", "rtx_a6000"),
    (r"RTX 6000 Ada", "rtx_6000_ada"),
    (r"NVIDIA GB10|Nvidia Spark", "dgx_spark"),
    (r"Apple M1 ?max|M1 Max", "m1_max"),
    (r"Apple M1 Ultra", "m1_ultra"),
    (r"Apple M2 ?ultra", "m2_ultra"),
    (r"Apple M3 ?max 64GB", "m3_max"),
    (r".*M3 Ultra", "m3_ultra"),
    (r"Framework Mainboard", "ryzen_ai_max_395"),
)
_FORMATS = {
    "BF16": "bf16",
    "BF16 (default)": "bf16",
    "bf16": "bf16",
    "bf16-true": "bf16",
    "FP16": "fp16",
    "GPTQ-Int8": "gptq_int8",
    "GPTQ-Int4": "gptq_int4",
    "AWQ": "awq",
    "AWQ-INT4": "awq",
    "AWQ int4 g128 GEMM": "awq",
    "FP8": "fp8",
    "FP8 (meta FP8)": "fp8",
    "FP8 (amd FP8-KV (FP8 KV cache checkpoint))": "fp8",
    "FP8 (amd FP8-KV checkpoint)": "fp8",
    "FP8 (fp8 KV)": "fp8",
    "float8 weight-only": "fp8",
    "int8 weight-only": "int8_torchao",
    "int4 wo G=64": "int4_torchao",
    "int4 G=32": "int4_torchao_g32",
    "bnb.nf4": "nf4",
    "bnb.nf4-dq": "nf4_dq",
    "GGUF F16": "f16",
    "GGUF mostly F16": "f16",
    "GGUF Q4_0": "q4_0",
    "GGUF mostly Q4_0": "q4_0",
    "GGUF Q4_K - Medium": "q4_k_m",
    "GGUF Q4_K_M": "q4_k_m",
    "GGUF Q8_0": "q8_0",
    "GGUF MXFP4 MoE": "mxfp4_moe",
}
_SERVING = (
    "vLLM",
    "SGLang",
    "TensorRT-LLM",
    "LMDeploy",
    "FasterTransformer",
    "NVIDIA NIM",
    "TGI",
    "gpt-fast",
    "torchao",
)
_WAITING = ("vLLM 0.4", "vLLM 0.6", "vLLM benchmark_latency")
"""Releases that schedule while the device waits; Oracle's runs are of 2024."""
_UNMODELLED = ("ExLlama", "MLC LLM", "AutoAWQ", "Megatron-Core")


@dataclass(frozen=True, slots=True)
class InferenceRow:
    """One reading of a published run of serving."""

    id: str
    """The file, the line and the reading, such as ``inference_world.csv:12 token``."""
    reading: Reading
    value: float
    """Bytes over all devices, or seconds."""
    model: str
    source: str
    as_of: str
    """When the source is of, as it says it; empty where it does not."""
    engine: str
    """As the source writes it; ``plan.engine`` is which kind it is."""
    gpu: str
    spec: ArchitectureSpec
    plan: ServingPlan
    notes: str

    @property
    def setting(self) -> str:
        """What rows that differ in lengths and batch alone have in common."""
        plan = self.plan
        devices = str(plan.tensor_parallel * plan.pipeline_parallel)
        return "|".join([self.group, self.model, plan.weight_format, str(plan.hardware), devices])

    @property
    def group(self) -> str:
        """By which rows are counted: the source, and of Qwen's tables the engine."""
        repository = "/".join(self.source.split("/")[:2])
        if self.id.startswith(GPU_FILE):
            return "aiconfigurator"
        if repository.startswith("QwenLM"):
            return f"Qwen, {self.engine.split()[0]}"
        return repository


@dataclass(frozen=True, slots=True)
class SkippedReading:
    """A reading, or a whole row, that no plan can say."""

    id: str
    source: str
    model: str
    reason: str


def device_of(gpu: str) -> str | None:
    """The catalogue's id of a device by the name that a source gives it; ``None``: it has none."""
    return next((identifier for pattern, identifier in _DEVICES if re.match(pattern, gpu)), None)


def _number(raw: Raw, name: str) -> float | None:
    return float(raw[name]) if name in raw else None


def _engine(raw: Raw) -> str:
    engine = raw["engine"]
    if engine.startswith(_UNMODELLED):
        skip("an engine of its own kind")
    if "Vulkan" in engine or "Ollama" in engine:
        skip("the quantization or the backend is not one that is modelled")
    if engine.startswith("llama.cpp"):
        return "llama.cpp"
    if engine.startswith(("transformers", "litgpt")):
        return "eager"
    if engine.startswith(_SERVING):
        return "serving"
    skip("an engine of its own kind")


def _weight_format(raw: Raw) -> str:
    written = raw["precision"]
    name = _FORMATS.get(written, _FORMATS.get(plain_name(written)))
    if name is None:
        skip("the quantization is not stated, or not modelled")
    return "fp8_block" if name == "fp8" and raw["model"].startswith("Qwen3") else name


def _may_wait(raw: Raw) -> bool:
    """Whether a row is of those of which the source says that the cache may not have held all requests."""
    return whole(raw, "batch") >= 64 or whole(raw, "input_len") >= 32_000


def _cached_in_fp8(raw: Raw) -> bool:
    """Whether keys and values are kept in fp8: NIM's profiles in fp8 do so, as TensorRT-LLM is taken to elsewhere."""
    written = raw["precision"]
    return "fp8 KV" in written or "FP8-KV" in written or (written == "FP8" and raw["engine"].startswith("NVIDIA NIM"))


def _splits_by_layers(raw: Raw) -> bool:
    """Whether a run of llama.cpp is from after January 2024, when it began to split by layers and not by matrices.

    Of those before, mlc-ai's decode 70 billion parameters in fp16 on eight A10G faster than these read them one after
    another at their full bandwidth, whatever the note says.
    """
    build = re.search(r"build (\d+)", raw["engine"])
    return not raw["source_repo"].startswith("mlc-ai") and (build is None or int(build.group(1)) >= FIRST_BY_LAYERS)


def _plan(raw: Raw, engine: str) -> ServingPlan:
    devices = whole(raw, "gpu_count")
    tensor_parallel = whole(raw, "tp", devices)
    if "CPU" in raw["gpu"]:
        skip("a processor whose bandwidth the row does not give")
    if "MI300X" in raw["gpu"] and "meta FP8" in raw["precision"]:
        skip("weights in a scheme that the engine had no kernel for on this device")
    if "H100 KV cache may not hold" in raw.get("notes", "") and "H100" in raw["gpu"] and _may_wait(raw):
        skip("more than the devices hold, so that requests wait")
    if "ambiguous for TP>1" in raw.get("notes", "") and tensor_parallel > 1:
        skip("the rate is of one device or of all: the source does not say")
    stages = 1
    if devices > 1 and engine == "llama.cpp" and not _splits_by_layers(raw):
        skip("llama.cpp before it split by layers: every matrix over all devices")
    if devices > 1 and engine != "serving":
        stages, tensor_parallel = devices, 1  # llama.cpp's split by layers, transformers' device map
    prompt, answer = _number(raw, "input_len"), _number(raw, "output_len")
    batch = whole(raw, "batch")
    if prompt is None and answer is None:
        answer = 256.0 if raw["source_repo"].startswith("mlc-ai") else 50.0
    if answer is None:
        context, output = round(prompt or 1), None
    else:
        context, output = max(round(prompt or 0), 1) + round(answer), round(answer)
    if "n_ctx 512" in raw.get("notes", ""):
        context, output = 512, None  # the context shifts, so that no more is attended to
    plan: dict[str, Any] = {
        "weight_format": _weight_format(raw),
        "cache_dtype": "fp8" if _cached_in_fp8(raw) else "bf16",
        "cache_block_size": 1 if engine != "serving" else 16,
        "context_length": context,
        "output_length": output or None,
        "batch_size": batch,
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": stages,
        "chunked_prefill": "closed loop" in raw.get("notes", "") or "bench serve" in raw["engine"],
        "engine": engine,
        "engine_overhead": "between_passes" if raw["engine"].startswith(_WAITING) else "overlapped",
        "hardware": device_of(raw["gpu"].removeprefix(f"{devices}x ")),
    }
    return parse_plan(ServingPlan, plan)


def _readings(raw: Raw, plan: ServingPlan) -> dict[Reading, float]:
    found: dict[Reading, float] = {}
    memory = _number(raw, "memory_gib")
    if memory is not None and ("allocated" in raw["memory_kind"] or "excludes CUDA context" in raw["memory_kind"]):
        found["memory"] = memory * GIB
    token, decode = _number(raw, "tpot_ms"), _number(raw, "decode_tokens_per_second")
    answer, total = _number(raw, "e2e_latency_ms"), _number(raw, "output_tokens_per_second_total")
    if "prefill included in time" in raw.get("notes", "") and decode is not None and plan.output_length:
        found["answer"] = plan.output_length / decode
    elif token is not None:
        found["token"] = token / 1e3
    elif decode is not None:
        found["token"] = plan.batch_size / decode
    if answer is not None and "answer" not in found:
        found["answer"] = answer / 1e3
        if "(input+output tokens)/time" in raw.get("notes", ""):
            found.pop("token", None)
    prompt = _prompt_seconds(raw, plan)
    if prompt is not None:
        found["prompt"] = prompt
    if answer is None and total is not None and "static batch" in raw.get("notes", "") and plan.output_length:
        found["answer"] = plan.batch_size * plan.output_length / total
    return found


def _prompt_seconds(raw: Raw, plan: ServingPlan) -> float | None:
    """The time in which the prompts of the batch are read, where nothing else is in it."""
    notes, rate, first = raw.get("notes", ""), _number(raw, "prefill_tokens_per_second"), _number(raw, "ttft_ms")
    if first is not None and rate is None:
        return first / 1e3 if "first-token latency" in notes or "static inference" in notes else None
    if rate is None or "measured at context depth" in notes or not whole(raw, "input_len", 0):
        return None
    return plan.batch_size * (plan.context_length - (plan.output_length or 0)) / rate


def _read(raw: Raw) -> tuple[ArchitectureSpec, ServingPlan, dict[Reading, float]]:
    engine = _engine(raw)
    plan = _plan(raw, engine)
    try:
        spec = identify(raw["model"], None, plan.context_length)
    except PlannerError as error:
        raise NotUsed("a model that cannot be read") from error
    _check(spec, plan)
    if engine == "serving" and plan.hardware is not None and not fits(spec, plan, plan.hardware).fits:
        skip("more than the devices hold, so that requests wait")
    return spec, plan, _readings(raw, plan)


def _check(spec: ArchitectureSpec, plan: ServingPlan) -> None:
    """Leave a row out whose plan is refused, by the fields that stand in the way."""
    try:
        check_serving(spec, plan)
    except PlannerError as error:
        skip(f"refused for its {', '.join(sorted({problem.path for problem in error.problems}))}")


@functools.cache
def _all() -> tuple[tuple[InferenceRow, ...], tuple[SkippedReading, ...]]:
    used: list[InferenceRow] = []
    skipped: list[SkippedReading] = []
    for identifier, raw in read_asset("inference_world.csv"):
        source = f"{raw['source_repo']}/{raw['source_path']}"
        try:
            spec, plan, readings = _read(raw)
        except NotUsed as reason:
            skipped.append(SkippedReading(identifier, source, raw["model"], reason.reason))
            continue
        if not readings:
            skipped.append(SkippedReading(identifier, source, raw["model"], "neither memory nor a time of a token"))
        for name, value in readings.items():
            if name != "memory" and plan.hardware is None:
                reason_ = "a device that is not in the catalogue"
                skipped.append(SkippedReading(f"{identifier} {name}", source, raw["model"], reason_))
                continue
            if name == "prompt" and peak_of(hardware(plan.hardware or ""), "bf16") is None:
                reason_ = "a device of which no peak is known"
                skipped.append(SkippedReading(f"{identifier} {name}", source, raw["model"], reason_))
                continue
            used.append(
                InferenceRow(
                    f"{identifier} {name}",
                    name,
                    value,
                    raw["model"],
                    source,
                    raw["as_of"],
                    raw["engine"],
                    raw["gpu"],
                    spec,
                    plan,
                    raw.get("notes", ""),
                )
            )
    for identifier, raw in read_asset(GPU_FILE):
        model = raw["model_path"].rpartition("/")[2]
        try:
            spec, plan = _gpu_plan(raw)
        except (NotUsed, PlannerError) as error:
            reason_ = error.reason if isinstance(error, NotUsed) else "a model that cannot be read"
            skipped.append(SkippedReading(identifier, GPU_SOURCE, model, reason_))
            continue
        used.append(
            InferenceRow(
                f"{identifier} token",
                "token",
                float(raw["silicon_tpot_ms"]) / 1e3,
                model,
                GPU_SOURCE,
                "",
                raw["backend"],
                raw["system"],
                spec,
                plan,
                f"{raw.get('precision', 'bf16')}, {raw['isl']} + {raw['osl']} tokens, batch {raw['batch_size']}",
            )
        )
    return tuple(used), tuple(skipped)


def _gpu_plan(raw: Raw) -> tuple[ArchitectureSpec, ServingPlan]:
    """A row of aiconfigurator's: requests come and go, and TensorRT-LLM keeps keys and values in fp8 as the weights."""
    model, precision = raw["model_path"].rpartition("/")[2], raw.get("precision", "bf16")
    weight_format = {"fp4": "nvfp4"}.get(precision, precision)
    if precision == "fp8" and (model.endswith("FP8") or model.startswith(("DeepSeek", "MiniMax"))):
        weight_format = "fp8_block"  # the checkpoints' own
    prompt, answer = whole(raw, "isl"), whole(raw, "osl")
    plan: dict[str, Any] = {
        "weight_format": weight_format,
        "cache_dtype": "fp8" if raw["backend"] == "trtllm" and precision != "bf16" else "bf16",
        "context_length": prompt + answer,
        "output_length": answer,
        "chunked_prefill": True,
        "batch_size": whole(raw, "batch_size"),
        "tensor_parallel": whole(raw, "tp_size"),
        "attention_data_parallel": whole(raw, "attention_dp_size"),
        "expert_parallel": max(1, whole(raw, "moe_ep_size")),
        "engine": "serving",
        "hardware": device_of(raw["system"]),
    }
    if plan["hardware"] is None:
        skip("a device that is not in the catalogue")
    spec, made = identify(model, None, prompt), parse_plan(ServingPlan, plan)
    _check(spec, made)
    return spec, made


@functools.cache
def _held_out() -> frozenset[str]:
    settings: dict[tuple[str, str | None], set[str]] = collections.defaultdict(set)
    for row in inference_rows():
        if row.reading != "memory" and not is_foreign(row):
            settings[row.group, row.plan.hardware].add(row.setting)
    found: set[str] = set()
    for alike in settings.values():
        found.update(sorted(alike, key=lambda text: hashlib.sha256(text.encode()).digest())[1::2])
    return frozenset(found)


def is_foreign(row: InferenceRow) -> bool:
    """Whether a row is none of those that are halved: ``serving_gpu.csv``, and litgpt's own loop."""
    return row.id.startswith(GPU_FILE) or row.group == "Lightning-AI/litgpt"


def is_held_out(row: InferenceRow) -> bool:
    """Whether nothing is calibrated on a row: every second setting, and what is foreign."""
    return is_foreign(row) or row.setting in _held_out()


def inference_rows() -> tuple[InferenceRow, ...]:
    """All readings that are used."""
    return _all()[0]


def skipped_inference() -> tuple[SkippedReading, ...]:
    """All that are not, each with its reason."""
    return _all()[1]


def counted_reasons() -> Counter[str]:
    """How often each reason occurs."""
    return Counter(row.reason for row in skipped_inference())
