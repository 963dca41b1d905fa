"""What a plan of training must fulfil: refused by the name of the field, with what to do."""

from __future__ import annotations

from collections.abc import Iterator

from planner.components.attention import Attention
from planner.components.base import Component
from planner.components.moe import MoE
from planner.errors import Problem, UnsupportedPlan
from planner.hardware import hardware
from planner.plans import TrainingPlan
from planner.spec import ArchitectureSpec
from planner.stages import problems_of_stages, reduces_last
from planner.training.engine import engine_of
from planner.training.narrow import inputs_of


def check_training_plan(plan: TrainingPlan, spec: ArchitectureSpec | None = None) -> None:
    """Refuse what is not modelled, or does not fit the specification, naming every field that stands in the way."""
    problems = list(_problems_of_plan(plan))
    if spec is not None and not problems:
        problems.extend(_problems_of_spec(plan, spec))
    if problems:
        raise UnsupportedPlan(problems)


def _problem(path: str, message: str, remedy: str, code: str | None = None) -> Problem:
    return Problem(path, message, remedy, code or f"unsupported_{path}")


def _problems_of_plan(plan: TrainingPlan) -> Iterator[Problem]:
    if plan.precision == "nvfp4":
        message = "Memory of training in nvfp4 is not modelled."
        yield _problem("precision", message, "Choose fp32, bf16_autocast, bf16_mixed, bf16 or fp8.")
    yield from _problems_of_fp8(plan)
    if plan.engine == "deepspeed":
        yield from _problems_of_deepspeed(plan)
    if plan.adapter_rank is not None:
        message = "Memory of training adapters beside frozen weights is not modelled."
        yield _problem("adapter_rank", message, "Leave it out.")
    if plan.gradient_dtype == "fp32" and plan.precision == "bf16":
        yield _problem("gradient_dtype", "Pure bf16 keeps bf16 gradients.", "Choose bf16, or precision bf16_mixed.")
    is_fused = engine_of(plan).is_megatron and plan.engine != "deepspeed"
    if plan.tp_comm_overlap and not (is_fused and plan.sequence_parallel):
        message = "Products run beside their exchange with Megatron and sequence parallelism alone."
        yield _problem("tp_comm_overlap", message, "Set it to false.")
    if plan.engine == "megatron" and plan.precision == "bf16_autocast":
        yield _problem("engine", "Megatron casts weights itself, not by autocast.", "Choose torch, or bf16_mixed.")
    if plan.tensor_parallel % plan.expert_tensor_parallel:
        yield _problem(
            "expert_tensor_parallel",
            f"{plan.expert_tensor_parallel} does not divide tensor_parallel, {plan.tensor_parallel}.",
            f"Choose a divisor of {plan.tensor_parallel}.",
        )
    else:
        inner = plan.expert_tensor_parallel
        devices = plan.data_parallel * plan.context_parallel * plan.tensor_parallel
        if devices % (plan.expert_parallel * inner):
            yield _problem(
                "expert_parallel",
                f"{plan.expert_parallel} devices an expert group, times {inner} that divide each expert, do not fit "
                f"into {devices} devices of data, context and tensor parallelism.",
                f"Choose a divisor of {devices // inner}, or raise data_parallel.",
            )
    if plan.virtual_stages > 1 and (plan.pipeline_parallel == 1 or plan.pipeline_schedule != "interleaved"):
        yield _problem(
            "virtual_stages",
            f"{plan.virtual_stages} chunks a rank need a pipeline with the interleaved schedule.",
            "Set pipeline_schedule to interleaved and pipeline_parallel to more than 1, or virtual_stages to 1.",
        )
    if plan.pipeline_schedule == "interleaved" and plan.virtual_stages == 1 and plan.pipeline_parallel > 1:
        yield _problem(
            "virtual_stages", "An interleaved schedule needs several chunks a rank.", "Set it to 2 or more, or 1f1b."
        )
    if reduces_last(plan):
        yield from _problems_of_late_gradients(plan)
    if plan.offload != "none" and plan.pipeline_parallel > 1:
        yield _problem("offload", "Offloading in a pipeline is not modelled.", "Set it to none.")
    per_pass = plan.micro_batch_size * plan.data_parallel
    if plan.global_batch_size is not None and plan.global_batch_size % per_pass:
        ranks = "" if plan.data_parallel == 1 else f" on {plan.data_parallel} ranks"
        yield _problem(
            "global_batch_size",
            f"{plan.global_batch_size} sequences are no whole number of micro batches of {plan.micro_batch_size}"
            f"{ranks}.",
            f"Choose a multiple of {per_pass}.",
        )
    inner_length = plan.context_parallel * (plan.tensor_parallel if plan.sequence_parallel else 1)
    if plan.sequence_length % inner_length:
        field = "context_parallel" if plan.sequence_length % plan.context_parallel else "sequence_parallel"
        yield _problem(
            field,
            f"A sequence of {plan.sequence_length} cannot be divided evenly over {inner_length} devices.",
            f"Choose a sequence_length that is a multiple of {inner_length}.",
        )


