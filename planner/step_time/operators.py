"""Seconds of one micro batch in one layer: a roofline by operator, and what tensor- and expert-parallel ranks exchange.

Each matrix is multiplied three times, once forward and twice backward, and takes as long as the arithmetic or the
memory traffic needs, whichever is longer (Williams et al. 2009, doi:10.1145/1498765.1498785); small ones take longer
for their arithmetic than large ones. A fused attention kernel computes two and a half times as much backward as
forward, since it computes the scores again (Dao 2023, arXiv:2307.08691, section 4.1), and reaches the less the fewer
keys a query sees and the narrower its heads are. What is elementwise is memory traffic: every tensor that a mixer keeps
between its matrices is written or read by a kernel of its own forward, and backward 5/3 as much (a gated activation
reads or writes three widths forward and five backward). The norm before a mixer and the addition behind it move five
widths of the stream forward and six backward.

Formulas read numbers and arrays in the fields of a specification; a plan's numbers are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from planner.components import Attention, LatentAttention
from planner.components.base import Component, Tensor
from planner.components.moe import MoE
from planner.matrices import between_tokens, matrices
from planner.plans import TrainingPlan
from planner.quantities import Quantity, largest, product, smallest
from planner.sizing import embedding_width
from planner.spec import ArchitectureSpec, Layer
from planner.step_time.collectives import Group, Links, all_reduce, all_to_all, ring_pass
from planner.step_time.collectives import send as send_to_next

BACKWARD_ELEMENTWISE = 5 / 3
FUSED_BACKWARD = 2.5
ATTENTION_RAMP = 700
"""Positions at which a fused kernel reaches half of its rate over long sequences; on an H100 of cuDNN's and
FlashAttention-2's alike (docs/planner/time-of-training.md)."""
ATTENTION_HEAD = 45
"""Channels of a head at which a fused kernel would reach half of its rate with the widest; from the same kernels with
64 and 128 channels. The fewer channels, the more its exponentials weigh."""
USUAL_HEAD = 128
"""Channels of a head that rates of attention are told for."""
MATRIX_RAMP = 137
"""Rows, columns or inputs of a product that take as long as its arithmetic: prologue, epilogue, and tiles that are not
full. The mean of a forward pass and two backward, from cuBLAS's products in bf16 and fp8 on an H100."""
STATE_PASSES = (4, 8)
"""Times that the states at the ends of chunks are written or read: made, passed on from chunk to chunk (read and
written), and used; backward made again, and their gradients likewise."""
FORWARD_STREAM = 5
BACKWARD_STREAM = 6
SQUARE_PASSES = (6, 8)
"""Times that the scores of attention that keeps them are written or read, forward and backward: the product, the scaled
and masked softmax, its dropout, and the product with the values."""
BIAS_PASSES = 3
"""Times more, forward, where linear biases are added to the scores: copied to where the product adds to them, read and
written. On an H100 the product of 48 heads over 2,048 positions took 0.68 ms with biases and 0.17 ms without; 3 passes
over their scores take 0.42 ms."""
LOSS_PASSES = (4, 4)
"""Times that the logits are written or read beside the head's own product."""
ROWS_OF_A_TILE = 128
"""Rows that a kernel of grouped matrix multiplications works on at once; the last tile of each expert is half empty."""
MIXER_KERNELS = 6
"""Kernels of a mixer forward, beside its matrices: norm, addition, mixing or activation, and their like."""
EXPERT_ROWS = 4
"""Times that a row of an expert is written or read where ranks exchange them, beside what a mixture on one device does:
sorted by rank and by expert, there and back."""
EXPERT_KERNELS = 100
"""Kernels more of a mixture of experts: the router, its choice, the rows there and back, and as many as could start
while the host waits for the numbers of rows. Chosen with all devices' runs with experts in view: none of them is quite
held out from it."""

Part = str
"""``matmul attention elementwise launches tensor_parallel expert_parallel context_parallel``."""


