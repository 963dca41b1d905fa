"""Time of an optimizer step: layers, pipeline, exchanges between data-parallel ranks, and the optimizer.

Ranks are numbered as Megatron-Core numbers them: tensor-parallel neighbours first, then context, data (experts among
them) and pipeline ranks. Gradients are exchanged beside the backward pass of the last micro batch, and gathered
parameters beside the first forward pass; of parameters that are sharded themselves (ZeRO-3, FSDP), every micro batch
gathers each layer and spreads its gradients, but in pipelines these are spread once, behind all of them. Of two things
that run beside each other the longer one is paid, and the share of the shorter one that does not overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from planner.calibration import time_here
from planner.components.base import Component
from planner.components.moe import MoE
from planner.compute import TRAINING_FACTOR, flops
from planner.efficiency import Profile, profile_of
from planner.errors import Problem, UnsupportedPlan
from planner.hardware import Device, hardware
from planner.nodes import nodes
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest, smallest
from planner.spec import ArchitectureSpec, Layer
from planner.stages import layers_of_chunks, problems_of_stages, reduces_last
from planner.step_time.collectives import Group, Links, all_reduce, ring_pass, send
from planner.step_time.operators import (
    Machine,
    Pass,
    Seconds,
    Setting,
    embedding_pass,
    head_pass,
    layer_pass,
    setting_of,
)
from planner.step_time.pipeline import StageTime, bubble
from planner.step_time.records import NO_DEVICE, StepTime, unknown

TYPES = {"fp32": "fp32", "fp8": "fp8", "nvfp4": "fp4"}
"""The type that matrices are multiplied in, where it is not bf16."""
OPTIMIZER_BYTES = {"adamw": 16, "adamw_8bit": 4, "lion": 8, "muon": 8, "adafactor": 0, "sgd": 0}
"""Bytes of states that the optimizer reads and writes a parameter (moments in fp32, or in one byte)."""
FUSED_PASSES = 2
"""Reads of the gradients: for their norm, and in the step."""


def check_time_plan(plan: TrainingPlan, spec: ArchitectureSpec) -> None:
    """Refuse what the time of is not modelled, naming every field."""
    problems: list[Problem] = []

    def refuse(path: str, message: str, remedy: str) -> None:
        problems.append(Problem(path, message, remedy, f"unsupported_{path}"))

    if plan.offload != "none":
        refuse("offload", "The time of moving states to the host and back is not modelled.", "Set it to none.")
    if plan.pipeline_parallel == 1 and plan.virtual_stages > 1:
        refuse("virtual_stages", "Stages are interleaved only in a pipeline.", "Set it to 1.")
    elif plan.virtual_stages > 1 and plan.pipeline_schedule != "interleaved":
        refuse("virtual_stages", f"{plan.pipeline_schedule} has one part a stage.", "Set it to 1, or interleave.")
    if plan.context_parallel > 1 and plan.attention == "eager":
        refuse("context_parallel", "Attention that keeps its scores is not split over positions.", "Set it to 1.")
    mixers = [mixer for group in spec.layer_groups for layer in group.layers for mixer in _mixers(layer)]
    if plan.context_parallel > 1 and not all(mixer.context_parallel for mixer in mixers):
        refuse("context_parallel", "States that pass from token to token are not split over positions.", "Set it to 1.")
    if plan.tensor_parallel > 1 and not plan.sequence_parallel and any(isinstance(mixer, MoE) for mixer in mixers):
        refuse("sequence_parallel", "Experts see each token of tensor-parallel ranks once only with it.", "Set it.")
    problems.extend(problems_of_stages(spec.num_layers, plan))
    ranks = plan.data_parallel * plan.context_parallel * plan.tensor_parallel
    if ranks % (plan.expert_parallel * plan.expert_tensor_parallel):
        refuse("expert_parallel", f"{ranks} ranks of a stage are no whole number of groups of experts.", "Divide them.")
    if plan.global_batch_size is not None and plan.global_batch_size % (plan.micro_batch_size * plan.data_parallel):
        refuse(
            "global_batch_size",
            f"{plan.global_batch_size} sequences are no whole number of micro batches of {plan.micro_batch_size} on "
            f"{plan.data_parallel} ranks.",
            f"Choose a multiple of {plan.micro_batch_size * plan.data_parallel}.",
        )
    if problems:
        raise UnsupportedPlan(problems)


def _mixers(layer: Layer) -> Iterator[Component]:
    for mixer in (layer.sequence_mixer, layer.channel_mixer):
        if mixer is not None:
            for _, part in mixer.parts():
                yield part


def micro_batches(plan: TrainingPlan) -> int:
    """Micro batches that a rank works on in a step."""
    return (
        1 if plan.global_batch_size is None else plan.global_batch_size // (plan.micro_batch_size * plan.data_parallel)
    )


def machine_of(device: Device, profile: Profile, plan: TrainingPlan, ranks: int) -> Machine | str:
    """The device's rates under a profile; a sentence where something is not known of it."""
    narrow = TYPES.get(plan.precision, "bf16")
    wide = "fp32" if plan.precision == "fp32" else "bf16"
    for dtype in (narrow, wide):
        if dtype not in device.peak_flops:
            return f"The rate of {dtype} on {device.name} is not known."
    if device.memory_bandwidth_bytes_per_second is None:
        return f"The memory bandwidth of {device.name} is not known."
    node = nodes().get(device.id)
    if ranks > 1 and node is None:
        return f"How several {device.name} are wired is not known."
    if node is None:
        links = Links(1, 1.0, None, 0.0)
    else:
        network = plan.network_gb_per_second or node.inter_gb_per_second
        if ranks > node.gpus and network is None:
            return f"What joins nodes of {device.name} is not known: set network_gb_per_second."
        inter = None if network is None else network * 1e9 * profile.network.value
        links = Links(node.gpus, node.intra_gb_per_second * 1e9 * profile.links.value, inter, profile.latency_seconds)
    share = {"fp8": profile.matmul_fp8, "fp4": profile.matmul_fp4}.get(narrow, profile.matmul)
    if share is None:
        return f"No run was measured that tells what training in {narrow} reaches of {device.name}."
    return Machine(
        matmul=device.peak_flops[narrow] * share.value,
        matmul_wide=device.peak_flops[wide] * profile.matmul.value,
        attention=device.peak_flops[wide] * profile.attention.value,
        scan=device.peak_flops[wide] * profile.scan.value,
        memory=device.memory_bandwidth_bytes_per_second * profile.memory.value,
        launch=profile.launch_seconds,
        links=links,
        overlap=profile.overlap.value,
        casts=narrow in ("fp8", "fp4"),
    )