def _problems_of_deepspeed(plan: TrainingPlan) -> Iterator[Problem]:
    """What Megatron-DeepSpeed does not do, or what is not modelled of it."""
    if plan.precision != "bf16_mixed":
        message = f"What DeepSpeed keeps under {plan.precision} is not modelled."
        yield _problem("precision", message, "Choose bf16_mixed, or another engine.")
    if plan.zero_stage >= 2:
        message = "DeepSpeed's pipelines have no ZeRO-2 or ZeRO-3, and without one its buckets are not modelled."
        yield _problem("zero_stage", message, "Set it to 0 or 1, or choose another engine.")
    if plan.pipeline_parallel > 1 and plan.pipeline_schedule != "1f1b":
        yield _problem("pipeline_schedule", "DeepSpeed's pipelines are 1F1B.", "Set it to 1f1b.")
    if plan.offload != "none":
        yield _problem("offload", "DeepSpeed's offloading is not modelled.", "Set it to none.")
    for name in ("context_parallel", "expert_parallel"):
        if getattr(plan, name) > 1:
            yield _problem(name, "Megatron-DeepSpeed's is not modelled.", "Set it to 1.")


def _problems_of_fp8(plan: TrainingPlan) -> Iterator[Problem]:
    """What Transformer Engine, Megatron-Core and devices do not do in fp8, and what is not modelled of it."""
    if plan.precision != "fp8":
        if plan.fp8_param_gather:
            yield _problem("fp8_param_gather", "Weights are in fp8 only where products are.", "Set precision to fp8.")
        return
    if plan.engine == "torch":
        message = "What PyTorch's own operators keep in fp8 is not modelled."
        yield _problem("engine", message, "Set it to megatron, or choose another precision.")
    if plan.zero_stage >= 2:
        message = "Weights or gradients divided over replicas are not modelled in fp8."
        yield _problem("zero_stage", message, "Set it to 0 or 1.")
    if plan.offload != "none":
        yield _problem("offload", "Offloading is not modelled in fp8.", "Set it to none.")
    if plan.fp8_param_gather and plan.zero_stage == 0:
        message = "Weights in fp8 need a distributed optimizer, which keeps their master copies."
        yield _problem("fp8_param_gather", message, "Set it to false, or zero_stage to 1.")
    if plan.fp8_param_gather and plan.fp8_recipe == "mxfp8":
        message = "How weights in MXFP8 are gathered is not modelled."
        yield _problem("fp8_param_gather", message, "Set it to false, or choose another fp8_recipe.")
    if plan.hardware is not None:
        device = hardware(plan.hardware)
        if "fp8" not in device.peak_flops:
            yield _problem("precision", f"{device.name} does not multiply in fp8.", "Choose bf16_mixed.")
        elif plan.fp8_recipe == "mxfp8" and "fp4" not in device.peak_flops:
            message = f"{device.name} has no products with the scales of MXFP8."
            yield _problem("fp8_recipe", message, "Choose tensorwise, delayed or blockwise.")


def _problems_of_late_gradients(plan: TrainingPlan) -> Iterator[Problem]:
    """ZeRO-2 and ZeRO-3 in a pipeline: PyTorch's FSDP2 has them."""
    if plan.engine == "deepspeed":
        return  # said already
    if engine_of(plan).is_megatron:
        yield _problem(
            "zero_stage",
            "Megatron's gradients divided over replicas while micro batches are in a pipeline are not modelled.",
            "Set it to 0 or 1, engine to torch, or pipeline_parallel to 1.",
        )
    elif plan.zero_stage == 3 and plan.fsdp_reshard and plan.pipeline_schedule != "1f1b":
        yield _problem(
            "fsdp_reshard",
            f"Which weights are whole when in a pipeline of the schedule {plan.pipeline_schedule} is not modelled.",
            "Set it to false, as torchtitan does in pipelines, or pipeline_schedule to 1f1b.",
        )


