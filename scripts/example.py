"""The worked example: MHA, GQA, MoE and Mamba-2 variants of one budget, really trained and really timed.

    python -m scripts.example [--steps N] [--seeds N] [--budget PARAMETERS]

Designs, prototypes (a seed each), benchmarks and verifications go into the store as if they had been sent from a page.
What is there already is not run again, so that an interrupted run goes on where it stopped.
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
from db.records import JobState, Revision
from planner import ArchitectureSpec, BenchmarkPlan, PrototypePlan, VerifyPlan, parse_spec
from planner.plans import Plan, parse_plan
from runners.engines.local import revision_for, run_local

HIDDEN, LAYERS, HEADS = 512, 8, 8


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


def done(store: Store, revision: Revision, kind: str, plan: Plan) -> str | None:
    """The job of this plan that has succeeded on this revision, if there is one."""
    jobs = store.jobs.list([JobState.SUCCEEDED], kind=kind, revision_id=revision.id)
    # Read back, since an older version wrote a plan without the fields that have come since.
    return next((job.id for job in jobs if parse_plan(type(plan), dict(job.plan)) == plan), None)


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
            revisions = [store.designs.revision(revision_for(store, spec)) for spec in specs]
            work: list[tuple[ArchitectureSpec, Revision, str, Plan]] = []
            for spec, revision in zip(specs, revisions, strict=True):
                for seed in range(arguments.seeds):
                    plan: Plan = PrototypePlan(
                        parameter_budget=arguments.budget,
                        steps=arguments.steps,
                        batch_size=8,
                        sequence_length=128,
                        seed=seed,
                    )
                    work.append((spec, revision, "prototype", plan))
                benchmark = BenchmarkPlan(
                    parameter_budget=arguments.budget, sequence_length=128, max_repetitions=60, precision="fp32"
                )
                work.append((spec, revision, "benchmark", benchmark))
                work.append((spec, revision, "verify", VerifyPlan()))
            for number, (spec, revision, kind, plan) in enumerate(work, start=1):
                if done(store, revision, kind, plan) is not None:
                    continue
                name = f"{spec.name}, {kind}"
                if isinstance(plan, PrototypePlan):
                    name += f", seed {plan.seed}"
                print(f"{number} of {len(work)}: {name}", flush=True)
                job = run_local(store, kind, spec, plan, name, stop=threading.Event())
                if job.state is not JobState.SUCCEEDED:
                    print(f"{name}: {job.state}: {job.error}", file=sys.stderr)
                    return 1
            if arguments.record:
                found = [done(store, revision, kind, plan) for _, revision, kind, plan in work]
                record(store, [job_id for job_id in found if job_id is not None])
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the next run goes on from here.", file=sys.stderr)
        return 130
    print(f"Compare them at /compare?revisions={','.join(str(revision.id) for revision in revisions)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