@dataclass(slots=True)
class Seconds:
    """Seconds by part."""

    parts: dict[Part, Quantity] = field(default_factory=dict)

    def add(self, part: Part, seconds: Quantity) -> None:
        """Add to a part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds

    def update(self, other: Seconds, times: Quantity = 1) -> None:
        """Add all parts of another, ``times`` as often."""
        for part, seconds in other.parts.items():
            self.add(part, times * seconds)

    @property
    def total(self) -> Quantity:
        """The sum over the parts."""
        total: Quantity = 0.0
        for seconds in self.parts.values():
            total = total + seconds
        return total


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates that are reached, in FLOPs or bytes a second."""

    matmul: float
    """Of the type that the model's matrices are multiplied in."""
    matmul_wide: float
    """Of the head and the router, which fp8 leaves in bf16."""
    attention: float
    scan: float
    """Of what passes states from token to token."""
    memory: float
    launch: float
    links: Links
    overlap: float
    """The share of what could run beside other work that does."""
    casts: bool
    """Whether inputs of matrices are cast to fp8 first."""


@dataclass(slots=True, eq=False)
class Pass:
    """One micro batch through a layer, or through what is outside the layers."""

    forward: Seconds = field(default_factory=Seconds)
    backward: Seconds = field(default_factory=Seconds)
    again: Seconds = field(default_factory=Seconds)
    """What the backward pass computes again."""
    weight_gradients: Quantity = 0.0
    parameters: Quantity = 0
    """Elements of a device's share, without those of routed experts."""
    expert_parameters: Quantity = 0
    adapters: Quantity = 0
    """Elements of a device's share of adapters."""
    path: str = ""
    """The first of the layers that it is of, or what is outside them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A plan's numbers as this module needs them."""

    plan: TrainingPlan
    machine: Machine
    tokens: Quantity
    """Of a micro batch on one device, before tensor-parallel ranks split them."""
    width: int
    """Bytes of an element of the type that is computed in."""
    stream_width: int
    gradient_width: int

    @property
    def tensor_group(self) -> Group:
        return Group(self.plan.tensor_parallel, 1, self.machine.links)

    @property
    def context_group(self) -> Group:
        return Group(self.plan.context_parallel, self.plan.tensor_parallel, self.machine.links)

    @property
    def expert_group(self) -> Group:
        """Ranks that hold different experts: neighbours, but for those that one expert is split over."""
        return Group(self.plan.expert_parallel, self.plan.expert_tensor_parallel, self.machine.links)

    @property
    def stream_share(self) -> int:
        """Ranks over which work on the stream is split: the tensor-parallel ones with sequence parallel."""
        return self.plan.tensor_parallel if self.plan.sequence_parallel else 1


def setting_of(plan: TrainingPlan, machine: Machine) -> Setting:
    """The plan's numbers."""
    computes_in_32_bits = plan.precision == "fp32"
    return Setting(
        plan,
        machine,
        plan.micro_batch_size * plan.sequence_length / plan.context_parallel,
        4 if computes_in_32_bits else 2,
        4 if plan.precision in ("fp32", "bf16_autocast") else 2,
        4 if plan.gradient_dtype == "fp32" or plan.precision in ("fp32", "bf16_autocast") else 2,
    )


def layer_pass(spec: ArchitectureSpec, layer: Layer, setting: Setting, path: str = "") -> Pass:
    """A micro batch through one layer."""
    found = Pass(path=path)
    for mixer, is_sequence in ((layer.sequence_mixer, True), (layer.channel_mixer, False)):
        if mixer is not None:
            _mixer(found, spec, mixer.under(spec.positions.kind), is_sequence, setting)
    if setting.plan.recompute == "full":
        found.again.update(found.forward)
    return found