def _problems_of_spec(plan: TrainingPlan, spec: ArchitectureSpec) -> Iterator[Problem]:
    yield from problems_of_stages(spec.num_layers, plan)
    shares = any(isinstance(part, Attention) and part.shares_key_values for _, part in _parts(spec))
    if shares and plan.recompute == "full":
        yield _problem(
            "recompute",
            "Layers that share keys and values cannot be computed again one by one.",
            "Choose none or selective.",
        )
    if shares and plan.pipeline_parallel > 1:
        yield _problem("pipeline_parallel", "Keys and values shared between stages are not modelled.", "Set it to 1.")
    if plan.tensor_parallel > 1 and spec.vocab_size % plan.tensor_parallel:
        padded = -(-spec.vocab_size // plan.tensor_parallel) * plan.tensor_parallel
        yield _problem(
            "tensor_parallel",
            f"vocab_size {spec.vocab_size} cannot be divided evenly over {plan.tensor_parallel} devices.",
            f"Pad vocab_size to {padded}, or choose a divisor of it.",
        )
    has_experts = False
    for where, part in _parts(spec):
        if isinstance(part, MoE):
            has_experts = True
            yield from _problems_of_experts(plan, where, part)
        if plan.precision == "fp8" and inputs_of(part, plan) is None:
            message = f"What {where}, a {_kind(part)}, keeps in fp8 is not modelled."
            yield _problem("precision", message, "Choose bf16_mixed.")
        if plan.tensor_parallel > 1:
            yield from _problems_of_tensors(plan, where, part)
        if plan.context_parallel > 1 and not part.context_parallel:
            yield _problem(
                "context_parallel",
                f"How {where}, a {_kind(part)}, is computed over positions on several devices is not modelled.",
                "Set it to 1.",
            )
        if plan.context_parallel > 1 and isinstance(part, Attention) and part.sees_a_part:
            yield _problem(
                "context_parallel",
                f"{where} has a window or chunks, which are not modelled over positions on several devices.",
                "Set it to 1.",
            )
        if plan.attention == "eager" and isinstance(part, Attention) and part.recomputes_scores:
            yield _problem(
                "attention",
                f"What eager attention keeps of bounded, biased or sunk scores, as in {where}, is not modelled.",
                "Set it to fused.",
            )
        heads = getattr(part, "num_key_value_heads", getattr(part, "num_attention_heads", None))
        if plan.context_parallel > 1 and plan.context_exchange == "all_to_all" and heads is not None:
            over = plan.tensor_parallel * plan.context_parallel
            if heads % over:
                yield _problem(
                    "context_exchange",
                    f"The {heads} heads of {where} cannot be exchanged evenly over {over} devices.",
                    "Choose ring, or a context_parallel that divides them.",
                )
    if plan.expert_parallel > 1 and not has_experts:
        yield _problem("expert_parallel", "The model has no experts.", "Set it to 1.")
    if plan.tensor_parallel > 1 and spec.embedding_size is not None:
        yield _problem(
            "tensor_parallel", "How projections beside a narrow embedding are divided is not modelled.", "Set it to 1."
        )


def _parts(spec: ArchitectureSpec) -> Iterator[tuple[str, Component]]:
    for index, group in enumerate(spec.layer_groups):
        for position, layer in enumerate(group.layers):
            for name in ("sequence_mixer", "channel_mixer"):
                mixer = getattr(layer, name)
                if mixer is not None:
                    for end, part in mixer.parts():
                        yield f"layer_groups[{index}].layers[{position}].{name}{end}", part


def _problems_of_experts(plan: TrainingPlan, where: str, part: MoE) -> Iterator[Problem]:
    if part.num_experts % plan.expert_parallel:
        yield _problem(
            "expert_parallel",
            f"The {part.num_experts} experts of {where} cannot be divided evenly over {plan.expert_parallel} devices.",
            f"Choose a divisor of {part.num_experts}.",
        )
    inner = plan.expert_tensor_parallel
    if part.intermediate_size % inner:
        yield _problem(
            "expert_tensor_parallel",
            f"intermediate_size {part.intermediate_size} of {where} cannot be divided evenly over {inner} devices.",
            f"Choose a divisor of {part.intermediate_size}.",
        )
    if inner != plan.tensor_parallel and not plan.sequence_parallel:
        yield _problem(
            "sequence_parallel",
            "Experts that are divided over fewer devices than the rest need each device to have tokens of its own.",
            "Set it to true, or expert_tensor_parallel to tensor_parallel.",
        )


def _problems_of_tensors(plan: TrainingPlan, where: str, part: Component) -> Iterator[Problem]:
    fields = part.tensor_parallel
    if fields is None:
        yield _problem("tensor_parallel", f"How {where}, a {_kind(part)}, is divided is not modelled.", "Set it to 1.")
        return
    for name in fields:
        value = getattr(part, name)
        if value is not None and value % plan.tensor_parallel:
            yield _problem(
                "tensor_parallel",
                f"{name} {value} of {where} cannot be divided evenly over {plan.tensor_parallel} devices.",
                f"Choose a divisor of {value}.",
            )


def _kind(part: Component) -> str:
    return str(getattr(part, "kind", part.component)).replace("_", " ")