def known_machine(
    plan: TrainingPlan, devices: int, profile: Profile | None = None
) -> tuple[Device, Profile, Machine] | str:
    """The plan's device with its profile and its rates; a sentence where one is not known."""
    if plan.hardware is None:
        return NO_DEVICE
    device = hardware(plan.hardware)
    profile = profile or profile_of(plan.hardware)
    if profile is None:
        return f"No run was measured that tells what training reaches of {device.name}."
    machine = machine_of(device, profile, plan, devices)
    return machine if isinstance(machine, str) else (device, profile, machine)


@dataclass(slots=True)
class StageWork:
    """What one device of a pipeline stage does with a micro batch."""

    passes: list[tuple[Quantity, Pass]]

    @property
    def time(self) -> StageTime:
        forward: Quantity = 0.0
        backward: Quantity = 0.0
        gradients: Quantity = 0.0
        for times, one in self.passes:
            forward = forward + times * one.forward.total
            backward = backward + times * (one.backward.total + one.again.total)
            gradients = gradients + times * one.weight_gradients
        return StageTime(forward, backward, gradients)

    @property
    def parameters(self) -> tuple[Quantity, Quantity, Quantity]:
        """Elements of a device: without routed experts, of these, and of adapters."""
        rest: Quantity = 0
        experts: Quantity = 0
        adapters: Quantity = 0
        for times, one in self.passes:
            rest = rest + times * one.parameters
            experts = experts + times * one.expert_parameters
            adapters = adapters + times * one.adapters
        return rest, experts, adapters


def stages_of(spec: ArchitectureSpec, setting: Setting) -> list[StageWork]:
    """The stages of the pipeline, the embedding on the first and the head on the last."""
    plan = setting.plan
    known: list[tuple[Layer, Pass]] = []

    def one(layer: Layer, group_index: int, index: int) -> Pass:
        for seen, made in known:
            if seen is layer or seen == layer:
                return made
        made = layer_pass(spec, layer, setting, f"layer_groups[{group_index}].layers[{index}]")
        known.append((layer, made))
        return made

    ends = [(1, embedding_pass(spec, setting)), (1, head_pass(spec, setting))]
    if plan.pipeline_parallel == 1:
        inner = [
            (group.repeats, one(layer, group_index, index))
            for group_index, group in enumerate(spec.layer_groups)
            for index, layer in enumerate(group.layers)
        ]
        return [StageWork([ends[0], *inner, ends[1]])]
    order: list[Pass] = []
    for group_index, group in enumerate(spec.layer_groups):
        order += [one(layer, group_index, index) for index, layer in enumerate(group.layers)] * group.repeats
    found = [StageWork([]) for _ in range(plan.pipeline_parallel)]
    start = 0
    for part, size in enumerate(layers_of_chunks(len(order), plan)):
        stage = found[part % plan.pipeline_parallel]
        for made, times in Counter(order[start : start + size]).items():
            stage.passes.append((times, made))
        start += size
    found[0].passes.append(ends[0])
    found[-1].passes.append(ends[1])
    return found


