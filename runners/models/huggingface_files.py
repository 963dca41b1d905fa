"""Folders as models are published in: ``config.json`` and safetensors, in one file or several with an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from planner.interop import ADAPTERS, from_huggingface, huggingface_tensors, resolved
from planner.interop.export import to_huggingface
from planner.spec import ArchitectureSpec
from runners.models.decoder import Decoder
from runners.models.huggingface import language_names, state_dict_of
from runners.models.published import WITHIN, Piece, file_name, pieces

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TURNED = frozenset({"qwen3_vl_moe_text"})
"""Families whose files may hold the experts' matrices turned round; their shapes tell."""
MOST_BYTES = 5_000_000_000
"""Bytes of one file of weights, as transformers has it."""


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``config.json`` of a folder."""
    found: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return found


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a folder by the names of transformers' modules, each read from its file when it is asked for.

    Files are mapped into memory and not read as a whole, so beside a model that is filled from them there is one
    tensor at a time.

    Raises
    ------
    ValueError
        where the weights are quantised, a file is missing, or the index names a tensor that its file has not.
    """

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any], spec: ArchitectureSpec) -> None:
        inner = resolved(config).config
        if inner.get("quantization_config") or config.get("quantization_config"):
            raise ValueError(f"the weights in {folder} are quantised, and are read only as floating-point numbers")
        self.model_type: str = inner["model_type"]
        self._shapes = huggingface_tensors(spec, self.model_type)
        self._files = _tensors_in(Path(folder))
        self._open: dict[Path, Any] = {}
        names = {name: name for name in self._files}
        if self.model_type != config.get("model_type"):
            names = language_names(self._files)
        start = file_name(self.model_type, next(iter(self._shapes))).partition(".")[0] + "."
        if not any(name.startswith(start) for name in names):  # the files of GPT-2 and BLOOM
            names = {name if name.startswith("lm_head.") else f"{start}{name}": at for name, at in names.items()}
        self._places = {
            module: tuple((names[piece.file_name], piece) for piece in found)
            for module, found in pieces(self.model_type, self._shapes).items()
            if module not in names and all(piece.file_name in names for piece in found)
        }
        used = {piece.file_name for found in self._places.values() for _, piece in found}
        self._places |= {name: ((at, Piece(name)),) for name, at in names.items() if name not in used}

    def __contains__(self, name: object) -> bool:  # a mapping's own would read the tensor
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        places, shape = self._places[name], self._shapes.get(name)
        if all(piece.expert is None for _, piece in places):
            parts = [self._part(at, piece) for at, piece in places]
            if len(parts) > 1:
                return torch.cat(parts)
            return parts[0] if shape is None else self._turned(name, parts[0], shape)
        assert shape is not None  # only what the family needs is made of pieces
        made: Tensor | None = None
        for at, piece in places:
            part = self._part(at, piece)
            made = part.new_empty(shape) if made is None else made
            target = made[piece.expert] if piece.rows is None else made[piece.expert, slice(*piece.rows)]
            if target.shape != part.shape:
                raise ValueError(f"{at} has the shape {tuple(part.shape)}, not {tuple(target.shape)}")
            target.copy_(part)
        assert made is not None
        return made

    def _turned(self, name: str, part: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.model_type not in TURNED or ".experts." not in name:
            return part
        if shape[-1] == shape[-2]:
            raise ValueError(f"{name} is square, so nothing tells whether the file holds it turned round")
        return part.transpose(-1, -2) if tuple(part.shape) != shape else part

    def _part(self, name: str, piece: Piece) -> Tensor:
        path = self._files[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._open[path].get_tensor(name)
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ValueError(
                f"{name} is of {str(tensor.dtype).removeprefix('torch.')}: its numbers are no weights alone"
            )
        return tensor if piece.file_rows is None else tensor[slice(*piece.file_rows)]


def _index(folder: Path) -> dict[str, str]:
    """The tensors of a folder and the names of their files, by its index; nothing where it has none."""
    if not (folder / INDEX).is_file():
        return {}
    found: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return {name: Path(file).name for name, file in found.items()}


def _files_of(folder: Path) -> set[Path]:
    """The files of a folder's weights, and the index."""
    named = {folder / file for file in _index(folder).values()}
    return named | {path for path in (folder / WHOLE, folder / INDEX) if path.exists()}


def _tensors_in(folder: Path) -> dict[str, Path]:
    """The tensors of a folder, and the file of each."""
    index = _index(folder)
    files = {folder / file for file in index.values()} or {folder / WHOLE}
    if not index and not (folder / WHOLE).is_file():
        raise ValueError(f"{folder} has neither {WHOLE} nor {INDEX}")
    found: dict[str, Path] = {}
    for path in sorted(files):
        if not path.is_file():
            raise ValueError(f"{path.name}, which the index names, is not in {folder}")
        with safe_open(path, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), path)
    if index.keys() - found.keys():
        raise ValueError(f"no file in {folder} has {min(index.keys() - found.keys())!r}")
    return found


def save_huggingface(
    model: Decoder,
    folder: str | os.PathLike[str],
    model_type: str | None = None,
    config: dict[str, Any] | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, Any]:
    """Write a model as a folder that transformers loads; returns the configuration that is written.

    The configuration is the given one, else what :func:`planner.interop.export.to_huggingface` makes of the
    specification, in the family ``model_type`` where one is named. Weights go into files of at most ``most_bytes``
    bytes each (one tensor may be larger), and beside the model there is only one file's share of them in memory.

    Raises
    ------
    UnsupportedArchitecture
        where no family says the specification.
    ValueError
        where the configuration is not the model's, or means computations that the model does not do.
    """
    config = to_huggingface(model.spec, model_type) if config is None else dict(config)
    adapter = ADAPTERS.get(config.get("model_type", ""))
    if adapter is None or from_huggingface(config).content_hash() != model.spec.content_hash():
        raise ValueError("the configuration is not that of this model")
    if adapter.model_type in WITHIN:
        raise ValueError(f"transformers has {adapter.model_type} only within a multimodal model: name another family")
    for field, value in adapter.unmodelled_in(config).items():
        raise ValueError(f"{field} is {value!r}, and the model does not compute what that means")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dtype", "quantization_config"):  # of the weights that the configuration came with
        config.pop(name, None)
    config["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    places = pieces(adapter.model_type, huggingface_tensors(model.spec, adapter.model_type))
    files: list[dict[str, int]] = []
    for share in _shares(_cut(state_dict_of(model, config), adapter.model_type, places), most_bytes):
        save_file(share, folder / f".part-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append({name: tensor.nbytes for name, tensor in share.items()})
    weight_map: dict[str, str] = {}
    for number, held in enumerate(files):
        file = WHOLE if len(files) == 1 else f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(held, file)
    for path in _files_of(folder):  # of a model that was here before
        path.unlink(missing_ok=True)
    for number, file in enumerate(dict.fromkeys(weight_map.values())):
        (folder / f".part-{number}.safetensors").replace(folder / file)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sum(held.values()) for held in files)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _shares(tensors: Iterator[tuple[str, Tensor]], most_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The tensors of one file after the other."""
    share: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        if share and held + tensor.nbytes > most_bytes:
            yield share
            share, held = {}, 0
        share[name] = tensor.contiguous().cpu()
        held += tensor.nbytes
    yield share


def _cut(
    tensors: Iterator[tuple[str, Tensor]], model_type: str, places: Mapping[str, tuple[Piece, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a family's files, of those of its modules."""
    wanted: dict[str, int] = {}
    for found in places.values():
        for piece in found:
            wanted[piece.file_name] = wanted.get(piece.file_name, 0) + 1
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        for piece in places.get(name, (Piece(file_name(model_type, name)),)):
            part = tensor if piece.expert is None else tensor[piece.expert]
            part = part if piece.rows is None else part[slice(*piece.rows)]
            parts = kept.setdefault(piece.file_name, [])
            parts.append(part)
            if len(parts) == wanted.get(piece.file_name, 1):
                del kept[piece.file_name]
                yield piece.file_name, part if len(parts) == 1 else torch.cat(parts)
