"""How long a pass of serving takes: a roofline by operator, what devices exchange, and what the engine adds.

An operator takes the longer of its arithmetic at the device's dense peak and of what it moves at the memory's
bandwidth (the roofline model; Williams et al. 2009, doi:10.1145/1498765.1498785), each at the share of the promise that
its engine reaches, what the longer does not hide of the shorter, and the start of its kernels. Weights are read once a
pass, however many tokens it has; of routed experts those that some token chooses (:mod:`planner.serving.operators`).

Beside the operators stand the exchanges: an all-reduce of the stream behind each mixer that is split, of which a ring
moves 2(n − 1)/n of the bytes through each device's link, and an all-to-all before and behind experts that lie on other
devices; and what the host does. Offloaded layers are computed where their weights lie, at the host's bandwidth. Layers
on several stages are computed one stage after another, each handing the stream to the next.

Rates are promises of the catalogue, shares are :mod:`planner.serving.engines`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.components import MoE
from planner.hardware import Device, hardware
from planner.nodes import nodes
from planner.plans import ServingPlan
from planner.serving.devices import Split, StagePlan, devices_of, kept_layers, on_one_stage, stages_of
from planner.serving.engines import EngineTerms, profile_of
from planner.serving.formats import arithmetic_of, engine_of, is_packed
from planner.serving.memory import MICRO_BATCH, PREFILL_TOKENS
from planner.serving.operators import ACTIVATION_BYTES, MIXING, Operator, Phase, merged, operators
from planner.serving.speculative import speculation
from planner.spec import ArchitectureSpec

HOST_BYTES_PER_SECOND = 64e9
"""At which offloaded layers read their weights: two channels of DDR5-5600 at 70%, and PCIe 5.0 x16 promises as much."""
HOST_FLOPS_PER_SECOND = 1e12
"""At which they multiply: a desktop processor of 16 cores with AVX2."""

PCIE_BYTES_PER_SECOND = 25e9
"""PCIe 4.0 x16 as it is reached, of devices of which no links are known."""

Bound = Literal["memory", "arithmetic"]


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One operator's time on its device, all its layers together."""

    operator: Operator
    arithmetic_seconds: float
    memory_seconds: float
    overlap: float = 1.0
    """Share of the shorter of both that is hidden behind the longer."""

    @property
    def seconds(self) -> float:
        """The longer of both, and what of the shorter it does not hide."""
        shorter, longer = sorted((self.arithmetic_seconds, self.memory_seconds))
        return longer + (1 - self.overlap) * shorter

    @property
    def bound(self) -> Bound:
        """What takes longer."""
        return "arithmetic" if self.arithmetic_seconds > self.memory_seconds else "memory"


@dataclass(frozen=True, slots=True)
class PassTime:
    """One pass, by part; in seconds."""

    operators: tuple[OperatorTime, ...]
    launch_seconds: float
    """Of each mixer, the chain of its kernels beside their work."""
    exchange_seconds: float
    """What devices exchange."""
    host_seconds: float
    """Starting the kernels, beside the device's work: only what is longer than that counts."""
    pass_seconds: float
    """What the host does while the device waits."""

    @property
    def device_seconds(self) -> float:
        """Operators, their kernels' chains and exchanges."""
        return sum(each.seconds for each in self.operators) + self.launch_seconds + self.exchange_seconds

    @property
    def waiting_seconds(self) -> float:
        """How much longer the host takes to start the kernels than the device to run them."""
        return max(0.0, self.host_seconds - self.device_seconds)

    @property
    def seconds(self) -> float:
        """All of it."""
        return max(self.device_seconds, self.host_seconds) + self.pass_seconds

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by what they go to; they sum to the whole."""
        sums = {"weights and matrices": 0.0, "attention and states": 0.0}
        for each in self.operators:
            name = "attention and states" if each.operator.name == MIXING else "weights and matrices"
            sums[name] += each.seconds
        return {
            **sums,
            "chains of kernels": self.launch_seconds,
            "exchange between devices": self.exchange_seconds,
            "waiting for the host": self.waiting_seconds,
            "between passes": self.pass_seconds,
        }


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass does, whatever the engine."""

    operators: tuple[Operator, ...]
    """Of one device."""
    tokens: float
    """Over all devices."""