def slowest_stage(stages: list[StageWork]) -> int:
    """The stage that takes most for a micro batch, in numbers where there are several."""
    if len(stages) == 1:
        return 0
    return max(range(len(stages)), key=lambda index: float(stages[index].time.total))


def beside(work: Quantity, exchange: Quantity, overlap: float) -> Quantity:
    """What an exchange adds to work that it runs beside."""
    return exchange - overlap * smallest(work, exchange)


def _here(
    spec: ArchitectureSpec, plan: TrainingPlan, batch: int, facts: tuple[Quantity, int, Quantity, Quantity]
) -> StepTime:
    """A step on this machine, from its calibration."""
    if facts[1] > 1 or plan.recompute != "none" or plan.attention != "fused" or plan.optimizer != "adamw":
        return unknown(*facts, "On this machine only plain steps of one device with AdamW were calibrated.")
    found, interval, note = time_here(
        spec, "training", batch_size=plan.micro_batch_size, length=plan.sequence_length, precision=plan.precision
    )
    if found is None:
        return unknown(*facts, note)
    count = batch // plan.micro_batch_size
    parts = {name: seconds * (1 if name == "optimizer" else count) for name, seconds in found.parts.items()}
    total = sum(parts.values())
    low, high = interval or (1.0, 1.0)
    return StepTime(total, low * total, high * total, dict(parts), None, *facts, None, found.profile, (note,))


def step_time(spec: ArchitectureSpec, plan: TrainingPlan, profile: Profile | None = None) -> StepTime:
    """Seconds of an optimizer step of a plan on its ``hardware``.

    ``profile``: in place of the device's own. Without a device, or where something of it is not known, there is no time
    but a note that says so.

    Raises
    ------
    UnsupportedPlan
        naming every field whose effect on the time is not modelled.
    """
    devices = plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel * plan.data_parallel
    batch = plan.global_batch_size or plan.micro_batch_size * plan.data_parallel
    tokens = batch * plan.sequence_length
    counted = flops(spec, plan.sequence_length, 1)
    # Frozen weights have no gradients of their own: two passes of what is multiplied by them in place of three.
    passes = TRAINING_FACTOR if plan.adapter_rank is None else TRAINING_FACTOR - 1
    needed = batch * passes * counted.needed_total
    repeated = batch * counted.needed_total if plan.recompute == "full" else 0
    facts = (tokens, devices, needed, needed + repeated)
    if plan.hardware == "here" and profile is None:
        return _here(spec, plan, batch, facts)
    if plan.hardware is None:
        return unknown(*facts, NO_DEVICE)
    check_time_plan(plan, spec)
    found = known_machine(plan, devices, profile)
    if isinstance(found, str):
        return unknown(*facts, found)
    device, profile, machine = found
    setting = setting_of(plan, machine)
    stages = stages_of(spec, setting)
    parts = _parts(stages, spec.hidden_size, setting, profile)
    seconds: Quantity = 0.0
    for part in parts.values():
        seconds = seconds + part
    low, high = profile.relative_interval
    wide = device.peak_flops["fp32" if plan.precision == "fp32" else "bf16"]
    fastest = device.peak_flops[TYPES.get(plan.precision, "bf16")]
    return StepTime(
        seconds=seconds,
        low_seconds=low * seconds,
        high_seconds=high * seconds,
        parts=parts,
        ideal_seconds=needed / (fastest * devices),
        tokens=tokens,
        devices=devices,
        model_flops=needed,
        hardware_flops=needed + repeated,
        peak_flops=wide,
        profile=profile.id,
        notes=(borrowed_note(device, profile),) if profile.borrowed else (),
    )


def borrowed_note(device: Device, profile: Profile) -> str:
    """Why a time of a device is less sure than others."""
    known = " and ".join(profile.devices) or f"relatives ({profile.family})"
    return f"No training on {device.name} was measured: what {known} reach is borrowed, and the interval is wider."