def _mixer(found: Pass, spec: ArchitectureSpec, mixer: Component, is_sequence: bool, setting: Setting) -> None:
    plan, machine = setting.plan, setting.machine
    again = set(plan.recompute_modules) if plan.recompute == "selective" else set()
    experts = mixer if isinstance(mixer, MoE) else None
    kernels: Quantity = MIXER_KERNELS + (EXPERT_KERNELS if experts is not None else 0)
    before = dict(found.forward.parts)
    multiplied = found.forward.parts.get("matmul", 0.0), found.backward.parts.get("matmul", 0.0)
    for tensor in matrices(mixer, spec.hidden_size):
        is_routed = not (isinstance(tensor.active_share[1], int) and tensor.active_share[1] == 1)
        # Each expert's product is a kernel of its own.
        kernels = kernels + (tensor.active_share[1] / plan.expert_parallel if is_routed else 1)
        _matrix(found, tensor, is_routed, setting)
        if plan.adapter_rank is not None and is_sequence:
            kernels = kernels + 2
            _adapter(found, tensor, setting)
        if "mla_up_proj" in again and tensor.name.startswith(("q_b_proj", "kv_b_proj")):
            rows = 2 * setting.tokens * tensor.count / plan.tensor_parallel
            found.again.add("matmul", rows / machine.matmul)
    found.forward.add("launches", machine.launch * kernels)
    found.backward.add("launches", machine.launch * 2 * kernels)
    inside = _kept_inside(mixer, spec.hidden_size, setting)
    found.forward.add("elementwise", inside / machine.memory)
    found.backward.add("elementwise", BACKWARD_ELEMENTWISE * inside / machine.memory)
    stream = setting.stream_width * setting.tokens * spec.hidden_size / setting.stream_share
    found.forward.add("elementwise", FORWARD_STREAM * stream / machine.memory)
    found.backward.add("elementwise", BACKWARD_STREAM * stream / machine.memory)
    if "layernorm" in again:
        found.again.add("elementwise", 2 * stream / machine.memory)
    if experts is not None and "moe_act" in again:
        rows = setting.tokens * experts.num_experts_per_tok * experts.intermediate_size
        widths = 3 if experts.gated else 2
        found.again.add("elementwise", widths * setting.width * rows / plan.tensor_parallel / machine.memory)
    if is_sequence:
        for _, part in mixer.parts():
            _between(found, part, spec.hidden_size, setting, "core_attn" in again)
    products = (
        found.forward.parts.get("matmul", 0.0) - multiplied[0],
        found.backward.parts.get("matmul", 0.0) - multiplied[1],
    )
    _exchange(found, spec.hidden_size, experts, setting, products)
    if plan.tensor_parallel > 1:
        for _, part in mixer.parts():
            for seconds, inside in zip((found.forward, found.backward), part.summed_inside(), strict=True):
                if not (isinstance(inside, int) and inside == 0):
                    summed = all_reduce(setting.tensor_group, setting.width * setting.tokens * inside)
                    seconds.add("tensor_parallel", summed)
    repeated = (experts is not None and "moe" in again) or (experts is None and not is_sequence and "mlp" in again)
    if repeated:
        for name, seconds in found.forward.parts.items():
            found.again.add(name, seconds - before.get(name, 0.0))
    for belongs, shared, count in _parameters(mixer, spec.hidden_size, setting):
        if belongs == "experts":
            found.expert_parameters = found.expert_parameters + count / shared
        else:
            found.parameters = found.parameters + count / shared


def _parameters(mixer: Component, hidden_size: Quantity, setting: Setting) -> Iterator[tuple[str, int, Quantity]]:
    """Parameters of a mixer: what they belong to, over how many ranks they are split, and how many there are."""
    plan = setting.plan
    for tensor in mixer.tensors(hidden_size):
        if not (isinstance(tensor.active_share[1], int) and tensor.active_share[1] == 1):
            yield "experts", plan.expert_parallel * plan.expert_tensor_parallel, tensor.count
        else:
            yield "rest", plan.tensor_parallel, tensor.count


