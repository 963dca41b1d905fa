"""Sizes of quantized weights' files, as specifications and formats."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from planner.errors import PlannerError
from planner.measured.models import identify, is_fused, plain_name
from planner.measured.rows import GIB, NotUsed, Raw, read_asset, skip
from planner.serving.formats import gguf_file
from planner.serving.weights import Storage
from planner.sizing import outer_tensors
from planner.spec import ArchitectureSpec

_GGUF = re.compile(r"GGUF (?P<type>[A-Z0-9_]+)(?: - (?P<size>Small|Medium|Large))?(?: MoE)?(?: \(mostly\))?")
_TORCHAO = {"bf16": "bf16", "fp16": "fp16", "int8 weight-only": "int8_torchao", "int8 dynamic act": "int8_torchao"}


@dataclass(frozen=True, slots=True)
class WeightsRow:
    """One file, or what a program says of its model."""

    id: str
    model: str
    source: str
    spec: ArchitectureSpec
    weight_format: str
    bytes: int
    rounding: int
    """By how much the source may have rounded it either way."""
    without_embedding: bool

    @property
    def predicted_bytes(self) -> int:
        """The same by the planner."""
        storage = Storage(self.spec, self.weight_format)
        total = sum(held for _, _, _, _, held in storage.tensors())
        for tensor in outer_tensors(self.spec):
            if not (self.without_embedding and tensor.name == "embed_tokens.weight"):
                total += storage.outer(tensor)
        return int(total)

    @property
    def error(self) -> float:
        """The prediction's error as a share of the file."""
        return self.predicted_bytes / self.bytes - 1


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is not used."""

    id: str
    model: str
    reason: str


def _format(raw: Raw) -> str:
    written = raw["format"]
    if written.startswith("torchao "):
        name = _TORCHAO.get(written.removeprefix("torchao "))
        if written == "torchao int4 wo G=64":
            name = "int4_torchao"
        return name or skip("a format of torchao that is not modelled")
    if written.startswith("PyTorch pth"):
        return "fp16"
    found = _GGUF.fullmatch(written)
    if found is None:
        skip("a format that is not modelled")
    name = found["type"].lower()
    name += {"Small": "_s", "Medium": "_m", "Large": "_l"}.get(found["size"] or "", "")
    name = {"mxfp4": "mxfp4_moe"}.get(name, name)
    return name if gguf_file(name) is not None else skip("a format that is not modelled")


def _bytes(raw: Raw) -> tuple[int, int]:
    """The size and half of its last digit."""
    written = raw["bytes_or_gib"]
    number = written.split()[0]
    if "GiB" in written:
        unit = GIB
    elif "GB" in written:
        unit = 10**9  # torchao divides by 1e9, whatever its table says: its bf16 rows are that only so
    else:
        return int(number), 0
    digits = len(number.partition(".")[2])
    return round(float(number) * unit), round(unit * 10**-digits / 2)


@functools.cache
def _all() -> tuple[tuple[WeightsRow, ...], tuple[SkippedFile, ...]]:
    used, skipped = [], []
    for identifier, raw in read_asset("weights_world.csv"):
        try:
            weight_format = _format(raw)
            try:
                spec = identify(raw["model"], None, 2048)
            except PlannerError as error:
                raise NotUsed("a model that cannot be read") from error
        except NotUsed as reason:
            skipped.append(SkippedFile(identifier, raw["model"], reason.reason))
            continue
        if is_fused(plain_name(raw["model"])) and raw["format"].startswith("GGUF"):
            weight_format += "_fused"
        size, rounding = _bytes(raw)
        source = f"{raw['source_repo']}/{raw['source_path']}"
        bare = "excludes embedding" in raw.get("notes", "")
        used.append(WeightsRow(identifier, raw["model"], source, spec, weight_format, size, rounding, bare))
    return tuple(used), tuple(skipped)


def weights_rows() -> tuple[WeightsRow, ...]:
    """All files that are used."""
    return _all()[0]


def skipped_weights() -> tuple[SkippedFile, ...]:
    """All that are not, each with its reason."""
    return _all()[1]
