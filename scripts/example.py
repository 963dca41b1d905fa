"""The worked example: MHA, GQA, MoE and Mamba-2 variants of one budget, really trained and really timed.

    python -m scripts.example [--steps N] [--seeds N] [--budget PARAMETERS]

Designs, prototypes (a seed each), benchmarks and verifications go into the store as if they had been sent from a page,
then one small job of every other kind. What is there already is not run again, so that an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from typing import Any

from db.engine import Store, open_store
from db.errors import StoreError
from db.example import record
from db.records import JobState
from planner import ArchitectureSpec, BenchmarkPlan, GeneratePlan, PrototypePlan, VerifyPlan, parse_spec
from planner.plans import CalibratePlan, KernelsPlan, Plan, parse_plan
from planner.presets import preset
from planner.probes import AttentionCostPlan, GradientNormsPlan, ReachPlan, RouterLoadPlan
from runners.engines.local import revision_for, run_local

HIDDEN, LAYERS, HEADS = 512, 8, 8
PROMPT = "def read(self, "


def variants() -> list[ArchitectureSpec]:
    """Four designs that differ in one part each; a prototype scales every one to the same total budget."""
    attention = {"kind": "attention", "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": 64}
    grouped = {**attention, "num_key_value_heads": 2}
    mamba = {"kind": "mamba2", "num_heads": 16, "head_dim": 64, "state_size": 64, "chunk_size": 64}
    mlp = {"kind": "mlp", "intermediate_size": 1408}
    experts = {"kind": "moe", "num_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 704}

    def stack(name: str, pattern: list[tuple[dict[str, Any], dict[str, Any]]]) -> ArchitectureSpec:
        layers = [{"sequence_mixer": sequence, "channel_mixer": channel} for sequence, channel in pattern]
        group = {"repeats": LAYERS // len(layers), "layers": layers}
        return parse_spec(
            {
                "name": name,
                "vocab_size": 256,
                "hidden_size": HIDDEN,
                "tie_word_embeddings": True,
                "layer_groups": [group],
            }
        )

    return [
        stack("Example MHA", [(attention, mlp)]),
        stack("Example GQA", [(grouped, mlp)]),
        stack("Example MoE", [(grouped, experts)]),
        stack("Example Mamba-2 hybrid", [(mamba, mlp), (mamba, mlp), (mamba, mlp), (attention, mlp)]),
    ]


Work = tuple[ArchitectureSpec, str, Plan]
"""A design, a kind of job, and its plan."""


def compared(spec: ArchitectureSpec, seeds: int, budget: int, steps: int) -> list[Work]:
    """What each design is compared by."""
    found: list[Work] = [
        (
            spec,
            "prototype",
            PrototypePlan(parameter_budget=budget, steps=steps, batch_size=8, sequence_length=128, seed=seed),
        )
        for seed in range(seeds)
    ]
    benchmark = BenchmarkPlan(parameter_budget=budget, sequence_length=128, max_repetitions=60, precision="fp32")
    return [*found, (spec, "benchmark", benchmark), (spec, "verify", VerifyPlan())]


def others(specs: Sequence[ArchitectureSpec], trained: Sequence[str], budget: int) -> list[Work]:
    """One small job of every other kind, on the design that shows most; ``trained`` are prototypes that can write."""
    mha, grouped, experts, hybrid = specs
    return [
        (mha, "generate", GeneratePlan(prototypes=tuple(trained), prompt=PROMPT, max_new_tokens=48)),
        (mha, "gradient_norms", GradientNormsPlan(steps=10)),
        (grouped, "attention_cost", AttentionCostPlan(hidden_size=128, last_context=2048)),
        (experts, "router_load", RouterLoadPlan(parameter_budget=budget)),
        (hybrid, "reach", ReachPlan(sequence_length=128)),
        # Reads no design, and is worth its numbers only on a machine with nothing else to do.
        (preset("gpt2").spec, "calibrate", CalibratePlan(precisions=("fp32",))),
        (mha, "kernels", KernelsPlan(architectures=(90,))),
    ]


def title(spec: ArchitectureSpec, kind: str, plan: Plan) -> str:
    """What a job is called."""
    name = f"{spec.name}, {kind.replace('_', ' ')}"
    return f"{name}, seed {plan.seed}" if isinstance(plan, PrototypePlan) else name


def done(store: Store, spec: ArchitectureSpec, kind: str, plan: Plan) -> str | None:
    """The job of this plan that has succeeded on this design, if there is one."""
    jobs = store.jobs.list([JobState.SUCCEEDED], kind=kind, revision_id=revision_for(store, spec))
    # Read back, since an older version wrote a plan without the fields that have come since.
    return next((job.id for job in jobs if parse_plan(type(plan), dict(job.plan)) == plan), None)


def run_all(store: Store, work: Sequence[Work]) -> list[str]:
    """The jobs of all that is asked, run where they were not; ``JobFailed`` names the first that fails."""
    found = []
    for number, (spec, kind, plan) in enumerate(work, start=1):
        job_id = done(store, spec, kind, plan)
        if job_id is None:
            name = title(spec, kind, plan)
            print(f"{number} of {len(work)}: {name}", flush=True)
            job = run_local(store, kind, spec, plan, name, stop=threading.Event())
            if job.state is not JobState.SUCCEEDED:
                raise JobFailed(f"{name}: {job.state}: {job.error}")
            job_id = job.id
        found.append(job_id)
    return found


class JobFailed(Exception):
    """A job of the example did not succeed."""


def main(argv: Sequence[str]) -> int:
    """Run what is missing, and say where to look."""
    parser = argparse.ArgumentParser(prog="python -m scripts.example", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=400_000)
    parser.add_argument("--record", action="store_true", help="write the results to the ready example of the pages")
    arguments = parser.parse_args(argv)
    specs = variants()
    try:
        with open_store() as store:
            revisions = [revision_for(store, spec) for spec in specs]
            work = [
                each for spec in specs for each in compared(spec, arguments.seeds, arguments.budget, arguments.steps)
            ]
            found = run_all(store, work)
            trained = [
                job_id
                for (_, _, plan), job_id in zip(work, found, strict=True)
                if isinstance(plan, PrototypePlan) and plan.seed == 0
            ]
            found += run_all(store, others(specs, trained, arguments.budget))
            if arguments.record:
                record(store, found)
    except (StoreError, JobFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    print(f"Compare them at /compare?revisions={','.join(map(str, revisions))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