def _matrix(found: Pass, tensor: Tensor, is_routed: bool, setting: Setting) -> None:
    """The three products of one matrix."""
    plan, machine, width = setting.plan, setting.machine, setting.width
    outputs, inputs = tensor.shape[-2:]
    split = plan.tensor_parallel
    rows = setting.tokens * product(tensor.shape[:-2]) if len(tensor.shape) > 2 else setting.tokens
    held = tensor.count / split
    flops = 2 * setting.tokens * tensor.count / split
    across = {"columns": (outputs / split, inputs), "rows": (outputs, inputs / split)}.get(
        tensor.split, (outputs, inputs)
    )
    height = rows
    rate = machine.matmul
    if is_routed:
        chosen, available = tensor.active_share
        rows = setting.tokens * chosen
        # Experts of a device, and the rows that each gets from the ranks that share them, of tokens that choose evenly.
        local = available / plan.expert_parallel
        per_expert = rows / split * plan.expert_parallel * plan.expert_tensor_parallel / available
        full = per_expert / (per_expert + ROWS_OF_A_TILE / 2)
        height = per_expert
        held = local * inputs * outputs / plan.expert_tensor_parallel
        flops = 2 * rows * inputs * outputs / split / full
    elif tensor.name.startswith("router."):
        rate = machine.matmul_wide
    flops = flops * _ramp(*across, height)
    moved = width * (held + rows * (inputs + outputs) / split)
    once = largest(flops / rate, moved / machine.memory)
    into_gradients = width * rows * (inputs + outputs) / split + 2 * setting.gradient_width * held
    gradients = largest(flops / rate, into_gradients / machine.memory) if plan.adapter_rank is None else 0.0
    found.forward.add("matmul", once)
    found.backward.add("matmul", once + gradients)
    found.weight_gradients = found.weight_gradients + gradients
    if machine.casts and rate == machine.matmul:
        # Read in bf16, written in fp8 by rows and by columns.
        found.forward.add("elementwise", 4 * rows * inputs / split / machine.memory)
        found.backward.add("elementwise", 4 * rows * outputs / split / machine.memory)
    if plan.precision == "bf16_autocast":
        cast = 6 * held / machine.memory
        found.forward.add("elementwise", cast)
        found.backward.add("elementwise", cast)


def _ramp(outputs: Quantity, inputs: Quantity, rows: Quantity) -> Quantity:
    """How much longer a product's arithmetic takes than that of an infinitely large one, in the mean of its three."""
    return 1 + MATRIX_RAMP * (1 / outputs + 1 / inputs + 1 / rows)


def _adapter(found: Pass, tensor: Tensor, setting: Setting) -> None:
    """The two thin matrices of an adapter beside a frozen one: bound by what they read and write."""
    plan, machine = setting.plan, setting.machine
    outputs, inputs = tensor.shape[-2:]
    elements = plan.adapter_rank * (outputs + inputs)
    moved = setting.width * setting.tokens * (outputs + inputs) / plan.tensor_parallel
    once = largest(2 * setting.tokens * elements / plan.tensor_parallel / machine.matmul_wide, moved / machine.memory)
    found.forward.add("matmul", once)
    found.backward.add("matmul", 2 * once)
    found.adapters = found.adapters + elements / plan.tensor_parallel


def _kept_inside(mixer: Component, hidden_size: Quantity, setting: Setting) -> Quantity:
    """Bytes that a mixer keeps between its matrices: each is written or read by an elementwise kernel."""
    plan = setting.plan
    length = plan.sequence_length / plan.context_parallel
    total: Quantity = 0.0
    for saved in mixer.saved_activations(hidden_size, length, plan.micro_batch_size):
        if saved.name in ("input", "mask") or saved.dtype_class in ("bool", "int64", "int32", "copy"):
            continue
        width = 4 if saved.dtype_class == "float32" else setting.width
        total = total + width * saved.elements
    return total / plan.tensor_parallel


