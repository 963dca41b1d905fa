"""What a building block must answer, and the small records it answers with.

A component is a frozen pydantic model. Its integer fields may be replaced by arrays or symbols with
``model_construct`` (see :mod:`planner.symbolic`), so every formula here must be free of branches on their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Self

from pydantic_core import PydanticCustomError

from planner.components.dependence import PositionSet, everything_before
from planner.components.narrowing import Scale
from planner.components.strict import Strict
from planner.quantities import Quantity, product


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model."""

    name: str
    shape: tuple[Quantity, ...]
    component: str
    """What it is counted under: ``attention``, ``mlp``, ``norm`` …"""
    active_share: tuple[Quantity, Quantity] = (1, 1)
    """Fraction of the tensor that one token touches, as numerator and denominator (experts: chosen, all)."""
    dtype_class: str = "weight"
    """``weight`` follows the precision of the model; ``float32`` is kept in full precision by convention."""
    is_matrix: bool = True
    """False for what has several dimensions, yet no product is taken with: norm weights and biases of each head."""
    split: str = "whole"
    """What tensor and expert parallelism divide: ``columns`` (the outputs), ``rows`` (the inputs), ``experts`` (the
    experts, and the width of each), or nothing, ``whole``."""

    @property
    def count(self) -> Quantity:
        """Number of elements."""
        return product(self.shape)


@dataclass(frozen=True, slots=True)
class Operation:
    """Matrix multiplications of the forward pass under one name."""

    name: str
    component: str
    flops: Quantity
    """As executed and counted by PyTorch's FlopCounterMode: masks save nothing, padding to chunks is paid."""
    needed_flops: Quantity
    """Without what a causal or windowed mask makes unnecessary."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One tensor kept per layer and sequence between generated tokens."""

    name: str
    shape: tuple[Quantity, ...]
    """Of what grows: heads where there are some, then positions, then channels."""
    grows: bool
    """Whether it grows with the context (KV) or stays (state, convolution)."""
    reserved: Quantity | None = None
    """Positions that are set aside where nothing is freed behind a window; absent: those that are kept."""
    runs: Quantity | None = None
    """Runs of neighbouring positions, at most, that are kept apart from the latest ones; absent: none."""

    @property
    def elements(self) -> Quantity:
        """Number of elements for one sequence."""
        return product(self.shape)


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """What the forward pass keeps for the backward pass under autograd."""

    name: str
    elements: Quantity
    dtype_class: str = "compute"
    """``compute`` (the type that matrices are multiplied in), ``residual`` (that of the residual stream, which autocast
    leaves in fp32), ``float32``, ``int64``, ``int32``, ``bool``; ``copy``: a copy of weights in the compute type, made
    only where that is not their own; ``fp8``: what a product in fp8 reads, ``fp8_copy`` where it is kept wide too."""
    split: str = "stream"
    """What divides it where a layer is spread over devices. ``stream``: sequence parallelism, by positions; ``tensor``:
    tensor parallelism, by heads or channels; ``rows``: tokens sent to experts, divided where each expert is whole;
    ``expert``: what such a token has inside an expert; ``whole``: nothing."""
    together: bool = False
    """Whether the operation that reads it reads the one before it too, so that the backward pass frees both at once."""
    core: bool = False
    """Whether it is of attention's scores alone: computed again where recomputation is selective."""


@dataclass(frozen=True, slots=True)
class BackwardMoment:
    """What is alive at one moment of a block's backward pass, beside what it had saved, with PyTorch's operators."""

    made: tuple[SavedTensor, ...]
    freed: tuple[str, ...] = ()
    """Saved tensors that are gone by then, by name."""
    ready: tuple[str, ...] = ()
    """Parameters whose gradients are made by then; the start of their names."""
    fresh: tuple[str, ...] = ()
    """Parameters whose gradients have just been made, in the type that matrices are multiplied in."""
    cast: tuple[str, ...] = ()
    """Parameters whose gradients are there in that type and, where it is another, in their own."""
    copied: tuple[str, ...] = ()
    """Parameters whose gradients are there twice in their own type, as autograd copies a transposed one."""


