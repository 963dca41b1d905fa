"""Checkpoints: weights and optimizer state as safetensors, the rest as JSON; whole or not there at all."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LATEST = "checkpoint"


class Superseded(RuntimeError):
    """A later attempt has taken the directory over."""


def save(
    directory: pathlib.Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    may_write: Callable[[], bool] = lambda: True,
) -> None:
    """Write a checkpoint beside the last one and put it in its place when it is whole.

    Raises
    ------
    Superseded
        where ``may_write`` says, right before the checkpoint takes its place, that it is no longer this writer's.
    """
    temporary = directory / f"{LATEST}.new.{os.getpid()}"  # a writer that was thought dead has another name
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in _held(model).items()}, temporary / "model.safetensors")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{names[id(parameter)]}|{key}"] = value.detach().contiguous()
    save_file(tensors, temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(state))
    for path in temporary.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())
    if not may_write():
        shutil.rmtree(temporary, ignore_errors=True)
        raise Superseded("another attempt of this job has taken over; its checkpoint stays")
    final, old = directory / LATEST, directory / f"{LATEST}.old"
    if final.exists():  # else a kill between the two renames left the old one as the only whole checkpoint
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def last_whole(directory: pathlib.Path) -> pathlib.Path | None:
    """The folder of the last whole checkpoint, if there is one."""
    folders = (directory / LATEST, directory / f"{LATEST}.old")
    return next((folder for folder in folders if (folder / "state.json").exists()), None)


def load_weights(directory: pathlib.Path, model: nn.Module) -> None:
    """Put the weights of the last whole checkpoint into a model of the same specification.

    Raises
    ------
    ValueError
        where there is no checkpoint, or it is that of another model.
    """
    found = last_whole(directory)
    if found is None:
        raise ValueError(f"there is no checkpoint in {directory}")
    _read_weights(found, model)


def _held(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and buffers: a step may move the biases that steer routers."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _read_weights(folder: pathlib.Path, model: nn.Module) -> None:
    parameters, weights = _held(model), load_file(folder / "model.safetensors")
    # A checkpoint from before buffers were written has none, and they were what they are in a new model.
    for name in sorted(dict(model.named_parameters()).keys() | weights.keys()):
        ours, theirs = (held[name].shape if name in held else None for held in (parameters, weights))
        if ours != theirs:
            raise ValueError(f"the checkpoint in {folder} is that of another model: {name} differs")
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def load(directory: pathlib.Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put the last whole checkpoint into the model and the optimizer; its state, or ``None`` where there is none."""
    found = last_whole(directory)
    if found is None:
        return None
    _read_weights(found, model)
    parameters = dict(model.named_parameters())
    for key, value in load_file(found / "optimizer.safetensors").items():
        name, _, field = key.rpartition("|")
        optimizer.state[parameters[name]][field] = value
    state: dict[str, Any] = json.loads((found / "state.json").read_text())
    return state
