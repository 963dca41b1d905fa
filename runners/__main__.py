"""The command line of the runners.

python -m runners worker
python -m runners run KIND --spec SPEC [--set KEY=VALUE] [--json]
python -m runners kernels report|bench [--json]
python -m runners export SPEC --pytorch FILE
python -m runners export SPEC --huggingface FOLDER [--checkpoint DIRECTORY]
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml

from planner.errors import PlannerError, UnsupportedPlan
from planner.plans import Plan, parse_plan
from runners import events
from runners.jobs.registry import JOBS, job_kind


def parse_settings(plan_class: type[Plan], pairs: Sequence[str]) -> Plan:
    """A plan from ``KEY=VALUE`` pairs, whose values are read as YAML."""
    data: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UnsupportedPlan.of(f"--set takes KEY=VALUE, not {pair!r}.", path=pair, code="not_a_setting")
        try:
            data[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UnsupportedPlan.of(f"{text!r} is no value.", path=key, code="not_a_value") from error
    return parse_plan(plan_class, data)


def show(event: events.Event) -> None:
    """An event as a line for people, on standard error."""
    match event:
        case events.Progress():
            left = "" if event.seconds_left is None else f", about {event.seconds_left:.0f} s left"
            print(
                f"  {event.done:,} of {event.total:,} {event.unit} {event.message}{left}", file=sys.stderr, flush=True
            )
        case events.Log() if event.level != "debug":
            print(f"  {event.message}", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Run one job here and now."""
    import planner
    from db.engine import open_store
    from db.records import JobState
    from runners.engines.local import run_local

    kind = job_kind(arguments.kind)
    spec = planner.load(arguments.spec)
    plan = parse_settings(kind.load_plan(), arguments.set)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    with open_store() as store:
        job = run_local(store, arguments.kind, spec, plan, arguments.name, show, stop)
        if job.state is JobState.QUEUED:  # stopped: nobody else is meant to go on with it
            job = store.jobs.request_cancel(job.id)
        results = store.results.list(job_id=job.id)
    if job.state is not JobState.SUCCEEDED:
        print(f"{arguments.kind}: {job.state}{f': {job.error}' if job.error else ''}", file=sys.stderr)
        return 130 if job.state is JobState.CANCELLED else 1
    for result in results:
        data = {"job": job.id, "result": result.id, "kind": result.kind, "values": dict(result.values)}
        if arguments.json:
            print(json.dumps({**data, "environment": dict(result.environment)}))
        else:
            print(yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False, allow_unicode=True))
    return 0


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def export(arguments: argparse.Namespace) -> int:
    """Write a model as one file of plain PyTorch, or as a folder that transformers loads."""
    from planner.presets import read

    try:
        loaded = read(arguments.spec)
        if arguments.pytorch is not None:
            from runners.export import export_pytorch

            arguments.pytorch.write_text(export_pytorch(loaded.spec), encoding="utf-8")
        else:
            from runners.models import build, save_huggingface
            from runners.training.checkpoint import load_weights

            model = build(loaded.spec)
            if arguments.checkpoint is not None:
                load_weights(arguments.checkpoint, model)
            save_huggingface(model, arguments.huggingface)
    except (ValueError, OSError) as error:  # a PlannerError is a ValueError
        print(f"export: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for sentence in loaded.left_out:
        print(f"  left out: {sentence}", file=sys.stderr)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 2 and one line on standard error for bad input."""
    parser = _OneLineParser(prog="python -m runners", description="Run jobs, or a worker; write a model out.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("worker", help="take jobs from the queue until stopped")
    one = commands.add_parser("run", help="run one job here and now")
    one.add_argument("kind", help=", ".join(JOBS))
    one.add_argument("--spec", required=True, help="a preset, a YAML or JSON specification, or a config.json")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the job's plan")
    one.add_argument("--name", help="the job's name")
    one.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    kernels = commands.add_parser("kernels", help="the Triton kernels: compiled for GPUs, or timed on one")
    kernels.add_argument("action", choices=("report", "bench"))
    kernels.add_argument("rest", nargs=argparse.REMAINDER)
    written = commands.add_parser("export", help="write a model as a Python file, or as a folder with its weights")
    written.add_argument("spec", help="a preset, a YAML or JSON specification, or a config.json")
    form = written.add_mutually_exclusive_group(required=True)
    form.add_argument("--pytorch", type=pathlib.Path, metavar="FILE", help="a Python file that needs PyTorch alone")
    form.add_argument("--huggingface", type=pathlib.Path, metavar="FOLDER", help="a folder that transformers loads")
    written.add_argument(
        "--checkpoint", type=pathlib.Path, metavar="DIRECTORY", help="where training left the weights; else random ones"
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "export":
        if arguments.pytorch is not None and arguments.checkpoint is not None:
            parser.error("a Python file holds no weights: --checkpoint goes with --huggingface")
        return export(arguments)
    if arguments.command == "kernels":
        status: int = importlib.import_module(f"runners.kernels.{arguments.action}").main(arguments.rest)
        return status
    # Kernels are compiled and timed on machines without a database, too.
    from db.errors import StoreError
    from runners.engines.worker import main as work

    try:
        return work() if arguments.command == "worker" else run(arguments)
    except (PlannerError, StoreError) as error:
        print(str(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