def _parts(stages: list[StageWork], hidden_size: Quantity, setting: Setting, profile: Profile) -> dict[str, Quantity]:
    """Seconds of a step by part."""
    plan, machine = setting.plan, setting.machine
    number = micro_batches(plan)
    overlap = profile.overlap.value
    times = [stage.time for stage in stages]
    slow = slowest_stage(stages)
    work = Seconds()
    again: Quantity = 0.0
    for repeats, one in stages[slow].passes:
        work.update(one.forward, number * repeats)
        work.update(one.backward, number * repeats)
        again = again + number * repeats * one.again.total
    parts = dict(work.parts)
    boundary = setting.stream_width * setting.tokens * hidden_size / setting.stream_share
    parts["recomputation"] = again
    parts["bubble"] = bubble(times, plan.pipeline_schedule, plan.virtual_stages)
    if plan.pipeline_parallel > 1:
        stride = plan.tensor_parallel * plan.context_parallel * plan.data_parallel
        group = Group(plan.pipeline_parallel, stride, machine.links)
        sent = 2 * plan.virtual_stages * number * send(group, boundary)
        if plan.pipeline_schedule == "interleaved":
            sent = beside(work.total, sent, overlap)
        parts["pipeline"] = sent
    held = stages[0].parameters
    for stage in stages[1:]:
        rest, experts, adapters = stage.parameters
        held = largest(held[0], rest), largest(held[1], experts), largest(held[2], adapters)
    trained = held[:2] if plan.adapter_rank is None else (held[2], 0)
    parts["data_parallel"] = _data_parallel(times[slow], held[:2], trained, setting, overlap, number)
    parts["optimizer"] = _optimizer(trained, setting)
    return parts


def _groups(setting: Setting) -> tuple[Group, Group]:
    """Ranks that have the same parameters: of what is no expert, and of experts."""
    plan, links = setting.plan, setting.machine.links
    ranks = plan.data_parallel * plan.context_parallel
    with_experts = plan.expert_parallel * plan.expert_tensor_parallel
    same_experts = ranks * plan.tensor_parallel // with_experts
    return Group(ranks, plan.tensor_parallel, links), Group(same_experts, with_experts, links)


Shares = tuple[Quantity, Quantity]
"""Elements of a device: without routed experts, and of these."""


def _data_parallel(
    time: StageTime, held: Shares, trained: Shares, setting: Setting, overlap: float, number: int
) -> Quantity:
    """What the exchange of gradients and parameters adds to a step."""
    plan = setting.plan
    gradients: Quantity = 0.0
    gathered: Quantity = 0.0
    for group, elements, learning in zip(_groups(setting), held, trained, strict=True):
        if plan.zero_stage == 0:
            gradients = gradients + all_reduce(group, setting.gradient_width * learning)
        else:
            gradients = gradients + ring_pass(group, setting.gradient_width * learning)
            sharded = elements if plan.zero_stage == 3 else learning
            gathered = gathered + ring_pass(group, setting.width * sharded)
    if reduces_last(plan):
        if plan.zero_stage == 2:
            return gradients + beside(time.forward, gathered, overlap)
        # Whole from the first use to the step's end; or let go by a forward pass, and fetched again by the backward one
        # that follows (behind a rank's last forward pass they stay).
        again = number * beside(time.total, gathered, overlap) if plan.fsdp_reshard else 0.0
        return gradients + beside(time.forward, gathered, overlap) + again
    if plan.zero_stage == 3:
        passes = 2 if plan.fsdp_reshard else 1
        return number * beside(time.total, gradients + passes * gathered, overlap)
    if plan.zero_stage == 2:
        return number * beside(time.backward, gradients, overlap) + beside(time.forward, gathered, overlap)
    return beside(time.backward, gradients, overlap) + beside(time.forward, gathered, overlap)


def _optimizer(trained: Shares, setting: Setting) -> Quantity:
    """The optimizer's step: all states of a rank's share are read and written once."""
    plan = setting.plan
    sharded = plan.zero_stage >= 1
    total: Quantity = 0.0
    for group, elements in zip(_groups(setting), trained, strict=True):
        share = elements / (group.ranks if sharded else 1)
        master = 8 if plan.precision in ("bf16_mixed", "fp8", "nvfp4") else 0
        own = setting.width if master else (2 * setting.stream_width if plan.precision != "bf16" else 4)
        states = OPTIMIZER_BYTES[plan.optimizer] // (2 if plan.precision == "bf16" and plan.optimizer == "adamw" else 1)
        moved = FUSED_PASSES * setting.gradient_width + states + master + own
        total = total + share * moved / setting.machine.memory
    return total
