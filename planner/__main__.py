"""The planner without a browser: ``python -m planner size|flops|cache|train|serve|fit|sensitivity|compare|… SPEC``.

SPEC is a YAML or JSON specification, a Hugging Face ``config.json``, the name of a preset, or ``-`` for standard input.
``--json`` prints data for scripts. Bad input ends with status 2 and one line on stderr.
``eval "$(python -m planner completion bash)"`` completes commands, options, presets and files.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel

from planner.completion import OF_A_SPEC, SHELLS, script
from planner.components.strict import LARGEST_SIZE
from planner.diff import Quantities, SpecDiff
from planner.errors import PlannerError
from planner.plans import Plan, ServingPlan, TrainingPlan, parse_plan
from planner.presets import Loaded, read, read_stream, read_yaml
from planner.spec import LEFT_OUT, ArchitectureSpec, LearnedPositions
from planner.step_time.command import add_run_options, rows_of_run, run_of
from planner.units import bytes_text, count_text, flops_text, money_text, seconds_text

Rows = list[tuple[str, ...]]
PlanType = TypeVar("PlanType", bound=Plan)


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
        print(json.dumps(_plain(data), ensure_ascii=False, indent=2) if options.json else text)
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
        ("serve", _serve, "memory of serving on one device"),
    ):
        planned = command(name, run, about)
        _add_settings(planned)
        if name == "train":
            add_run_options(planned)
    fitted = command("fit", _fit, "which devices hold it, by usable memory")
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


def _read(spec: str) -> Loaded:
    """What a SPEC names."""
    return _standard_input() if spec == "-" else read(spec)


@functools.cache
def _standard_input() -> Loaded:
    """Read once, however often it is named."""
    return read_stream(sys.stdin.buffer, "Standard input")


def _plan(plan_class: type[PlanType], settings: Sequence[str]) -> PlanType:
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise PlannerError.of(
                f"{setting!r} sets nothing.", path="--set", remedy="Write KEY=VALUE.", code="bad_setting"
            )
        try:
            data[key] = read_yaml(value)
        except yaml.YAMLError as error:
            raise PlannerError.of(
                f"{value!r} is no value.", path=f"--set {key}", remedy="Quote it.", code="bad_setting"
            ) from error
    return parse_plan(plan_class, data)


def _positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise PlannerError.of(
                f"{getattr(options, name)} is no length or batch.",
                path=f"--{name.replace('_', '-')}",
                remedy="Choose a value above 0.",
                code="not_positive",
            )
        if getattr(options, name) > LARGEST_SIZE:
            raise PlannerError.of(
                "That is more than any length or batch.",
                path=f"--{name.replace('_', '-')}",
                remedy=f"Choose a value up to {LARGEST_SIZE:,}.",
                code="too_large",
            )


def _plain(value: Any) -> Any:
    """Data that JSON can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value)


def table(rows: Rows) -> str:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _say_left_out(loaded: Loaded) -> dict[str, Any]:
    """Say on stderr what the source has beside the specification; the same as data, where there is anything."""
    for sentence in loaded.left_out:
        print(f"{loaded.spec.name}: {sentence}", file=sys.stderr)
    return {LEFT_OUT: list(loaded.left_out)} if loaded.left_out else {}


def _say_too_long(spec: ArchitectureSpec, length: int) -> None:
    """Say on stderr where a sequence is longer than the model's learned positions let it be."""
    if isinstance(spec.positions, LearnedPositions) and length > spec.positions.num_positions:
        most = spec.positions.num_positions
        print(f"{spec.name}: its learned positions end at {most:,}, so no sequence has {length:,}.", file=sys.stderr)


def _size(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.sizing import size

    loaded = _read(options.spec)
    sized = size(loaded.spec)
    counts = sized.parameters
    data: dict[str, Any] = {"parameters": _plain(counts), "status": "exact", **_say_left_out(loaded)}
    rows: Rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.by_component.items()]
    rows += [("total", f"{counts.total:,}"), ("active a token", f"{counts.active:,}")]
    if options.tensors:
        data["tensors"] = [{"name": t.name, "shape": list(t.shape), "count": t.count} for t in sized.tensors]
        rows = [(t.name, "×".join(str(extent) for extent in t.shape), f"{t.count:,}") for t in sized.tensors]
    return data, table(rows)