def peak_of(device: Device, dtype: str) -> float | None:
    """The device's dense peak for products in that type, or the next wider that it has.

    Where only narrower ones are published, a type twice as wide is taken to have half the peak, as on tensor cores.
    """
    wider = {"fp4": "fp8", "fp8": "bf16", "int8": "bf16", "bf16": "fp16", "fp16": "fp32", "tf32": "fp32"}
    wanted: str | None = dtype
    while wanted is not None:
        if wanted in device.peak_flops:
            return device.peak_flops[wanted]
        wanted = wider.get(wanted)
    halved = ((device.peak_flops.get(name), factor) for name, factor in (("fp8", 2), ("fp4", 4)))
    return next((peak / factor for peak, factor in halved if peak is not None), None)


def _is_outside(operator: Operator) -> bool:
    """Whether it is the head, or a projection of the embedding: what schemes leave in 16 bits."""
    return operator.component in ("lm_head", "token_embedding")


def _peak_for(operator: Operator, plan: ServingPlan, device: Device) -> float:
    """The peak at which an operator is multiplied; infinite where none is known, so that memory decides alone."""
    plain = peak_of(device, "bf16") or math.inf
    if operator.name == MIXING:
        return plain
    peak = plain if _is_outside(operator) else peak_of(device, arithmetic_of(plan.weight_format)) or plain
    if engine_of(plan) == "llama.cpp" and "int8" in device.peak_flops:
        # It sums in 16 bits. GeForce cards have half of their rate with sums in 32, which the catalogue gives; the rate
        # in 8 bits is twice the full one on all (NVIDIA's whitepapers of GA102 and Ada, appendix A).
        peak = max(peak, device.peak_flops["int8"] / 2)
    return peak


def time_operators(
    found: Sequence[Operator], plan: ServingPlan, device: Device, terms: EngineTerms
) -> tuple[OperatorTime, ...]:
    """The time of each operator; the device has a bandwidth and a peak."""
    bandwidth = device.memory_bandwidth_bytes_per_second
    assert bandwidth is not None
    packed = is_packed(plan.weight_format)
    times = []
    for each in found:
        if each.on_host:
            moved = each.moved_bytes / HOST_BYTES_PER_SECOND
            times.append(OperatorTime(each, each.flops / HOST_FLOPS_PER_SECOND, moved))
            continue
        outside = _is_outside(each)
        peak = _peak_for(each, plan, device)
        share = terms.attention.value if each.name == MIXING else terms.arithmetic.value
        reading = terms.memory_packed.value if packed and not outside else terms.memory.value
        moved = each.weight_bytes / (bandwidth * reading)
        moved += (each.cache_bytes + each.activation_bytes) / (bandwidth * terms.cache.value)
        times.append(OperatorTime(each, each.flops / (peak * share), moved, terms.overlap.value))
    return tuple(times)


def link_bytes_per_second(device: Device, devices: int) -> float:
    """What a device sends to its neighbours a second: within a node, or over the network where a node has too few."""
    node = nodes().get(device.id)
    if node is None:
        return PCIE_BYTES_PER_SECOND
    within, between = node.intra_gb_per_second * 1e9, node.inter_gb_per_second
    if devices <= node.gpus:
        return within
    return min(within, PCIE_BYTES_PER_SECOND if between is None else between * 1e9)


def exchange_seconds(
    spec: ArchitectureSpec, plan: ServingPlan, device: Device, terms: EngineTerms, tokens: float
) -> float:
    """What devices exchange in a pass over that many tokens in all."""
    split = Split.of(plan)
    handed = _handed_on(spec, plan, device, terms, tokens)
    if split.alone:
        return handed
    link, far = (
        link_bytes_per_second(device, ranks) * terms.network.value for ranks in (split.tensor_parallel, split.devices)
    )
    streamed = ACTIVATION_BYTES * spec.hidden_size
    total = handed
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            layers = group.repeats
            if isinstance(plan, StagePlan):
                layers = kept_layers(spec, plan, group_index, layer_index)
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                if mixer is None:
                    continue
                seconds = 0.0
                n, own = split.tensor_parallel, tokens / split.attention_data_parallel
                if isinstance(mixer, MoE) and split.expert_parallel > 1 and split.attention_data_parallel > 1:
                    # Tokens go to the devices of their experts and back.
                    away = (split.expert_parallel - 1) / split.expert_parallel
                    moved = 2 * own * mixer.num_experts_per_tok * away * streamed / n
                    seconds += moved / far + 2 * terms.latency_seconds.value
                elif isinstance(mixer, MoE):
                    n, own = split.devices, tokens
                if n > 1:
                    rate = far if n > split.tensor_parallel else link
                    seconds += 2 * (n - 1) / n * own * streamed / rate + terms.latency_seconds.value
                total += seconds * layers
    return total


