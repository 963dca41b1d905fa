"""The planner without a browser: ``python -m planner size|flops|cache|train|serve|fit|sensitivity|compare|… SPEC``.

SPEC is a YAML or JSON specification, a Hugging Face ``config.json``, the name of a preset, or ``-`` for standard input.
``--json`` prints data for scripts. Bad input ends with status 2 and one line on stderr.
``eval "$(python -m planner completion bash)"`` completes commands, options, presets and files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from planner.commands.common import (
    Rows,
    check_positive,
    plain_data,
    plan_from,
    read_spec,
    rows_of_parts,
    say_left_out,
    say_too_long,
    table,
)
from planner.commands.serving import fit, serve
from planner.completion import OF_A_SPEC, SHELLS, script
from planner.diff import Quantities, SpecDiff
from planner.errors import PlannerError
from planner.plans import Plan, ServingPlan, TrainingPlan
from planner.step_time.command import add_run_options, is_run, rows_of_run, run_of
from planner.units import bytes_text, count_text, flops_text, money_text, seconds_text


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        data, text = options.run(options)
    except (PlannerError, OSError) as error:
        print(f"planner {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        print(json.dumps(plain_data(data), ensure_ascii=False, indent=2) if options.json else text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what is left must not be flushed into a closed pipe at exit.
        sys.stdout = None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="planner", description="What language-model architectures cost, by arithmetic.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_OneLineParser)

    def command(name: str, run: Callable[[argparse.Namespace], tuple[Any, str]], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        spec: Any = made.add_argument(
            "spec",
            metavar="SPEC",
            nargs="+" if name == "compare" else None,
            help="a preset, a specification or a config.json; - reads one from standard input",
        )
        spec.complete = OF_A_SPEC
        made.add_argument("--json", action="store_true", help="print data instead of a table")
        made.set_defaults(run=run)
        return made

    sized = command("size", _size, "parameters, by component or tensor by tensor")
    sized.add_argument("--tensors", action="store_true", help="list every tensor")
    counted = command("flops", _flops, "FLOPs of a pass")
    counted.add_argument("--sequence-length", type=int, default=4096)
    counted.add_argument("--batch-size", type=int, default=1)
    counted.add_argument("--training", action="store_true", help="forward and backward")
    cached = command("cache", _cache, "bytes that generation keeps")
    cached.add_argument("--context-length", type=int, default=32_768)
    cached.add_argument("--batch-size", type=int, default=1)
    cached.add_argument("--dtype", default="bf16")
    cached.add_argument("--block-size", type=int, default=16, help="tokens a block of a paged cache (default 16)")
    cached.add_argument(
        "--windowed-pages",
        choices=("window", "context"),
        default="window",
        help="blocks of layers with windows: those of the window, or of the whole context",
    )
    for name, run, about in (
        ("train", _train, "memory and time of a training step, and of a run"),
        ("serve", serve, "memory and time of serving on one device or several"),
    ):
        planned = command(name, run, about)
        _add_settings(planned)
        if name == "train":
            add_run_options(planned)
    fitted = command("fit", fit, "which devices hold it, by usable memory")
    fitted.add_argument("--device", help="one device by its id; absent: the whole catalogue")
    fitted.add_argument("--training", action="store_true", help="a training step instead of serving")
    _add_settings(fitted)
    budget = command("budget", _budget, "tokens, FLOPs, time and money of a training run")
    budget.add_argument("--tokens", type=float, help="absent: twenty a parameter")
    budget.add_argument("--sequence-length", type=int, default=4096)
    budget.add_argument("--device")
    budget.add_argument("--devices", type=int, default=1)
    budget.add_argument("--utilisation", type=float, default=0.4, help="share of the dense peak (default 0.4)")
    budget.add_argument("--precision", default="bf16")
    compared = command("compare", _compare, "several designs against the first")
    compared.add_argument("--sequence-length", type=int, default=4096)
    compared.add_argument("--context-length", type=int, default=32_768)
    swung = command("sensitivity", _sensitivity, "which setting changes a number, and how far one goes")
    swung.add_argument("--output", help="the number (default inference_memory)")
    swung.add_argument("--first", type=int, default=15, help="fields to print (default 15)")
    swung.add_argument("--largest", metavar="FIELD", help="instead: the greatest value of a field, such as num_layers")
    swung.add_argument("--device", help="with --largest: the device that everything has to fit")
    swung.add_argument("--at-most", type=float, help="with --largest: the bound of --output")
    swung.add_argument("--training", action="store_true", help="settings are those of training")
    _add_settings(swung)
    explained = command("explain", _explain, "a number opened into its terms")
    explained.add_argument("quantity", metavar="QUANTITY")
    explained.add_argument("--block", help="one block, such as layer_groups[0].layers[0].sequence_mixer")
    explained.add_argument("--depth", type=int, default=2, help="levels of terms to print (default 2)")
    _add_settings(explained)
    command("import", _import, "a Hugging Face configuration as a specification in YAML")
    command("export", _export, "a specification as a Hugging Face configuration")
    about = "what completes the command line in a shell, for eval"
    completed = commands.add_parser("completion", help=about, description=about)
    completed.add_argument("shell", choices=SHELLS)
    completed.set_defaults(run=lambda options: (None, script(parser, options.shell)), json=False)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a field of the plan, such as precision=bf16_autocast",
    )


def _size(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.sizing import size

    loaded = read_spec(options.spec)
    sized = size(loaded.spec)
    counts = sized.parameters
    data: dict[str, Any] = {"parameters": plain_data(counts), "status": "exact", **say_left_out(loaded)}
    rows: Rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.by_component.items()]
    rows += [("total", f"{counts.total:,}"), ("active a token", f"{counts.active:,}")]
    if options.tensors:
        data["tensors"] = [{"name": t.name, "shape": list(t.shape), "count": t.count} for t in sized.tensors]
        rows = [(t.name, "×".join(str(extent) for extent in t.shape), f"{t.count:,}") for t in sized.tensors]
    return data, table(rows)


def _flops(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.compute import flops

    check_positive(options, "sequence_length", "batch_size")
    spec = read_spec(options.spec).spec
    say_too_long(spec, options.sequence_length)
    counted = flops(spec, options.sequence_length, options.batch_size, options.training)
    rows: Rows = [("", "counted", "needed")]
    for name, count in counted.by_component.items():
        rows.append((name.replace("_", " "), flops_text(count), flops_text(counted.needed_by_component[name])))
    rows.append(("total", flops_text(counted.total), flops_text(counted.needed_total)))
    return {**plain_data(counted), "status": "exact"}, table(rows)


def _cache(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.cache import cache_use

    check_positive(options, "context_length", "batch_size", "block_size")
    length, batch, dtype = options.context_length, options.batch_size, options.dtype
    spec = read_spec(options.spec).spec
    say_too_long(spec, length)
    use = cache_use(spec, length, batch, dtype, options.block_size, options.windowed_pages)
    data = {
        "cache_bytes": use.ideal_bytes,
        **plain_data(use),
        "context_length": length,
        "batch_size": batch,
        "dtype": dtype,
        "block_size": options.block_size,
        "windowed_pages": options.windowed_pages,
    }
    rows: Rows = [
        (f"cache at {length:,} tokens", bytes_text(use.ideal_bytes), f"{use.ideal_bytes:,} bytes", "exact"),
        ("allocated", bytes_text(use.allocated_bytes), f"{use.allocated_bytes:,} bytes", "modelled"),
    ]
    return data, f"{table(rows)}\nWritten in {use.scheme}.\n{use.assumption}"


def _train(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.training import estimate_training
    from planner.uncertainty import of_training

    plan = plan_from(TrainingPlan, options.settings)
    spec = read_spec(options.spec).spec
    say_too_long(spec, plan.sequence_length)
    estimate = estimate_training(spec, plan)
    rows = [*rows_of_parts(estimate.memory.parts), ("most is alive at", estimate.memory.peak.name, "")]
    data = {**plain_data(estimate), "parts": estimate.memory.parts}
    data["memory"]["total_bytes"] = estimate.memory.total_bytes
    data["changes"] = plain_data(estimate.changes)
    bounds = of_training(spec, plan, estimate.memory)
    text = [table(rows), bounds.text]
    if estimate.time.seconds is not None:
        spent = {part: seconds for part, seconds in estimate.time.parts.items() if seconds > 0}
        text.append(table([(part.replace("_", " "), seconds_text(seconds)) for part, seconds in spent.items()]))
    text.append(estimate.time_note)
    if estimate.changes:
        changes: Rows = [
            (", ".join(f"{name}={value}" for name, value in change.fields.items()), bytes_text(change.together_bytes))
            for change in estimate.changes
        ]
        text.append(f"What would make it fit, one after the other, the cheapest first:\n{table(changes)}")
    if is_run(options):
        run = run_of(options, estimate.time, plan.hardware)
        data["run"] = {**plain_data(run), "total_seconds": run.total_seconds, "goodput": run.goodput}
        text += [table(rows_of_run(run)), *run.notes]
    return {**data, "uncertainty": plain_data(bounds)}, "\n".join(text)


def _sensitivity(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.sensitivity import PLANS, largest, output_of, tornado

    check_positive(options, "first")
    output = options.output or (None if options.device else "inference_memory")
    wanted = PLANS[output_of(output).plan] if output is not None else None
    plan_class = wanted or (TrainingPlan if options.training else ServingPlan)
    plan = plan_from(plan_class, options.settings)
    spec = read_spec(options.spec).spec
    if options.largest is not None:
        limit = largest(spec, options.largest, plan, output=output, at_most=options.at_most, device=options.device)
        value = "none" if limit.value is None else f"{limit.value:,}"
        return limit, f"{limit.field}: {value}\n{limit.reason}"
    if output is None or options.at_most is not None:
        raise PlannerError.of(
            "A device or a bound belongs to one field.", path="--largest", remedy="Name the field.", code="no_field"
        )
    found = tornado(spec, output, plan)
    texts: dict[str, Callable[[float], str]] = {"bytes": bytes_text, "flops": flops_text, "seconds": seconds_text}
    write = texts.get(found.unit, count_text)
    rows: Rows = [("field", "now", "least", "with", "most", "with")]
    for swing in found.swings[: options.first]:
        ends = (write(swing.low), str(swing.low_value), write(swing.high), str(swing.high_value))
        rows.append((swing.field, str(swing.value), *ends))
    left = len(found.swings) - options.first
    notes = [f"{output}: {write(found.base)} as it is"]
    notes += [f"{left} fields more do less"] if left > 0 else []
    return found, "\n".join([table(rows), *notes, f"{len(found.unmoved)} fields change nothing of it"])


def _budget(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.scaling import training_budget

    budget = training_budget(
        read_spec(options.spec).spec,
        _tokens(options.tokens),
        options.sequence_length,
        options.device,
        options.devices,
        options.utilisation,
        options.precision,
    )
    rows: Rows = [
        ("parameters (active)", count_text(budget.parameters)),
        ("tokens", f"{count_text(budget.tokens)} ({budget.tokens_per_parameter:.3g} a parameter)"),
        ("training FLOPs", flops_text(budget.flops)),
        ("6ND", flops_text(budget.flops_6nd)),
    ]
    for reading in budget.laws:
        rows.append((f"best tokens, {reading.law.name}", count_text(reading.optimal_tokens)))
        rows.append((f"loss, {reading.law.name}", f"{reading.loss:.3f} nats"))
    if budget.seconds is not None and budget.device is not None and budget.device_hours is not None:
        assumed = f"{budget.devices} × {budget.device.id} at {budget.utilisation:.0%} of {budget.precision} peak"
        rows.append((f"time on {assumed}", seconds_text(budget.seconds)))
        rows.append(("device hours", f"{budget.device_hours:,.0f}"))
    if budget.cost_usd is not None:
        rows.append(("cost", money_text(budget.cost_usd)))
    return budget, "\n".join(
        [table(rows), *budget.notes, "Approximated: a rule, two fitted laws and an assumed share."]
    )


def _tokens(written: float | None) -> int | None:
    """A number of tokens, which may be written as 1.5e12."""
    if written is None:
        return None
    if not math.isfinite(written):
        raise PlannerError.of(
            f"{written} is no number of tokens.", path="--tokens", remedy="Write one such as 1.5e12.", code="no_number"
        )
    return int(written)


def _compare(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.comparison import ComparisonSettings, compare_specs
    from planner.diff import diff

    check_positive(options, "sequence_length", "context_length")
    specs = [read_spec(name).spec for name in options.spec]
    for spec in specs:
        say_too_long(spec, max(options.sequence_length, options.context_length))
    settings = ComparisonSettings(context_length=options.context_length, sequence_length=options.sequence_length)
    compared = compare_specs(specs, settings)
    texts: dict[str, Callable[[float], str]] = {"bytes": bytes_text, "flops": flops_text, "seconds": seconds_text}
    rows: Rows = [("", *(spec.name for spec in specs), "status")]
    for row in compared:
        write = texts.get(row.unit, count_text)
        cells = []
        for value, change in zip(row.values, row.relative, strict=True):
            moved = f" ({change:+.1%})" if change else ""
            cells.append("not modelled" if value is None else f"{write(value)}{moved}")
        rows.append((row.quantity, *cells, row.status))
    first, *others = specs
    lengths = {"sequence_length": options.sequence_length, "context_length": options.context_length}
    changed = [diff(first, other, **lengths) for other in others]
    data = {"designs": [spec.name for spec in specs], "rows": compared, "changes": changed}
    texts_of_changes = [
        f"What changed from {first.name} to {other.name}, each field alone, and what fields do together:\n"
        + table(_change_rows(found))
        for other, found in zip(others, changed, strict=True)
    ]
    return data, "\n\n".join([table(rows), *texts_of_changes])


def _change_rows(found: SpecDiff) -> Rows:
    """Each changed field with what it did; with the interactions they sum to the last row."""

    def cells(effect: Quantities) -> tuple[str, str, str]:
        flops = f"{'-' if effect.flops < 0 else '+'}{flops_text(abs(effect.flops))}"
        held = f"{'-' if effect.cache_bytes < 0 else '+'}{bytes_text(abs(effect.cache_bytes))}"
        return f"{effect.parameters:+,}", flops, held

    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get("kind", "other fields"))
        return f"{len(value)} entries" if isinstance(value, list) else str(value)

    rows: Rows = [("field", "before", "after", "parameters", "FLOPs", "cache")]
    for change in found.changes:
        effects = cells(change.effect) if change.effect is not None else ("not alone", "", "")
        rows.append((change.path, shown(change.before), shown(change.after), *effects))
    for each in found.interactions:
        rows.append((" × ".join(path.rpartition(".")[2] for path in each.paths), "", "", *cells(each.effect)))
    return [*rows, ("all together", "", "", *cells(found.effect))]


def _explain(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.explain import PLAN_OF, explain, explain_block
    from planner.terms import Term

    plan: Plan | None = None
    if options.settings:
        wanted = PLAN_OF.get(options.quantity)
        if wanted is None and options.quantity in PLAN_OF:
            raise PlannerError.of(
                f"No plan changes {options.quantity}.", path="--set", remedy="Leave it out.", code="no_plan"
            )
        plan = plan_from(wanted, options.settings) if wanted is not None else None
    spec = read_spec(options.spec).spec
    if options.block:
        term = explain_block(spec, options.block, options.quantity, plan)
    else:
        term = explain(spec, options.quantity, plan)

    def lines(part: Term, level: int) -> Rows:
        rows: Rows = [("  " * level + part.name, f"{part.value:,}", part.status, f"= {part.text}")]
        if level < options.depth:
            for child in part.children:
                rows += lines(child, level + 1)
        return rows

    rows = lines(term, 0)
    names, numbers, words = (max(len(row[column]) for row in rows) for column in range(3))
    text = "\n".join(
        f"{name.ljust(names)}  {value.rjust(numbers)}  {status.ljust(words)}  {formula}"
        for name, value, status, formula in rows
    )
    where = ", ".join(f"{entry.symbol} = {entry.value:,}" for entry in term.symbols)
    text += f"\nin {term.unit} ({term.status})" + (f", with {where}" if where else "")
    return term.to_dict(), f"{text}\n{term.uncertainty.text}" if term.uncertainty is not None else text


def _import(options: argparse.Namespace) -> tuple[Any, str]:
    loaded = read_spec(options.spec)
    said = say_left_out(loaded)
    comments = "".join(f"# {sentence}\n" for sentence in loaded.left_out)
    return {**loaded.spec.to_dict(), **said}, comments + loaded.spec.to_yaml().rstrip()


def _export(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.interop.export import to_huggingface

    config = to_huggingface(read_spec(options.spec).spec)
    return config, json.dumps(config, ensure_ascii=False, indent=2)


if __name__ == "__main__":
    sys.exit(main())
