"""Mamba-1, a selective state space model (Gu & Dao 2023, arXiv:2312.00752, algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from planner.components.base import (
    BackwardMoment,
    CacheEntry,
    Component,
    Computation,
    Operation,
    SavedTensor,
    Tensor,
    linear,
    projection,
    split_by_heads,
)
from planner.components.mlp import READ_FROM_RESULT, Pointwise
from planner.components.narrowing import Scale
from planner.quantities import Quantity, ceiling_divide, floor_divide, largest, rounded_up, smallest

SCAN_TILE = 2**19
"""Elements of (positions, channels, state) that the scan works on at a time: about what a processor's cache holds."""


class Mamba1(Component):
    """Gated selective scan; ``intermediate_size`` channels with ``state_size`` states each."""

    component: ClassVar[str] = "mamba1"
    family: ClassVar[str] = "state-space"
    grows: ClassVar[tuple[str, ...] | None] = ("intermediate_size", "time_step_rank")
    widths: ClassVar[tuple[str, ...]] = ("intermediate_size",)
    reasons: ClassVar[dict[str, str]] = {"time_step_rank": "the ratio to the hidden size is kept"}
    symbols: ClassVar[dict[str, str]] = {
        "intermediate_size": "e",
        "state_size": "s",
        "conv_kernel": "k",
        "time_step_rank": "r_dt",
        "chunk_size": "q",
    }

    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("intermediate_size",)
    """By channels; what time steps, B and C are made from is summed over all (``x_proj`` of GPT-NeoX and vLLM)."""

    kind: Literal["mamba1"] = "mamba1"
    intermediate_size: int = Field(gt=0)
    state_size: int = Field(gt=0)
    conv_kernel: int = Field(default=4, gt=0)
    time_step_rank: int = Field(gt=0)
    use_bias: bool = False
    use_conv_bias: bool = True
    activation: Pointwise = "silu"
    """After the convolution; the gate is always a SiLU."""
    parameter_norms: bool = False
    """RMSNorm of the time step and of B and C, as Jamba has it."""
    parameter_norm_weights: bool = True
    """Whether these norms have weights; FalconMamba's (arXiv:2410.05355) have none."""
    parameter_norm_epsilon: float | None = Field(default=None, gt=0)
    """Absent: that of the model's norms."""
    chunk_size: int = Field(default=32, gt=0)
    """Positions that the scan advances together; no effect on the result."""

    def scaled(self, scale: Scale) -> Self:
        rank = max(1, round(self.time_step_rank * scale.width))
        return super().scaled(scale).model_copy(update={"time_step_rank": rank})

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        inner, state, rank = self.intermediate_size, self.state_size, self.time_step_rank
        yield from linear("in_proj", self.component, 2 * inner, hidden_size, self.use_bias, "columns")
        yield Tensor("conv1d.weight", (inner, 1, self.conv_kernel), self.component, split="columns")
        if self.use_conv_bias:
            yield Tensor("conv1d.bias", (inner,), self.component, split="columns")
        yield from linear("x_proj", self.component, rank + 2 * state, inner, split="rows")
        yield from linear("dt_proj", self.component, inner, rank, True, "columns")
        yield Tensor("A_log", (inner, state), self.component, dtype_class="float32", split="columns")
        yield Tensor("D", (inner,), self.component, dtype_class="float32", split="columns")
        if self.parameter_norms and self.parameter_norm_weights:
            yield Tensor("dt_norm.weight", (rank,), self.component)
            yield Tensor("b_norm.weight", (state,), self.component)
            yield Tensor("c_norm.weight", (state,), self.component)
        yield from linear("out_proj", self.component, hidden_size, inner, self.use_bias, "rows")

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        inner, state, rank = self.intermediate_size, self.state_size, self.time_step_rank
        # The scan and the convolution are elementwise: FlopCounterMode counts matrix multiplications alone.
        yield projection("input projection", self.component, tokens, hidden_size, 2 * inner)
        yield projection("parameter projection", self.component, tokens, inner, rank + 2 * state)
        yield projection("time step projection", self.component, tokens, rank, inner)
        yield projection("output projection", self.component, tokens, inner, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        inner, parameters = self.intermediate_size, self.time_step_rank + 2 * self.state_size
        yield SavedTensor("input", tokens * hidden_size)
        yield SavedTensor("projected input and gate", tokens * 2 * inner)
        yield SavedTensor("padded convolution input", batch_size * (sequence_length + self.conv_kernel - 1) * inner)
        yield SavedTensor("convolution filter", inner * self.conv_kernel, "copy")
        if self.activation not in READ_FROM_RESULT:
            yield SavedTensor("convolution output", tokens * inner)
        yield SavedTensor("scan input", tokens * inner)
        yield SavedTensor("time step latent, B and C", tokens * parameters)
        if self.parameter_norms:
            yield SavedTensor("inverse deviations", tokens * 3, "float32")
            yield SavedTensor("normalized time step latent, B and C", tokens * parameters)
        yield SavedTensor("time steps before softplus", tokens * inner, "float32")
        yield SavedTensor("time steps", tokens * inner, "float32")
        yield SavedTensor("decay rates and their exponential", 2 * inner * self.state_size, "float32")
        chunks = batch_size * ceiling_divide(sequence_length, smallest(self.chunk_size, sequence_length))
        yield SavedTensor("states before the chunks", chunks * inner * self.state_size, "float32")
        yield SavedTensor("scan output", tokens * inner)
        yield SavedTensor("gated output", tokens * inner)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        saved = self.saved_activations(hidden_size, sequence_length, batch_size)
        latent = "time step latent, B and C"
        return split_by_heads(saved, whole=(latent, f"normalized {latent}", "inverse deviations"))

    def summed_inside(self) -> tuple[Quantity, Quantity]:
        given = self.time_step_rank + 2 * self.state_size  # by x_proj
        return given, given

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """While the scan runs backward, tile by tile.

        A tile is at most ``SCAN_TILE`` elements, or one chunk of one sequence where that is more. On a GPU it may be 32
        times as large, which is 186 MiB more.
        """
        tokens, inner, state = batch_size * sequence_length, self.intermediate_size, self.state_size
        chunk = smallest(self.chunk_size, sequence_length)
        padded = batch_size * rounded_up(sequence_length, chunk)
        one = chunk * inner * state
        together = largest(floor_divide(SCAN_TILE, one), 1)
        sequences = smallest(batch_size, together)
        wide = smallest(largest(floor_divide(together, sequences), 1), ceiling_divide(sequence_length, chunk))
        tile, carried = sequences * wide * one, sequences * (wide - 1) * one
        made = (
            SavedTensor("states, decays and gradients of a tile", 3 * tile, "float32"),
            SavedTensor("products of decays, where a tile has several chunks", carried, "float32"),
            SavedTensor("gradients of the scan's output, its input and the time steps", 3 * tokens * inner, "float32"),
            SavedTensor("input in fp32", 2 * padded * inner, "copy"),
            SavedTensor("gradients of the skip and of the gate", 2 * tokens * inner),
        )
        divided = tuple(split_by_heads(iter(made)))
        yield BackwardMoment(divided, ("scan output", "gated output"), ready=("out_proj",))

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (self.intermediate_size, self.conv_kernel), grows=False)
        yield CacheEntry("state", (self.intermediate_size, self.state_size), grows=False)