def _handed_on(spec: ArchitectureSpec, plan: ServingPlan, device: Device, terms: EngineTerms, tokens: float) -> float:
    """Seconds in which stages hand the stream to the next one: of a stage's plan it alone does."""
    hops = plan.pipeline_parallel - 1
    if isinstance(plan, StagePlan):
        hops = 0 if plan.is_last else 1
    if not hops:
        return 0.0
    split = Split.of(plan)
    moved = ACTIVATION_BYTES * spec.hidden_size * tokens / split.attention_data_parallel / split.tensor_parallel
    link = link_bytes_per_second(device, devices_of(plan)) * terms.network.value
    return hops * (moved / link + terms.latency_seconds.value)


def time_pass(
    spec: ArchitectureSpec,
    plan: ServingPlan,
    device: Device,
    work: Work,
    terms: EngineTerms | None = None,
) -> PassTime:
    """The time of a pass; ``terms`` are those of the plan's engine where they are absent."""
    terms = profile_of(engine_of(plan), device) if terms is None else terms
    mixers, started = _counted(spec, plan, work.operators)
    return PassTime(
        time_operators(work.operators, plan, device, terms),
        terms.launch_seconds.value * mixers,
        exchange_seconds(spec, plan, device, terms, work.tokens),
        terms.host_seconds.value * started,
        terms.pass_seconds.value + (terms.between_seconds.value if plan.engine_overhead == "between_passes" else 0.0),
    )


def _counted(spec: ArchitectureSpec, plan: ServingPlan, found: Sequence[Operator]) -> tuple[int, int]:
    """Mixers on the device, the head one of them, and operators that an engine starts: each expert for itself."""
    mixers, started = 1, sum(each.times for each in found if not each.on_host)
    for group_index, group in enumerate(spec.layer_groups):
        for layer_index, layer in enumerate(group.layers):
            kept = kept_layers(spec, plan, group_index, layer_index)
            for mixer in (layer.sequence_mixer, layer.channel_mixer):
                mixers += kept if mixer is not None else 0
                started += kept * mixer.num_experts if isinstance(mixer, MoE) else 0
    return mixers, started


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """One operator where it stands under the device's roof: all its layers together, in one pass on one device."""

    phase: Phase
    name: str
    component: str
    intensity: float
    """FLOPs a byte that it moves."""
    seconds: float
    flops_per_second: float
    """What it reaches."""
    roof_flops_per_second: float
    """The most that the device's promises allow at that intensity: peak, or bandwidth times intensity."""
    bound: Bound


def roofline(spec: ArchitectureSpec, plan: ServingPlan) -> list[RooflinePoint]:
    """Where the operators of a pass that decodes and of one that reads a prompt stand; empty without a bandwidth.

    Raises
    ------
    UnsupportedPlan
        where the plan is not modelled or names no hardware of the catalogue.
    """
    device = hardware(plan.hardware or "")
    bandwidth = device.memory_bandwidth_bytes_per_second
    if bandwidth is None:
        return []
    points = []
    terms = profile_of(engine_of(plan), device)
    works: tuple[tuple[Phase, Work], ...] = (
        ("decode", decode_work(spec, plan)),
        ("prefill", prompt_work(spec, plan)[0]),
    )
    for phase, work in works:
        for each in time_operators(merged(work.operators), plan, device, terms):
            done = each.operator
            if not (done.flops and done.moved_bytes):
                continue
            peak, name = _peak_for(done, plan, device), done.name
            reached = bandwidth
            if done.on_host:
                peak, reached, name = HOST_FLOPS_PER_SECOND, HOST_BYTES_PER_SECOND, f"{name}, on the host"
            points.append(
                RooflinePoint(
                    phase,
                    name,
                    done.component,
                    done.intensity,
                    each.seconds,
                    done.flops / each.seconds,
                    min(peak, reached * done.intensity),
                    each.bound,
                )
            )
    return points


def prompt_length(plan: ServingPlan) -> int:
    """Tokens of a prompt."""
    return plan.context_length - (plan.output_length or 0)