def _between(found: Pass, part: Component, hidden_size: Quantity, setting: Setting, again: bool) -> None:
    """What a sequence mixer does between tokens, and what context-parallel ranks exchange for it."""
    plan, machine = setting.plan, setting.machine
    shared = plan.tensor_parallel * plan.context_parallel
    needed = between_tokens(part, hidden_size, plan.sequence_length, plan.micro_batch_size) / shared
    attends = isinstance(part, (Attention, LatentAttention))
    if attends and plan.attention == "eager":
        counted: Quantity = 0
        for operation in part.operations(hidden_size, plan.sequence_length, plan.micro_batch_size):
            counted = counted + operation.flops - operation.needed_flops
        flops = needed + counted / shared
        heads: Any = part
        square = setting.width * plan.micro_batch_size * heads.num_attention_heads * plan.sequence_length**2 / shared
        is_biased = isinstance(part, Attention) and part.has_linear_biases
        passes = SQUARE_PASSES[0] + (BIAS_PASSES if is_biased else 0)
        forward = flops / machine.matmul_wide + passes * square / machine.memory
        backward = 2 * flops / machine.matmul_wide + SQUARE_PASSES[1] * square / machine.memory
    else:
        rate = machine.scan
        if isinstance(part, (Attention, LatentAttention)):
            rate = machine.attention * _fullness(part, needed * shared, setting)
        states = 0.0 if attends else _states(part, hidden_size, setting) / machine.memory
        forward = needed / rate + STATE_PASSES[0] * states
        backward = (FUSED_BACKWARD if attends else 2) * needed / rate + STATE_PASSES[1] * states
    found.forward.add("attention", forward)
    found.backward.add("attention", backward)
    if again:
        found.again.add("attention", forward)
    if plan.context_parallel > 1 and attends:
        group = setting.context_group
        block = setting.width * _keys_and_values(part) * setting.tokens / plan.tensor_parallel
        steps = plan.context_parallel - 1
        # Each step computes on one block while the next one arrives; the gradients of a block travel with it.
        for seconds, blocks, work in ((found.forward, 1, forward), (found.backward, 2, backward)):
            moved = send_to_next(group, blocks * block)
            exposed = largest(0.0 * moved, moved - work / plan.context_parallel)
            seconds.add("context_parallel", steps * exposed)


def _fullness(part: Attention | LatentAttention, flops: Quantity, setting: Setting) -> Quantity:
    """The share of its rate over long sequences and usual heads that a fused kernel reaches.

    ``flops`` of all heads and positions tell the keys that a query sees: of a causal mask half the positions.
    """
    plan = setting.plan
    channels = _channels(part)
    positions = 2 * flops / (2 * plan.micro_batch_size * plan.sequence_length * channels)
    if plan.context_exchange == "ring":
        positions = positions / plan.context_parallel
    head = channels / part.num_attention_heads / 2
    wide = head / (head + ATTENTION_HEAD) * (USUAL_HEAD + ATTENTION_HEAD) / USUAL_HEAD
    return positions / (positions + ATTENTION_RAMP) * wide


def _channels(part: Attention | LatentAttention) -> Quantity:
    """Channels of queries and values, of all heads."""
    if isinstance(part, LatentAttention):
        return part.num_attention_heads * (part.qk_nope_head_dim + part.qk_rope_head_dim + part.v_head_dim)
    values = part.head_dim if part.value_head_dim is None else part.value_head_dim
    return part.num_attention_heads * (part.head_dim + values)


def _states(part: Component, hidden_size: Quantity, setting: Setting) -> Quantity:
    """Bytes of the states at the ends of all chunks, in fp32, of a mixer that works chunk by chunk."""
    plan = setting.plan
    chunk = getattr(part, "chunk_size", None)
    if chunk is None:
        return 0.0
    elements: Quantity = 0
    for entry in part.cache(hidden_size, plan.sequence_length):
        if not entry.grows and entry.name != "convolution":
            elements = elements + entry.elements
    return 4 * plan.micro_batch_size * elements * plan.sequence_length / chunk / plan.tensor_parallel


def _keys_and_values(part: Component) -> Quantity:
    """Elements a token of keys and values as the kernel reads them."""
    if isinstance(part, LatentAttention):
        return part.num_attention_heads * (part.qk_nope_head_dim + part.qk_rope_head_dim + part.v_head_dim)
    heads: Any = part
    values = heads.head_dim if heads.value_head_dim is None else heads.value_head_dim
    return heads.num_key_value_heads * (heads.head_dim + values)


