"""Mamba-2, the state space dual (Dao & Gu 2024, arXiv:2405.21060, sections 6 and 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

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
    refuse,
    split_by_heads,
)
from planner.components.mlp import READ_FROM_RESULT, Pointwise
from planner.components.narrowing import Scale, nearest_heads, stepped
from planner.quantities import Quantity, ceiling_divide, floor_divide, largest, rounded_up, smallest

DUAL_TILE = 2**20
"""Pairs of positions, of all heads, whose scores exist at a time; a test holds the runners to it."""

GATE_TILE = 2**18
"""Elements of the gated output that are in fp32 at a time, held likewise."""


class Mamba2(Component):
    """Heads with a scalar decay each, computed in chunks by matrix multiplications."""

    component: ClassVar[str] = "mamba2"
    family: ClassVar[str] = "state-space"
    grows: ClassVar[tuple[str, ...] | None] = ("num_heads",)
    reasons: ClassVar[dict[str, str]] = {
        "num_heads": "the ratio of all heads' channels to the hidden size is kept",
        "head_dim": "a multiple of 8",
        "n_groups": "a divisor that leaves each group a head",
        "norm_groups": "a divisor that splits the channels evenly",
        "state_size": "shrinks with the width, at least 16",
    }
    symbols: ClassVar[dict[str, str]] = {
        "num_heads": "n",
        "head_dim": "p",
        "state_size": "s",
        "n_groups": "g",
        "conv_kernel": "k",
        "chunk_size": "q",
    }
    tensor_parallel: ClassVar[tuple[str, ...] | None] = ("num_heads", "n_groups", "norm_groups")

    kind: Literal["mamba2"] = "mamba2"
    num_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    state_size: int = Field(gt=0)
    n_groups: int = Field(default=1, gt=0)
    """Groups of heads that share B and C."""
    conv_kernel: int = Field(default=4, gt=0)
    chunk_size: int = Field(default=256, gt=0)
    """Positions in a chunk: inside it the work is quadratic, across chunks linear."""
    use_bias: bool = False
    use_conv_bias: bool = True
    activation: Pointwise = "silu"
    """After the convolution; the gate is always a SiLU."""
    norm: bool = True
    """Whether an RMSNorm stands before the output projection, beside the gate."""
    norm_before_gate: bool = False
    """Whether the norm's result is gated, instead of the gated output normed."""
    norm_groups: int | None = Field(default=None, gt=0)
    """Groups of channels with a scale of their own in the norm; absent: ``n_groups``."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """Absent: that of the model's norms."""
    shortest_time_step: float | None = Field(default=None, gt=0)
    """Time steps are clamped to at least this; absent: they are not."""
    longest_time_step: float | None = Field(default=None, gt=0)
    projection_multipliers: tuple[float, float, float, float, float] | None = None
    """Factors on the projected gate, input, B, C and time steps (Falcon-H1, arXiv:2507.22448); absent: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_heads % self.n_groups:
            refuse(
                "n_groups",
                f"{self.num_heads} heads cannot be split into {self.n_groups} groups evenly.",
                f"Choose a divisor of {self.num_heads}.",
                "groups_not_divisible",
            )
        if self.norm_groups is not None and self.intermediate_size % self.norm_groups:
            refuse(
                "norm_groups",
                f"{self.intermediate_size} channels cannot be split into {self.norm_groups} groups evenly.",
                f"Choose a divisor of {self.intermediate_size}.",
                "groups_not_divisible",
            )
        shortest, longest = self.shortest_time_step, self.longest_time_step
        if shortest is not None and longest is not None and shortest > longest:
            refuse(
                "shortest_time_step",
                f"A time step of at least {shortest} cannot be at most {longest}.",
                "Choose a value below longest_time_step.",
                "empty_range",
            )
        return self

    def scaled(self, scale: Scale) -> Self:
        target = self.num_heads * self.head_dim * scale.width
        groups = max(
            group for group in range(1, self.n_groups + 1) if self.n_groups % group == 0 and group * 8 <= max(8, target)
        )
        head_dim, per_group = nearest_heads(self.head_dim, self.num_heads // groups, groups, target, scale.width)
        changed: dict[str, object] = {
            "num_heads": groups * per_group,
            "head_dim": head_dim,
            "n_groups": groups,
            "state_size": min(self.state_size, max(16, stepped(self.state_size, scale.width))),
        }
        if self.norm_groups is not None:
            changed["norm_groups"] = math.gcd(self.norm_groups, groups * per_group * head_dim)
        return self.model_copy(update=changed)

    def describe(self) -> str:
        return f"{self.num_heads:,} heads of {self.head_dim:,}, state {self.state_size:,}"

    @property
    def intermediate_size(self) -> Quantity:
        """Channels of all heads."""
        return self.num_heads * self.head_dim

    @property
    def convolution_channels(self) -> Quantity:
        """Channels that pass through the short convolution: the inputs, B and C."""
        return self.intermediate_size + 2 * self.n_groups * self.state_size

    @property
    def clamps_time_steps(self) -> bool:
        """Whether time steps are held within a range."""
        return self.shortest_time_step is not None or self.longest_time_step is not None

    def tensors(self, hidden_size: Quantity) -> Iterator[Tensor]:
        inner, channels = self.intermediate_size, self.convolution_channels
        projected = inner + channels + self.num_heads
        yield from linear("in_proj", self.component, projected, hidden_size, self.use_bias, "columns")
        yield Tensor("conv1d.weight", (channels, 1, self.conv_kernel), self.component, split="columns")
        if self.use_conv_bias:
            yield Tensor("conv1d.bias", (channels,), self.component, split="columns")
        for name in ("dt_bias", "A_log", "D"):
            yield Tensor(name, (self.num_heads,), self.component, dtype_class="float32", split="columns")
        if self.norm:
            yield Tensor("norm.weight", (inner,), self.component, split="columns")
        yield from linear("out_proj", self.component, hidden_size, inner, self.use_bias, "rows")

    def _chunk(self, sequence_length: Quantity) -> Quantity:
        """A sequence that is shorter than a chunk is one of its own length."""
        return smallest(self.chunk_size, sequence_length)

    def operations(self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity) -> Iterator[Operation]:
        tokens = batch_size * sequence_length
        inner, state, chunk = self.intermediate_size, self.state_size, self._chunk(sequence_length)
        yield projection(
            "input projection", self.component, tokens, hidden_size, inner + self.convolution_channels + self.num_heads
        )
        # Padded to whole chunks, which the matrix multiplications pay for.
        padded = batch_size * ceiling_divide(sequence_length, chunk) * chunk
        for name, width, heads in (
            ("scores in the chunk", state, self.n_groups),
            ("weighted inputs", self.head_dim, self.num_heads),
        ):
            flops = 2 * padded * chunk * width * heads
            yield Operation(name, self.component, flops, padded * (chunk + 1) * width * heads)
        # The last chunk's state is not read, and the first chunk has none before it.
        carried = batch_size * (ceiling_divide(sequence_length, chunk) - 1) * chunk
        yield projection("chunk states", self.component, carried, state, inner)
        yield projection("outputs from states", self.component, carried, state, inner)
        yield projection("output projection", self.component, tokens, inner, hidden_size)

    def saved_activations(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[SavedTensor]:
        tokens = batch_size * sequence_length
        inner, channels, heads = self.intermediate_size, self.convolution_channels, self.num_heads
        yield SavedTensor("input", tokens * hidden_size)
        # The gate is a view of the whole projection, unless it is multiplied by itself.
        projected = inner if self.projection_multipliers is not None else inner + channels + heads
        yield SavedTensor("projected input, gate and time steps", tokens * projected)
        yield SavedTensor("padded convolution input", batch_size * (sequence_length + self.conv_kernel - 1) * channels)
        yield SavedTensor("convolution filter", channels * self.conv_kernel, "copy")
        if self.activation not in READ_FROM_RESULT:
            yield SavedTensor("convolution output", tokens * channels)
        yield SavedTensor("scan input, B and C", tokens * channels)
        yield SavedTensor("time steps before softplus", tokens * heads, "float32")
        yield SavedTensor("time steps", tokens * heads, "float32")
        if self.clamps_time_steps:
            yield SavedTensor("time steps before clamping", tokens * heads, "float32")
        yield SavedTensor("decay rates and their exponential", 2 * heads, "float32")
        yield SavedTensor("scan output", tokens * inner)
        if not self.norm:
            yield SavedTensor("gated output", tokens * inner)
        else:
            groups = self.n_groups if self.norm_groups is None else self.norm_groups
            yield SavedTensor("inverse deviations of the groups", tokens * groups, "float32")
            yield SavedTensor("normalized output", tokens * inner)

    def kept(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity, how: Computation
    ) -> Iterator[SavedTensor]:
        return self.kept_by_heads(hidden_size, sequence_length, batch_size)

    def backward_moments(
        self, hidden_size: Quantity, sequence_length: Quantity, batch_size: Quantity
    ) -> Iterator[BackwardMoment]:
        """While the gate and the norm run backward (``runners.models.gated_norm``), and while the scan does, inside its
        chunks and between them (``runners.models.state_space_dual``)."""
        if self.norm:
            made = tuple(split_by_heads(self._made_by_norm(batch_size * sequence_length)))
            yield BackwardMoment(made, ("normalized output",), ready=("out_proj",))
        around = tuple(self._made_around(sequence_length, batch_size))
        read_before = ("scan output", "gated output", "inverse deviations of the groups", "normalized output")
        freed = (*read_before, "projected input, gate and time steps")
        for scan in (self._made_inside(sequence_length, batch_size), self._made_between(sequence_length, batch_size)):
            yield BackwardMoment(tuple(split_by_heads(iter((*around, *scan)))), freed, ready=("out_proj", "norm"))

    def _made_by_norm(self, tokens: Quantity) -> Iterator[SavedTensor]:
        """A tile is as many rows as have at most ``GATE_TILE`` elements, or one."""
        inner = self.intermediate_size
        tile = inner * smallest(tokens, largest(floor_divide(GATE_TILE, inner), 1))
        yield SavedTensor("gradients of the normalized output, the scan's and the gate", 3 * tokens * inner)
        yield SavedTensor("opened gate and gated output of a tile", 2 * tile)
        yield SavedTensor("gated output of a tile, its gradient and their product", 3 * tile, "float32")

    def _made_around(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        """What is there as long as the scan runs backward."""
        tokens, inner, heads = batch_size * sequence_length, self.intermediate_size, self.num_heads
        channels = self.convolution_channels
        padded = batch_size * rounded_up(sequence_length, self._chunk(sequence_length))
        yield SavedTensor("gradients of the gate and of the scan's output", 2 * tokens * inner)
        yield SavedTensor("gradient of the scan's inputs", padded * channels)
        yield SavedTensor("B and C by chunk", 2 * padded * self.n_groups * self.state_size)
        yield SavedTensor("decays, and gradients of them and of the time steps", 3 * padded * heads, "float32")
        yield SavedTensor("time steps, cast", padded * heads, "copy")
        # Copies of what the scan reads, where the last chunk is not full.
        copied = padded * smallest(padded - tokens, 1)
        yield SavedTensor("scan inputs and the output's gradient, padded", copied * (channels + inner))
        yield SavedTensor("time steps, padded", copied * heads, "float32")

    def _made_inside(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        """A tile is as many chunks as have at most ``DUAL_TILE`` pairs of positions, or one."""
        chunk, heads = self._chunk(sequence_length), self.num_heads
        chunks = batch_size * ceiling_divide(sequence_length, chunk)
        tile = chunk * smallest(chunks, largest(floor_divide(DUAL_TILE, chunk * chunk * heads), 1))
        squares, scores = tile * chunk * heads, tile * chunk * self.n_groups
        yield SavedTensor("decays between positions of a tile", squares, "float32")
        yield SavedTensor("decays between positions of a tile, cast", squares, "copy")
        yield SavedTensor("gradient of the weights of a tile", squares)
        yield SavedTensor("scores of a tile and their gradient", 2 * scores)
        yield SavedTensor("scores of a tile in fp32", 2 * scores, "copy")
        yield SavedTensor("scan input of a tile, weighted, and gradients", 3 * tile * self.intermediate_size)

    def _made_between(self, sequence_length: Quantity, batch_size: Quantity) -> Iterator[SavedTensor]:
        """All chunks but the last leave a state, and all but the first read one."""
        inner, chunk = self.intermediate_size, self._chunk(sequence_length)
        earlier = batch_size * (ceiling_divide(sequence_length, chunk) - 1)
        rows, states = earlier * chunk * inner, earlier * inner * self.state_size
        # Either what is read of the states is made again, or the states have gradients.
        yield SavedTensor("inputs to the states, and gradients of what is read", 2 * rows)
        yield SavedTensor("states, and what is read of them or their gradients", states + largest(rows, states))
        yield SavedTensor("B or C of the chunks that have states", earlier * chunk * self.n_groups * self.state_size)

    def cache(self, hidden_size: Quantity, context_length: Quantity) -> Iterator[CacheEntry]:
        yield CacheEntry("convolution", (self.convolution_channels, self.conv_kernel), grows=False)
        yield CacheEntry("state", (self.num_heads, self.head_dim, self.state_size), grows=False)
