"""How the layers of a model are dealt out to the stages of a pipeline, before anything is computed of them.

An interleaved pipeline has several chunks of layers a stage; chunk ``c`` of the network is on stage ``c % stages``.

Megatron-Core (``transformer_block.get_num_layers_to_build``) counts the embedding or the loss as a layer, or is told
how many layers the first and the last stage have. DeepSpeed's ``type:`` partition, as BLOOM was trained with, counts
what it is told to in the same way; its other partitions are lists of layers here.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import Problem
from planner.plans import TrainingPlan

_ENDS = {
    "account_for_embedding_in_pipeline_split": "the embedding",
    "account_for_loss_in_pipeline_split": "the loss",
}
_DEPTHS = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
SPLIT_FIELDS = ("pipeline_layers", *_ENDS, *_DEPTHS)
"""Fields of a plan that say how layers are dealt out."""


def chunk_count(plan: TrainingPlan) -> int:
    """Chunks of layers that follow each other in the network: one a stage, or several of an interleaved pipeline."""
    return plan.pipeline_parallel * plan.virtual_stages


def reduces_last(plan: TrainingPlan) -> bool:
    """Whether gradients stay whole until all micro batches are done, and only then are spread over replicas.

    ``torch.distributed.pipelining`` does so with FSDP2: its backward passes neither spread gradients nor let weights
    go, and an action behind the last of them does (``_PipelineStageBase.perform_reduce_grad``).
    """
    return plan.zero_stage >= 2 and plan.pipeline_parallel > 1


def layers_of_chunks(num_layers: int, plan: TrainingPlan) -> tuple[int, ...]:
    """Layers of each chunk, in the network's order; the plan's checks have found no problem.

    Where the plan says nothing: evenly; where layers do not divide, with embedding and head as a layer each, if that
    makes them; else as evenly as can be, the first chunks having one more.
    """
    chunks = chunk_count(plan)
    if plan.pipeline_layers:
        return plan.pipeline_layers
    first, last = plan.decoder_first_pipeline_num_layers, plan.decoder_last_pipeline_num_layers
    if first is not None or last is not None:
        return _between(num_layers, plan, first, last)
    before, behind = (
        int(plan.account_for_embedding_in_pipeline_split),
        int(plan.account_for_loss_in_pipeline_split),
    )
    if not before and not behind and num_layers % chunks and (num_layers + 2) % chunks == 0:
        before = behind = 1
    each, more = divmod(num_layers + before + behind, chunks)
    sizes = [each + (1 if chunk < more else 0) for chunk in range(chunks)]
    sizes[0] -= before
    sizes[-1] -= behind
    return tuple(sizes)


def _between(num_layers: int, plan: TrainingPlan, first: int | None, last: int | None) -> tuple[int, ...]:
    """The first and the last stage as they are told, all others alike; each stage's layers evenly in its chunks."""
    stages, virtual = plan.pipeline_parallel, plan.virtual_stages
    left = stages - (first is not None) - (last is not None)
    each = (num_layers - (first or 0) - (last or 0)) // max(left, 1)
    depths = [each] * stages
    if first is not None:
        depths[0] = first
    if last is not None:
        depths[-1] = last
    return tuple(depth // virtual for depth in depths) * virtual


def problems_of_stages(num_layers: int, plan: TrainingPlan) -> Iterator[Problem]:
    """What stands in the way of dealing out so many layers as a plan says."""
    said = [name for name in SPLIT_FIELDS if getattr(plan, name) not in (None, False, ())]
    stages, chunks = plan.pipeline_parallel, chunk_count(plan)
    if stages == 1:
        for name in said:
            yield Problem(name, "One stage has all layers.", "Leave it out, or raise pipeline_parallel.", "no_pipeline")
        return
    kinds = {"list" if name == "pipeline_layers" else "ends" if name in _ENDS else "depths" for name in said}
    if len(kinds) > 1:
        message = f"{' and '.join(said)} say different things of the same stages."
        yield Problem(said[-1], message, "Give one of them.", "two_splits")
        return
    if "list" in kinds:
        yield from _problems_of_list(num_layers, plan.pipeline_layers, chunks)
    elif "depths" in kinds:
        yield from _problems_of_depths(num_layers, plan)
    elif kinds and (num_layers + len(said)) % chunks:
        ends = " and ".join(_ENDS[name] for name in said)
        message = f"{num_layers} layers with {ends} cannot be dealt out evenly to {chunks} stages."
        yield Problem(said[0], message, "Leave it out, or give pipeline_layers.", "uneven_stages")
    elif num_layers < chunks and (num_layers + 2) % chunks:
        message = f"{num_layers} layers do not fill {chunks} parts of a pipeline."
        remedy = "Choose fewer stages, or fewer virtual ones."
        yield Problem("pipeline_parallel", message, remedy, "more_stages_than_layers")


def _problems_of_list(num_layers: int, sizes: tuple[int, ...], chunks: int) -> Iterator[Problem]:
    name, remedy = "pipeline_layers", f"Give {chunks} numbers that sum to {num_layers}."
    if len(sizes) != chunks:
        message = f"{len(sizes)} numbers of layers are given for {chunks} stages."
        yield Problem(name, message, remedy, "wrong_number_of_stages")
    elif sum(sizes) != num_layers:
        yield Problem(name, f"The stages have {sum(sizes)} layers, the model {num_layers}.", remedy, "wrong_layers")
    elif 0 in sizes[1:-1]:
        message = "A stage between the first and the last has no layers."
        yield Problem(name, message, "Give each of them one at least.", "empty_stage")


def _problems_of_depths(num_layers: int, plan: TrainingPlan) -> Iterator[Problem]:
    stages, virtual = plan.pipeline_parallel, plan.virtual_stages
    depths = [(name, getattr(plan, name)) for name in _DEPTHS if getattr(plan, name) is not None]
    for name, depth in depths:
        if depth % virtual:
            message = f"{depth} layers cannot be dealt out evenly to {virtual} chunks."
            yield Problem(name, message, f"Choose a multiple of {virtual}.", "uneven_stages")
            return
    left, rest = stages - len(depths), num_layers - sum(depth for _, depth in depths)
    if rest < left * virtual or (left == 0 and rest) or (left and rest % (left * virtual)):
        message = f"{rest} layers that are left cannot be dealt out evenly to {left * virtual} stages."
        yield Problem(depths[-1][0], message, "Choose others, or give pipeline_layers.", "uneven_stages")
