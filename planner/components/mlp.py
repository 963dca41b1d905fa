"""Feed-forward channel mixers: plain (two projections) and gated (three; Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.components.base import (
    BackwardMoment,
    Component,
    Operation,
    SavedTensor,
    Tensor,
    linear,
    projection,
    refuse,
)
from planner.quantities import Quantity

Pointwise = Literal[
    "silu",
    "gelu",
    "gelu_tanh",
    "relu",
    "relu_squared",
    "quick_gelu",
    "sigmoid",
    "tanh",
    "relu6",
    "leaky_relu",
    "mish",
    "hardswish",
    "laplace",
    "clipped_gelu",
    "sqrt_softplus",
    "linear",
]
"""Nonlinearities of one argument and without parameters."""

Activation = Literal[Pointwise, "clamped_swiglu"]
"""Those, and one that reads the gate and the up projection together: GPT-OSS's SwiGLU, whose gate is at most 7, whose
up projection is within ±7 and raised by one, and whose sigmoid is steeper by 1.702 (arXiv:2508.10925)."""

MLPActivation = Literal[Activation, "xielu"]
"""Those, and one with two parameters of its own: xIELU, ``a x² + x/2`` above zero and ``b (exp(x) - 1 - x) + x/2``
below, for learned ``a`` and ``b`` (arXiv:2411.13010)."""

READ_FROM_RESULT = frozenset({"relu", "sigmoid", "tanh", "linear"})
"""Activations whose derivative is computed from their result, so that their input need not be kept."""


def saved_inside(
    activation: MLPActivation, gated: bool, rows: Quantity, width: Quantity, split: str = "tensor", of: str = ""
) -> Iterator[SavedTensor]:
    """What is kept between the projections of ``rows`` rows through ``width`` channels; ``of`` whom, in its name."""
    if gated:
        yield SavedTensor(f"gate and up projections{of}", rows * 2 * width, split=split)
    elif activation not in READ_FROM_RESULT:
        yield SavedTensor(f"up projection{of}", rows * width, split=split)
    yield SavedTensor(f"activated{of}", rows * width, split=split)


def made_inside(gated: bool, rows: Quantity, width: Quantity, split: str = "tensor") -> SavedTensor:
    """What is alive when the activation of ``rows`` rows runs backward, once what it gave is freed.

    Behind a gate: the gate activated again, its product, and gradients of the product, the activated gate and the up
    projection; else the gradients of what came out and of what went in.
    """
    return SavedTensor("activated again, and gradients", (5 if gated else 2) * rows * width, split=split)


def check_gate(activation: MLPActivation, gated: bool) -> None:
    """Refuse an activation that needs a gate where there is none, or none where there is one."""
    if activation == "xielu" and gated:
        refuse(
            "activation",
            "xielu stands alone, without a gate.",
            "Set gated to false, or choose another activation.",
            "activation_without_gate",
        )
    if activation == "clamped_swiglu" and not gated:
        refuse(
            "activation",
            "clamped_swiglu reads a gate and an up projection, but there is no gate.",
            "Set gated to true, or choose another activation.",
            "activation_needs_gate",
        )


_WORDS = {
    "silu": ("SiLU", "SwiGLU"),
    "gelu": ("GELU", "GeGLU"),
    "gelu_tanh": ("GELU", "GeGLU"),
    "relu": ("ReLU", "ReGLU"),
    "relu_squared": ("ReLU²", "gated ReLU²"),
    "clamped_swiglu": ("clamped SwiGLU", "clamped SwiGLU"),
    "xielu": ("xIELU", "xIELU"),
}


def activation_words(activation: MLPActivation, gated: bool) -> str:
    """An activation as people call it, alone or beside a gate: ``SwiGLU``."""
    plain = activation.replace("_", " ")
    alone, with_gate = _WORDS.get(activation, (plain, f"gated {plain}"))
    return with_gate if gated else alone


class MLP(Component):
    """``down(activation(gate(x)) * up(x))``, or ``down(activation(up(x)))`` without a gate."""

    component: ClassVar[str] = "mlp"
    family: ClassVar[str] = "mlp"
    grows: ClassVar[tuple[str, ...] | None] = ("intermediate_size",)
    widths: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    symbols: ClassVar[dict[str, str]] = {"intermediate_size": "f"}
    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("intermediate_size",)
    context_parallel: ClassVar[bool] = True

    kind: Literal["mlp"] = "mlp"
    intermediate_size: int = Field(gt=0)
    gated: bool = True
    activation: MLPActivation = "silu"
    bias: bool = False
    gate_multiplier: float | None = Field(default=None, gt=0)
    """Factor on the gate before its activation (Falcon-H1)."""
    output_multiplier: float | None = Field(default=None, gt=0)
    """Factor on the output."""
    sub_norm: bool = False
    """An RMSNorm before the down projection (SubLN; arXiv:2210.06423)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_gate(self.activation, self.gated)
        if self.gate_multiplier is not None and not self.gated:
            refuse("gate_multiplier", "There is no gate to multiply.", "Remove it, or set gated to true.", "no_gate")
        return self

    def variety(self) -> str:
        return activation_words(self.activation, self.gated)

    def describe(self) -> str:
        return f"{self.intermediate_size:,}"

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        if self.gated:
            yield from linear("gate_proj", self.component, self.intermediate_size, hidden_size, self.bias, "columns")
        yield from linear("up_proj", self.component, self.intermediate_size, hidden_size, self.bias, "columns")
        yield from linear("down_proj", self.component, hidden_size, self.intermediate_size, self.bias, "rows")
        if self.activation == "xielu":
            yield Tensor("xielu.alpha_p", (1,), self.component)
            yield Tensor("xielu.alpha_n", (1,), self.component)
        if self.sub_norm:
            yield Tensor("sub_norm.weight", (self.intermediate_size,), self.component, split="columns")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        if self.gated:
            yield projection("gate projection", self.component, tokens, hidden_size, self.intermediate_size)
        yield projection("up projection", self.component, tokens, hidden_size, self.intermediate_size)
        yield projection("down projection", self.component, tokens, self.intermediate_size, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size)
        yield from saved_inside(self.activation, self.gated, tokens, self.intermediate_size)
        if self.sub_norm:
            yield SavedTensor("inverse deviation of what was activated", tokens, "float32")
            yield SavedTensor("normalized", tokens * self.intermediate_size, split="tensor")

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        if self.sub_norm:
            yield from super().backward_moments(hidden_size, sequence_length, batch_size)
            return
        tokens, width = batch_size * sequence_length, self.intermediate_size
        last, inner = ("down_proj",), SavedTensor("gradient of one projection", tokens * width, split="tensor")
        outer = SavedTensor("gradient of the input", tokens * hidden_size, split="whole")
        yield BackwardMoment((inner,), fresh=last)
        yield BackwardMoment((inner,), ("activated",), cast=last)
        yield BackwardMoment((made_inside(self.gated, tokens, width),), ("activated",), last)
        freed = ("activated", "gate and up projections", "up projection")
        rest = (inner,) if self.gated else ()
        yield BackwardMoment((*rest, inner, outer), freed, last, fresh=("up_proj",))
        yield BackwardMoment((*rest, outer), freed, last, cast=("up_proj",))