@dataclass(frozen=True, slots=True)
class Computation:
    """How a forward pass computes, as far as it changes what is kept."""

    eager_attention: bool = False
    """Attention keeps its scores, in place of one statistic a row."""
    dropout: bool = False
    """Weights of eager attention are dropped: a mask and the rest are kept."""
    key_length: Quantity | None = None
    """Keys that each query meets, where a sequence is divided over devices; absent: as many as there are queries."""
    pads_heads: bool = True
    """Fused attention wants queries, keys and values of one width."""
    weighs_inside: bool = False
    """An expert's weight multiplies what is activated, so that its output is not kept."""
    keeps_exchanged: bool = False
    """Attention's output is kept as it was before the devices of one sequence exchanged it."""


FUSED = Computation()
"""As :meth:`Component.saved_activations` has it."""


class Component(Strict):
    """A building block of a layer: its fields, its checks and its arithmetic.

    ``hidden_size`` is the width of the residual stream, ``sequence_length`` and ``batch_size`` count tokens and
    sequences; tensors are counted in elements, operations in FLOPs (a multiply-add is two).
    """

    component: ClassVar[str] = ""
    """The name that parameters, FLOPs and colours go under."""
    family: ClassVar[str] = "other"
    """What people tell apart at a glance, and a diagram by colour: ``attention``, ``latent``, ``linear`` (linear in the
    length: linear attention, delta rules, convolutions), ``state-space``, ``mlp``, ``experts``."""
    grows: ClassVar[tuple[str, ...] | None] = None
    """Fields that are multiplied with the stream where a model grows in width; ``None``: nobody has said yet."""
    widths: ClassVar[tuple[str, ...]] = ()
    """Fields that a prototype has in proportion to the width of the stream."""
    reasons: ClassVar[dict[str, str]] = {}
    """Why a prototype has another value in a field, where it is no width."""
    symbols: ClassVar[dict[str, str]] = {}
    """Short names of fields in formulas, where the field has one by custom."""
    tensor_parallel: ClassVar[tuple[str, ...] | None] = None
    """Fields that tensor parallelism divides; ``None``: nobody has said how the block is divided."""
    context_parallel: ClassVar[bool] = False
    """Whether the positions of a sequence may lie on several devices."""

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        """The parameters, with names relative to the component."""
        raise NotImplementedError

    def buffers(self, hidden_size: Quantity) -> Iterator[Tensor]:
        """Persistent buffers: in the state dict, but no parameters."""
        return iter(())

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        """The matrix multiplications of one forward pass."""
        raise NotImplementedError

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """What autograd keeps for the backward pass, with fused attention; each tensor once.

        A mixer lists its input, which it owns; its output belongs to what reads it.
        """
        raise NotImplementedError

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        """The same as :meth:`saved_activations` for another way to compute, in the order of the forward pass."""
        return self.saved_activations(hidden_size, sequence_length, batch_size)

    def kept_by_heads(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """:meth:`saved_activations` of a block that tensor parallelism divides by heads, all but its input."""
        return split_by_heads(self.saved_activations(hidden_size, sequence_length, batch_size))

    def summed_inside(self) -> tuple[Quantity, Quantity]:
        """Elements a token that tensor-parallel ranks sum inside the block, forward and backward, beside the stream."""
        return 0, 0

    def made_by_heads(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """The first moment of the backward pass of such a block."""
        made = self.backward_working_set(hidden_size, sequence_length, batch_size)
        yield BackwardMoment(tuple(split_by_heads(made)))

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """The moments of the backward pass at which most is alive; unless a component knows better, its first one."""
        yield BackwardMoment(tuple(self.backward_working_set(hidden_size, sequence_length, batch_size)))

    def backward_working_set(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        """What the backward pass makes while all that was saved is still kept.

        Unless a component knows better: a gradient for every saved tensor of the compute type, and the temporaries.
        """
        for saved in self.saved_activations(hidden_size, sequence_length, batch_size):
            if saved.dtype_class == "compute":
                yield saved
        yield from self.backward_temporaries(sequence_length, batch_size)

    def backward_temporaries(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        """What the backward pass makes and drops besides gradients of saved tensors: states computed again, for one."""
        return iter(())

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        """What is kept for one sequence of ``context_length`` tokens while generating."""
        return iter(())

    def reads(self, chosen: PositionSet) -> PositionSet:
        """Positions whose inputs the outputs at the chosen positions depend on, the chosen ones included.

        Unless a component knows better: itself alone where nothing is kept between tokens, else all before it.
        """
        keeps = next(iter(self.cache(1, 1)), None) is not None
        return everything_before(chosen) if keeps else chosen

    def under(self, positions: str) -> Component:
        """The same block as it computes in a model with positions of this kind, where they change what is kept."""
        return self

    def check_under(self, positions: Any) -> None:
        """Refuse what contradicts the model's positions; the field is one of its own, or ``positions`` and theirs."""

    def narrowed(self, width: float) -> Self:
        """The same block, in numbers, for a stream that is ``width`` times as wide; :attr:`widths` are seen to."""
        return self

    def scaled(self, scale: Scale) -> Self:
        """The same block, in numbers, as a prototype of that scale has it; :attr:`reasons` say why."""
        present = {name: getattr(self, name) for name in self.widths}
        return self.narrowed(scale.width).model_copy(
            update={name: scale.width_of(value) for name, value in present.items() if value is not None}
        )

    def parts(self) -> Iterator[tuple[str, Component]]:
        """The blocks that compute, each with the end of its path: itself, or those that it only brings together."""
        yield "", self

    def with_parts(self, change: Callable[[Component], Component]) -> Component:
        """The same block with each of its :meth:`parts` changed."""
        return change(self)

    def variety(self) -> str:
        """What tells it from others of its kind, in a few words: ``grouped-query, window 4,096``; empty: nothing."""
        return ""

    def describe(self) -> str:
        """Its sizes in a few words: ``32 heads, 8 KV, 128 wide``; here the first required ones under their names."""
        fields = type(self).model_fields
        sizes = [name for name in fields if type(getattr(self, name)) is int]
        named = [name for name in sizes if fields[name].is_required()] or sizes
        return ", ".join(f"{name.replace('_', ' ')} {getattr(self, name):,}" for name in named[:3])

    @property
    def expert_span(self) -> float:
        """By how much the number of its experts may be divided; 1 for a block without."""
        return 1.0


def linear(
    name: str, component: str, outputs: Quantity, inputs: Quantity, bias: bool = False, split: str = "whole"
) -> Iterator[Tensor]:
    """The tensors of a dense projection, ``weight`` (outputs, inputs) and ``bias`` (outputs).

    ``split``: which of the two tensor parallelism divides. The bias goes with the outputs.
    """
    yield Tensor(f"{name}.weight", (outputs, inputs), component, split=split)
    if bias:
        yield Tensor(f"{name}.bias", (outputs,), component, split="columns" if split == "columns" else "whole")


def split_by_heads(tensors: Iterator[SavedTensor], whole: tuple[str, ...] = ()) -> Iterator[SavedTensor]:
    """Tensors of a block that tensor parallelism divides by heads or channels, all but its input and the ``whole``."""
    for tensor in tensors:
        if tensor.name != "input":
            tensor = replace(tensor, split="whole" if tensor.name in whole else "tensor")
        yield tensor


def projection(name: str, component: str, tokens: Quantity, inputs: Quantity, outputs: Quantity) -> Operation:
    """A dense projection of ``tokens`` rows: two FLOPs a weight and a token, all of it needed."""
    flops = 2 * tokens * inputs * outputs
    return Operation(name, component, flops, flops)


def refuse(field: str, message: str, remedy: str, code: str) -> NoReturn:
    """Raise a validation error that stands at ``field`` of the component being checked."""
    raise PydanticCustomError(
        code,
        "{message}",
        {"message": message, "field": field, "remedy": remedy},
    )