def _flops(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.compute import flops

    _positive(options, "sequence_length", "batch_size")
    spec = _read(options.spec).spec
    _say_too_long(spec, options.sequence_length)
    counted = flops(spec, options.sequence_length, options.batch_size, options.training)
    rows: Rows = [("", "counted", "needed")]
    for name, count in counted.by_component.items():
        rows.append((name.replace("_", " "), flops_text(count), flops_text(counted.needed_by_component[name])))
    rows.append(("total", flops_text(counted.total), flops_text(counted.needed_total)))
    return {**_plain(counted), "status": "exact"}, table(rows)


def _cache(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.cache import cache_use

    _positive(options, "context_length", "batch_size", "block_size")
    length, batch, dtype = options.context_length, options.batch_size, options.dtype
    spec = _read(options.spec).spec
    _say_too_long(spec, length)
    use = cache_use(spec, length, batch, dtype, options.block_size, options.windowed_pages)
    data = {
        "cache_bytes": use.ideal_bytes,
        **_plain(use),
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


def _parts(parts: dict[str, int]) -> Rows:
    rows: Rows = [(name, bytes_text(held), f"{held:,} bytes") for name, held in parts.items()]
    total = sum(parts.values())
    return [*rows, ("total", bytes_text(total), f"{total:,} bytes")]


def _train(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.training import estimate_training
    from planner.uncertainty import of_training

    plan = _plan(TrainingPlan, options.settings)
    spec = _read(options.spec).spec
    _say_too_long(spec, plan.sequence_length)
    estimate = estimate_training(spec, plan)
    rows = [*_parts(estimate.memory.parts), ("most is alive at", estimate.memory.peak.name, "")]
    data = {**_plain(estimate), "parts": estimate.memory.parts}
    data["memory"]["total_bytes"] = estimate.memory.total_bytes
    bounds = of_training(spec, plan, estimate.memory)
    text = [table(rows), bounds.text]
    if estimate.time.seconds is not None:
        spent = {part: seconds for part, seconds in estimate.time.parts.items() if seconds > 0}
        text.append(table([(part.replace("_", " "), seconds_text(seconds)) for part, seconds in spent.items()]))
    text.append(estimate.time_note)
    if options.tokens is not None:
        run = run_of(options, estimate.time, plan.hardware)
        data["run"] = {**_plain(run), "total_seconds": run.total_seconds, "goodput": run.goodput}
        text += [table(rows_of_run(run)), *run.notes]
    return {**data, "uncertainty": _plain(bounds)}, "\n".join(text)


def _serve(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.serving import estimate_inference
    from planner.uncertainty import of_serving

    plan = _plan(ServingPlan, options.settings)
    spec = _read(options.spec).spec
    _say_too_long(spec, plan.context_length)
    estimate = estimate_inference(spec, plan)
    rows = _parts(estimate.memory.parts)
    ideal = estimate.memory.ideal_cache_bytes
    rows.append(("of the cache, filled", bytes_text(ideal), f"{ideal:,} bytes"))
    if plan.hardware is not None:
        longest = estimate.max_context_length
        rows.append(("longest context", "no bound" if longest is None else f"{longest:,}", estimate.max_context_note))
        rows.append(("largest batch", f"{estimate.max_batch_size:,}", f"at {plan.context_length:,} tokens"))
    data = _plain(estimate)
    data["memory"]["total_bytes"] = estimate.memory.total_bytes
    bounds = of_serving(spec, plan, estimate.memory)
    return {**data, "uncertainty": _plain(bounds)}, f"{table(rows)}\n{bounds.text}\n{estimate.time_note}"


def _fit(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.hardware import hardware, hardware_catalogue
    from planner.serving import fits

    plan: TrainingPlan | ServingPlan
    if options.training:
        plan = _plan(TrainingPlan, options.settings)
    else:
        plan = _plan(ServingPlan, options.settings)
    spec = _read(options.spec).spec
    devices = [hardware(options.device)] if options.device else list(hardware_catalogue())
    found = [fits(spec, plan, device) for device in devices]
    rows: Rows = [("device", "usable", "needed", "share", "")]
    data = []
    for fit in found:
        verdict = "fits" if fit.fits else "does not fit"
        rows.append(
            (fit.device.id, bytes_text(fit.usable_bytes), bytes_text(fit.needed_bytes), f"{fit.share:.0%}", verdict)
        )
        data.append(
            {
                "device": fit.device.id,
                "usable_bytes": fit.usable_bytes,
                "needed_bytes": fit.needed_bytes,
                "fits": fit.fits,
                "parts": fit.parts,
            }
        )
    return data, table(rows)


def _sensitivity(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.sensitivity import PLANS, largest, output_of, tornado

    _positive(options, "first")
    output = options.output or (None if options.device else "inference_memory")
    wanted = PLANS[output_of(output).plan] if output is not None else None
    plan_class = wanted or (TrainingPlan if options.training else ServingPlan)
    plan = _plan(plan_class, options.settings)
    spec = _read(options.spec).spec
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
        _read(options.spec).spec,
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

    _positive(options, "sequence_length", "context_length")
    specs = [_read(name).spec for name in options.spec]
    for spec in specs:
        _say_too_long(spec, max(options.sequence_length, options.context_length))
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
        plan = _plan(wanted, options.settings) if wanted is not None else None
    spec = _read(options.spec).spec
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
    loaded = _read(options.spec)
    said = _say_left_out(loaded)
    comments = "".join(f"# {sentence}\n" for sentence in loaded.left_out)
    return {**loaded.spec.to_dict(), **said}, comments + loaded.spec.to_yaml().rstrip()


def _export(options: argparse.Namespace) -> tuple[Any, str]:
    from planner.interop.export import to_huggingface

    config = to_huggingface(_read(options.spec).spec)
    return config, json.dumps(config, ensure_ascii=False, indent=2)


if __name__ == "__main__":
    sys.exit(main())
