"""Real text as bytes, split by file into training and validation; a batch is a pure function of seed and step."""

from __future__ import annotations

import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STANDARD_LIBRARY = "python-stdlib"
MOST_BYTES = 64 * 2**20
VALIDATION_EVERY = 20
"""Each twentieth file, by a hash of its name, is kept for validation."""
LEAST_FILE_BYTES = 16


class NoData(ValueError):
    """The text cannot be used; the message says why."""


@dataclass(frozen=True)
class Text:
    """Bytes of two disjoint sets of files."""

    training: Tensor
    """(bytes,) of uint8."""
    validation: Tensor
    description: str
    files: int
    digest: str
    """SHA-256 over all bytes, training first."""


def source_files(data: str) -> list[pathlib.Path]:
    """The files of a data set, in an order that does not depend on the file system."""
    if data == STANDARD_LIBRARY:
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "test", "tests", "idlelib", "__pycache__"}
        found: Iterator[pathlib.Path] = (
            path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)
        )
    else:
        root = pathlib.Path(data).expanduser()
        if not root.exists():
            raise NoData(f"data: there is no {data!r}; name a text file or a folder, or {STANDARD_LIBRARY}")
        found = (path for path in root.rglob("*") if path.is_file()) if root.is_dir() else iter([root])
    return sorted(found, key=lambda path: path.relative_to(root.parent).as_posix())


def _is_validation(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % VALIDATION_EVERY == 0


def load_text(data: str) -> Text:
    """Read a data set; a single file is split at nine tenths instead of by file. Raises ``NoData``."""
    files = source_files(data)
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    total = 0
    for path in files:
        content = path.read_bytes()
        if total + len(content) > MOST_BYTES:
            break
        total += len(content)
        parts[_is_validation(path.name)].append(content)
    training, validation = (b"\n".join(parts[kind]) for kind in (False, True))
    if min(len(training), len(validation)) < LEAST_FILE_BYTES:
        whole = training + validation
        training, validation = whole[: len(whole) * 9 // 10], whole[len(whole) * 9 // 10 :]
    if len(validation) < LEAST_FILE_BYTES:
        raise NoData(f"data: {data!r} holds only {total} bytes of text; choose a larger one")
    digest = hashlib.sha256(training + validation).hexdigest()
    what = "Python's standard library, its own sources" if data == STANDARD_LIBRARY else data
    description = f"{what}: {len(training):,} bytes to train on, {len(validation):,} to validate on"
    return Text(_tensor(training), _tensor(validation), description, len(files), digest)


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def batch(text: Tensor, seed: int, step: int, batch_size: int, sequence_length: int) -> Tensor:
    """Sequences (batch_size, sequence_length) of int64, drawn by seed and step alone: a resumed run sees the same."""
    if len(text) <= sequence_length:
        raise NoData(f"sequence_length: the text has {len(text):,} bytes, fewer than a sequence of {sequence_length:,}")
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    starts = torch.randint(0, len(text) - sequence_length, (batch_size,), generator=generator)
    return torch.stack([text[start : start + sequence_length] for start in starts.tolist()]).long()