def decoded_length(plan: ServingPlan) -> int:
    """Tokens of a sequence while it is decoded: in the middle of its answer, or the whole context."""
    return plan.context_length - (plan.output_length or 0) // 2


def _scaled(operator: Operator, share: float) -> Operator:
    """A share of an operator's tokens; its weights are read all the same."""
    return replace(
        operator,
        flops=operator.flops * share,
        cache_bytes=operator.cache_bytes * share,
        activation_bytes=operator.activation_bytes * share,
    )


def _without(operator: Operator, known: Operator) -> Operator:
    """What is left of mixing over a whole prompt when its beginning is known: the keys of that are read again."""
    return replace(
        operator,
        flops=operator.flops - known.flops,
        activation_bytes=operator.activation_bytes - known.activation_bytes,
    )


def decode_work(spec: ArchitectureSpec, plan: ServingPlan, beside: int = 0) -> Work:
    """A pass that adds tokens to all sequences, and reads ``beside`` tokens of new ones' prompts."""
    found = speculation(plan.speculative)
    batch = sequences_at_once(plan)
    proposed = 0 if found is None else found.proposed * batch
    done = operators(spec, plan, "decode", decoded_length(plan), batch, proposed + beside, batch + proposed)
    if proposed:
        # Proposals attend with the last token: the cache is read once for all of a sequence's.
        each_once = 1 + proposed // batch
        done = [
            replace(each, flops=each.flops * each_once, activation_bytes=each.activation_bytes * each_once)
            if each.name == MIXING
            else each
            for each in done
        ]
    if beside:
        groups = plan.attention_data_parallel
        prompt = prompt_length(plan)
        done += [
            replace(_scaled(each, beside / (prompt * groups)), times=0)
            for each in operators(spec, plan, "prefill", prompt, groups)
            if each.name == MIXING
        ]
    return Work(tuple(done), batch + proposed + beside)


