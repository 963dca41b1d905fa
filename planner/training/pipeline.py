"""Pipeline stages: which layers a rank holds, and how many micro batches wait there for their backward pass.

1F1B (Narayanan et al. 2020, arXiv:2006.09503) and its interleaved form (Narayanan et al. 2021, arXiv:2104.04473,
section 2.2): rank r of p starts p - r micro batches before its first backward pass, or with v chunks a rank
2(p - r - 1) + (v - 1)p + 1 chunks. Zero-bubble schedule H1 (Qi et al. 2023, arXiv:2401.10241, section 3): passes for
weights are put off until a rank holds as much as the first one does, so p on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from planner.plans import TrainingPlan
from planner.quantities import Quantity, floor_divide, smallest
from planner.spec import ArchitectureSpec, Layer, LayerGroup
from planner.stages import layers_of_chunks

Run = tuple[Quantity, tuple[Layer, ...]]
"""How often a pattern of layers is repeated, and the pattern."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Layers that follow each other on one rank."""

    runs: tuple[Run, ...]
    is_first: bool
    """Whether the embedding stands before them."""
    is_last: bool
    """Whether the head stands behind them."""
    waiting: Quantity
    """Micro batches whose forward pass is done and whose backward pass is not, the current one included."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one pipeline rank holds."""

    rank: int
    chunks: tuple[Chunk, ...]

    @property
    def num_layers(self) -> Quantity:
        """Layers of all chunks."""
        total: Quantity = 0
        for chunk in self.chunks:
            for repeats, layers in chunk.runs:
                total = total + repeats * len(layers)
        return total


def micro_batches(plan: TrainingPlan) -> Quantity:
    """Micro batches a step and data-parallel rank."""
    if plan.global_batch_size is None:
        return 1
    return floor_divide(plan.global_batch_size, plan.micro_batch_size * plan.data_parallel)


def stages(spec: ArchitectureSpec, plan: TrainingPlan) -> Iterator[Stage]:
    """The ranks of a pipeline, from the embedding to the head, with the layers that :mod:`planner.stages` deals out."""
    ranks, virtual = plan.pipeline_parallel, plan.virtual_stages
    count = micro_batches(plan)
    if ranks == 1:
        runs = tuple((group.repeats, group.layers) for group in spec.layer_groups)
        yield Stage(0, (Chunk(runs, True, True, 1),))
        return
    layers = [layer for _, layer in spec.iterate_layers()]
    ends = [0, *accumulate(layers_of_chunks(len(layers), plan))]
    for rank in range(ranks):
        waiting = _waiting(rank, plan, count)
        chunks = []
        for index, held in enumerate(waiting):
            place = index * ranks + rank
            own = layers[ends[place] : ends[place + 1]]
            chunks.append(Chunk(runs_of(own), place == 0, place == ranks * virtual - 1, held))
        yield Stage(rank, tuple(chunks))


def _waiting(rank: int, plan: TrainingPlan, count: Quantity) -> list[Quantity]:
    """Micro batches that wait in each chunk of a rank when most do."""
    ranks, virtual = plan.pipeline_parallel, plan.virtual_stages
    if plan.pipeline_schedule == "zero_bubble":
        return [smallest(count, ranks)]
    if virtual == 1:
        return [smallest(count, ranks - rank)]
    started = min(2 * (ranks - rank - 1) + (virtual - 1) * ranks + 1, count * virtual)
    held = [0] * virtual
    for index in range(started):
        held[index // ranks % virtual] += 1
    return list(held)


def runs_of(layers: list[Layer]) -> tuple[Run, ...]:
    """Layers as runs of equal ones."""
    runs: list[Run] = []
    for layer in layers:
        if runs and runs[-1][1][0] is layer:
            runs[-1] = (runs[-1][0] + 1, runs[-1][1])
        else:
            runs.append((1, (layer,)))
    return tuple(runs)


def as_spec(spec: ArchitectureSpec, stage: Stage) -> ArchitectureSpec:
    """The specification with a stage's layers alone, one group a run."""
    groups = tuple(
        LayerGroup.model_construct(repeats=repeats, layers=layers)
        for chunk in stage.chunks
        for repeats, layers in chunk.runs
    )
    return spec.model_copy(update={"layer_groups": groups})


def from_spec(spec: ArchitectureSpec, like: Stage) -> Stage:
    """A stage as :func:`as_spec` wrote it, in whichever reading ``spec`` is."""
    groups = iter(spec.layer_groups)
    chunks = []
    for chunk in like.chunks:
        own = [next(groups) for _ in chunk.runs]
        chunks.append(replace(chunk, runs=tuple((group.repeats, group.layers) for group in own)))
    return Stage(like.rank, tuple(chunks))
