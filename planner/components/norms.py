"""RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) and LayerNorm (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from planner.components.base import Component, Operation, SavedTensor, Tensor
from planner.quantities import Quantity


class RMSNorm(Component):
    """Scale by the root mean square; one weight a channel."""

    component: ClassVar[str] = "norm"
    kind: Literal["rms_norm"] = "rms_norm"
    epsilon: float = Field(default=1e-6, gt=0)
    zero_centered: bool = False
    """Whether the stored weight is added to one, as Gemma stores it."""

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
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
    """Subtract the mean, divide by the deviation; a weight and a bias a channel."""

    component: ClassVar[str] = "norm"
    kind: Literal["layer_norm"] = "layer_norm"
    epsilon: float = Field(default=1e-5, gt=0)
    bias: bool = True

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
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
