"""A model as one file of plain PyTorch, written from the sources of :mod:`runners.models`."""

from __future__ import annotations

from runners.export.writing import export_pytorch

__all__ = ["export_pytorch"]