def sequences_at_once(plan: ServingPlan) -> int:
    """Sequences of a pass: engines for serving deal them out to as many passes as stages, so that all work."""
    return -(-plan.batch_size // plan.pipeline_parallel) if engine_of(plan) == "serving" else plan.batch_size


def passes_with_prompts(plan: ServingPlan) -> tuple[float, int]:
    """Which share of the passes reads a piece of a prompt beside decoding, and of how many tokens.

    While a sequence writes its answer, each of the others is replaced by a new one whose prompt is to be read.
    """
    if not plan.chunked_prefill or plan.output_length is None:
        return 0.0, 0
    unread = prompt_length(plan) - plan.cached_prefix
    found = speculation(plan.speculative)
    passes = plan.output_length / (1.0 if found is None else found.tokens_a_pass)
    a_pass = (plan.batch_size - 1) * unread / passes
    piece = max(min(unread, PREFILL_TOKENS), math.ceil(a_pass))
    return a_pass / piece, piece


def prompt_work(spec: ArchitectureSpec, plan: ServingPlan) -> tuple[Work, int]:
    """A pass that reads a piece of the prompts of the whole batch, and how many such passes there are."""
    prompt, cached = prompt_length(plan), plan.cached_prefix
    piece = {"serving": PREFILL_TOKENS, "llama.cpp": MICRO_BATCH}.get(engine_of(plan))
    own = Split.of(plan).sequences(plan.batch_size) * (prompt - cached)
    passes = 1 if piece is None else -(-own // piece)
    whole = operators(spec, plan, "prefill", prompt, plan.batch_size, 0, plan.batch_size)
    if cached:
        known = {
            (each.path, each.on_host): each
            for each in operators(spec, plan, "prefill", cached, plan.batch_size)
            if each.name == MIXING
        }
        whole = [
            _without(each, known[each.path, each.on_host])
            if each.name == MIXING
            else _scaled(each, (prompt - cached) / prompt)
            for each in whole
        ]
    done = tuple(_scaled(each, 1 / passes) for each in whole)
    return Work(done, plan.batch_size * (prompt - cached) / passes), passes


def draft_plan(plan: ServingPlan) -> ServingPlan:
    """The plan under which a draft runs: whole on each device, for the sequences of its group."""
    return on_one_stage(
        plan,
        batch_size=Split.of(plan).sequences(plan.batch_size),
        tensor_parallel=1,
        attention_data_parallel=1,
        expert_parallel=1,
        offload_layers=0,
        speculative=None,
        chunked_prefill=False,
    )


def pass_seconds(spec: ArchitectureSpec, plan: ServingPlan, device: Device, terms: EngineTerms | None = None) -> float:
    """Seconds of a pass that adds a token to every sequence: the mean over those with and without a prompt's piece."""
    return _mean_seconds(spec, plan, device, *passes_with_prompts(plan), terms)


def _mean_seconds(
    spec: ArchitectureSpec,
    plan: ServingPlan,
    device: Device,
    share: float,
    piece: int,
    terms: EngineTerms | None = None,
) -> float:
    seconds = time_pass(spec, plan, device, decode_work(spec, plan), terms).seconds
    if share:
        longer = time_pass(spec, plan, device, decode_work(spec, plan, piece), terms).seconds
        seconds += share * (longer - seconds)
    return seconds


def draft_seconds(plan: ServingPlan, device: Device) -> float:
    """Seconds of a draft's passes between two of the model's; the first of them reads what that reads of prompts."""
    found = speculation(plan.speculative)
    if found is None or found.draft is None:
        return 0.0
    own, (share, piece) = draft_plan(plan), passes_with_prompts(plan)
    first = _mean_seconds(found.draft, own, device, share, Split.of(plan).sequences(piece))
    return first + (found.proposed - 1) * pass_seconds(found.draft, own, device)


def inter_token_seconds(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> float:
    """Seconds from a token to the next one of the same sequence."""
    found = speculation(plan.speculative)
    seconds = pass_seconds(spec, plan, device) + draft_seconds(plan, device)
    return seconds if found is None else seconds / found.tokens_a_pass


@dataclass(frozen=True, slots=True)
class PromptPass:
    """Passes that read the prompts of the batch and are alike."""

    what: str
    timed: PassTime
    times: int

    @property
    def seconds(self) -> float:
        """Of all of them."""
        return self.timed.seconds * self.times

    @property
    def parts(self) -> dict[str, float]:
        """The same by what they go to."""
        return {name: seconds * self.times for name, seconds in self.timed.parts.items()}


@dataclass(frozen=True, slots=True)
class PromptWork:
    """What reading the prompts of a batch does, whatever the engine's terms."""

    piece: Work
    """A pass that reads a piece of them."""
    passes: int
    by_stage: tuple[tuple[ServingPlan, Work], ...]
    """The same on each stage, where these work on several pieces at once; else empty."""


def prompts(spec: ArchitectureSpec, plan: ServingPlan) -> PromptWork:
    """What reading the prompts does. Stages of ``eager``, and behind layers that are offloaded, wait for each other."""
    piece, passes = prompt_work(spec, plan)
    stages = stages_of(plan)
    if len(stages) == 1 or passes == 1 or engine_of(plan) == "eager" or plan.offload_layers:
        stages = []
    return PromptWork(piece, passes, tuple((stage, prompt_work(spec, stage)[0]) for stage in stages))


def time_prompts(
    spec: ArchitectureSpec, plan: ServingPlan, device: Device, work: PromptWork, terms: EngineTerms | None = None
) -> list[PromptPass]:
    """The passes that read the prompts: behind the first piece each takes as long as the slowest stage."""
    whole = time_pass(spec, plan, device, work.piece, terms)
    if not work.by_stage:
        return [PromptPass("reading the prompts", whole, work.passes)]
    timed = [time_pass(spec, stage, device, piece, terms) for stage, piece in work.by_stage]
    slowest = max(timed, key=lambda each: each.seconds)
    return [
        PromptPass("reading the first piece", whole, 1),
        PromptPass("the slowest stage reads the others", slowest, work.passes - 1),
    ]


def prompt_passes(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> list[PromptPass]:
    """The passes until all prompts of the batch, which come at once, have been read: the model's first, then a draft's.

    A draft that is a model has to have read a prompt too before it can propose.
    """
    found = time_prompts(spec, plan, device, prompts(spec, plan))
    draft = speculation(plan.speculative)
    if draft is not None and draft.draft is not None:
        read = prompt_passes(draft.draft, draft_plan(plan), device)
        found += [replace(each, what="the draft reads the prompts") for each in read]
    return found


def first_token_seconds(spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> float:
    """Seconds until all prompts of the batch, which come at once, have been read."""
    return sum(each.seconds for each in prompt_passes(spec, plan, device))
