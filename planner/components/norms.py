"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) and LayerNorm (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.components.base import Component, Operation, SavedTensor, Tensor, refuse
from planner.quantities import Quantity


class RMSNorm(Component):
    """Scale by the root mean square, and by a weight a channel."""

    component: ClassVar[str] = "norm"
    kind: Literal["rms_norm"] = "rms_norm"
    epsilon: float = Field(default=1e-6, gt=0)
    zero_centered: bool = False
    """Whether the stored weight is added to one, as Gemma stores it."""
    has_weight: bool = True
    """Whether there is a learned weight a channel; without: no parameters."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zero_centered and not self.has_weight:
            refuse(
                "zero_centered",
                "There is no stored weight to add to one.",
                "Set zero_centered to false, or has_weight to true.",
                "no_norm_weight",
            )
        return self

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        if self.has_weight:
            yield Tensor("weight", (hidden_size,), self.component)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        return iter(())

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size, "residual")
        yield SavedTensor("inverse deviation", tokens, "float32")


class LayerNorm(Component):
    """Subtract the mean, divide by the deviation; then a weight and a bias a channel."""

    component: ClassVar[str] = "norm"
    kind: Literal["layer_norm"] = "layer_norm"
    epsilon: float = Field(default=1e-5, gt=0)
    bias: bool = True
    has_weight: bool = True
    """Whether there is a learned weight a channel; without, and without a bias: no parameters (OLMo; Groeneveld et al.
    2024, arXiv:2402.00838, section 2.1)."""
    zero_centered: bool = False
    """Whether the stored weight is added to one (Nemotron-4; arXiv:2402.16819)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zero_centered and not self.has_weight:
            refuse(
                "zero_centered",
                "There is no stored weight to add to one.",
                "Set zero_centered to false, or has_weight to true.",
                "no_norm_weight",
            )
        if self.bias and not self.has_weight:
            refuse(
                "bias",
                "A norm without a weight has no bias.",
                "Set bias to false, or has_weight to true.",
                "no_norm_weight",
            )
        return self

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        if self.has_weight:
            yield Tensor("weight", (hidden_size,), self.component)
        if self.bias:
            yield Tensor("bias", (hidden_size,), self.component)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        return iter(())

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        yield SavedTensor("input", tokens * hidden_size, "residual")
        yield SavedTensor("mean and inverse deviation", 2 * tokens, "float32")


Norm = Annotated[RMSNorm | LayerNorm, Field(discriminator="kind")]
