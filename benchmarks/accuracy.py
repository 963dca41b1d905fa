"""How exact parameter counters are, on the same configurations: ``python -m benchmarks.planner accuracy``.

The reference is transformers itself: the model that it builds from the configuration on the meta device, where nothing
is allocated. Counters are other tools, each called as its own documentation does; one that is not installed is skipped,
and the page says so. None of them is a requirement of this project.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import pathlib
import platform
import tempfile
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner import size
from planner.presets import PRESETS, preset, preset_ids, read_yaml

Count = Callable[[pathlib.Path], float]
"""Parameters by a tool, of the model whose ``config.json`` is in a directory."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A tool that counts parameters."""

    package: str
    called: str
    """What is called, and what is left to its defaults."""
    load: Callable[[], Count]
    """Raises ``ImportError`` where the tool is not installed."""


def _planner() -> Count:
    from planner.presets import load

    return lambda folder: size(load(folder)).parameters.total


def _llm_analysis() -> Count:
    from llm_analysis.analysis import LLMAnalysis
    from llm_analysis.config import get_dtype_config_by_name, get_gpu_config_by_name, get_model_config_from_hf

    def count(folder: pathlib.Path) -> float:
        model = get_model_config_from_hf(str(folder))
        gpu, dtype = get_gpu_config_by_name("a100-sxm-80gb"), get_dtype_config_by_name("w16a16e16")
        return float(LLMAnalysis(model, gpu, dtype).get_num_params_total())

    return count


def _accelerate() -> Count:
    from accelerate.commands import estimate
    from accelerate.utils import calculate_maximum_sizes

    def count(folder: pathlib.Path) -> float:
        # The only thing that it asks the hub for: whether the repository has a configuration.
        estimate.verify_on_hub = lambda *_, **__: types.SimpleNamespace(config={}, library_name="transformers")
        model = estimate.create_empty_model(str(folder), "transformers")
        total, _ = calculate_maximum_sizes(model)
        return float(total) / 4  # the estimate is in bytes of fp32

    return count


def _llm_mem_planner() -> Count:
    from llm_mem_planner import cli

    def count(folder: pathlib.Path) -> float:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return float(cli.estimate_params(cli.load_dims(config)).total)

    return count


COUNTERS = (
    Counter("plumbline", "`size(load(folder)).parameters.total`", _planner),
    Counter(
        "llm-analysis",
        "`get_model_config_from_hf(folder)`, then `LLMAnalysis(…).get_num_params_total()`; it does not read the width "
        "of the MLP from a configuration, and takes four times the stream's where it is not told",
        _llm_analysis,
    ),
    Counter(
        "accelerate",
        "`accelerate estimate-memory`: `create_empty_model(folder)` and `calculate_maximum_sizes`, bytes of fp32 over "
        "four; it builds `AutoModel`, which has no head of its own, and counts buffers of rotary frequencies",
        _accelerate,
    ),
    Counter(
        "llm-mem-planner",
        "`estimate_params(load_dims(config)).total`; it is written for latent attention, and refuses the rest",
        _llm_mem_planner,
    ),
)

NOT_COMPARED = (
    "hf-mem and llm-mem read the sizes of published weights' files, so they size nothing that has no weights yet; "
    "DeepSpeed's `estimate_zero3_model_states_mem_needs_all_cold` takes a count that somebody else has made."
)


def version_of(package: str) -> str:
    """The installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "this checkout" if package == "plumbline" else "not installed"


def transformers_parameters(config: dict[str, Any]) -> int:
    """Parameters of the model that transformers builds on the meta device."""
    import torch
    import transformers

    rest = dict(config)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made = transformers.AutoConfig.for_model(rest.pop("model_type"), **rest)
        return int(transformers.AutoModelForCausalLM.from_config(made).num_parameters())


def _quietly(count: Count, folder: pathlib.Path) -> float | str:
    """A tool's count, or the name of the error with which it refuses or fails."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            return count(folder)
        except Exception as error:  # whatever another tool raises on a model that it does not know
            return type(error).__name__


def _cell(found: float | str, expected: int) -> str:
    if isinstance(found, str):
        return found
    if found == expected:
        return "exact"
    share = f"{100 * (found - expected) / expected:+.2f} %"
    return share if share.strip("+-0. %") else f"{found - expected:+,.0f}"


def rows(names: list[str], counts: list[Count]) -> list[tuple[str, int, list[float | str]]]:
    """Title, transformers' parameters, and each tool's, of each preset."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            config = read_yaml((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))["config"]
            folder = pathlib.Path(directory, name)
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            expected = transformers_parameters(config)
            found.append((preset(name).title, expected, [_quietly(count, folder) for count in counts]))
    return found


def known_models() -> list[str]:
    """The presets that have a configuration which transformers reads."""
    return [name for name in preset_ids() if "config" in read_yaml((PRESETS / f"{name}.yaml").read_text())]


def page() -> tuple[str, bool]:
    """The page, and whether the planner is exact in every row."""
    logging.disable(logging.WARNING)
    counts: list[Count] = []
    present, skipped = [], []
    for counter in COUNTERS:
        try:
            counts.append(counter.load())
            present.append(counter)
        except ImportError:
            skipped.append(counter)
    table = rows(known_models(), counts)
    exact = [sum(values[index] == expected for _, expected, values in table) for index in range(len(present))]
    right = exact[0] == len(table)
    lines = [
        "# Accuracy",
        "",
        "Parameters of published configurations, by counters that read the configuration alone, against the model that",
        "transformers builds from it on the meta device. Written by `python -m benchmarks.planner accuracy`.",
        "",
        f"Python {platform.python_version()}, transformers {version_of('transformers')}, torch {version_of('torch')}.",
        "",
        "| counter | version | exact | what is called |",
        "|---|---|---|---|",
        *(
            f"| {counter.package} | {version_of(counter.package)} | {count} of {len(table)} | {counter.called} |"
            for counter, count in zip(present, exact, strict=True)
        ),
        "",
        *(f"Skipped, as it is not installed: {counter.package}.\n" for counter in skipped),
        NOT_COMPARED,
        "",
        "Differences are in per cent, or in parameters where they are less than that shows. An error's name stands",
        "where a counter gives no number; accelerate's `RuntimeError` is memory that the machine did not have, as it",
        "makes each tensor before it moves it to the meta device.",
        "",
        f"| model | transformers | {' | '.join(counter.package for counter in present)} |",
        f"|---|---:|{'---:|' * len(present)}",
        *(
            f"| {title} | {expected:,} | {' | '.join(_cell(value, expected) for value in values)} |"
            for title, expected, values in table
        ),
    ]
    return "\n".join(lines) + "\n", right