def _exchange(
    found: Pass,
    hidden_size: Quantity,
    experts: MoE | None,
    setting: Setting,
    products: tuple[Quantity, Quantity],
) -> None:
    """What ranks exchange around a mixer: the stream with tensor parallel, chosen rows with expert parallel.

    With ``tp_comm_overlap`` the gathers and scatters of sequence parallelism go row by row and run beside the mixer's
    ``products``, in seconds forward and backward; without it, and where all ranks sum, they are waited for.
    """
    plan = setting.plan
    if plan.tensor_parallel > 1 and (experts is None or plan.expert_tensor_parallel > 1):
        stream = setting.width * setting.tokens * hidden_size
        for seconds, beside in ((found.forward, products[0]), (found.backward, products[1])):
            if plan.sequence_parallel:
                once = 2 * ring_pass(setting.tensor_group, stream)
                if plan.tp_comm_overlap:
                    once = once - setting.machine.overlap * smallest(once, beside)
            else:
                once = all_reduce(setting.tensor_group, stream)
            seconds.add("tensor_parallel", once)
    if experts is not None and plan.expert_parallel > 1:
        chosen = experts.num_experts_per_tok
        width = hidden_size if experts.latent_size is None else experts.latent_size
        rows = setting.width * setting.tokens * chosen * width / plan.tensor_parallel
        there_and_back = 2 * all_to_all(setting.expert_group, rows, chosen)
        sorting = EXPERT_ROWS * rows / setting.machine.memory
        for seconds in (found.forward, found.backward):
            seconds.add("expert_parallel", there_and_back)
            seconds.add("elementwise", sorting)


def head_pass(spec: ArchitectureSpec, setting: Setting) -> Pass:
    """A micro batch through the head and the loss."""
    plan, machine = setting.plan, setting.machine
    found = Pass(path="lm_head")
    width = embedding_width(spec)
    elements = spec.vocab_size * width / plan.tensor_parallel
    slower = _ramp(spec.vocab_size / plan.tensor_parallel, width, setting.tokens)
    once = 2 * setting.tokens * elements * slower / machine.matmul_wide
    logits = setting.width * setting.tokens * spec.vocab_size / plan.tensor_parallel
    stream = setting.stream_width * setting.tokens * spec.hidden_size / setting.stream_share
    found.forward.add("matmul", once)
    trained = 1 if plan.adapter_rank is None else 0
    found.backward.add("matmul", (1 + trained) * once)
    found.weight_gradients = trained * once
    found.forward.add("elementwise", (LOSS_PASSES[0] * logits + 2 * stream) / machine.memory)
    found.backward.add("elementwise", (LOSS_PASSES[1] * logits + 3 * stream) / machine.memory)
    if plan.chunked_loss:
        found.again.add("matmul", once)
    if plan.tensor_parallel > 1:
        gathered = setting.width * setting.tokens * spec.hidden_size
        found.forward.add("tensor_parallel", ring_pass(setting.tensor_group, gathered))
        found.backward.add("tensor_parallel", ring_pass(setting.tensor_group, gathered))
    found.parameters = elements
    return found


def embedding_pass(spec: ArchitectureSpec, setting: Setting) -> Pass:
    """A micro batch through the embedding: rows that are read, and gradients that are added."""
    plan, machine = setting.plan, setting.machine
    found = Pass(path="token_embedding")
    width = embedding_width(spec)
    stream = setting.stream_width * setting.tokens * width
    found.forward.add("elementwise", 2 * stream / machine.memory)
    found.backward.add("elementwise", 3 * stream / machine.memory)
    if plan.tensor_parallel > 1:
        found.forward.add("tensor_parallel", ring_pass(setting.tensor_group, stream))
    found.parameters = spec.vocab_size * width / plan.tensor_parallel
    return found
