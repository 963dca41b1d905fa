"""How devices are wired: fast links within a node, and the network between nodes (``assets/nodes.yaml``)."""

from __future__ import annotations

import datetime
import functools

import yaml
from pydantic import BaseModel, ConfigDict, Field

from planner.paths import ASSETS


class Node(BaseModel):
    """The node that a device usually stands in. Rates are of one device and one direction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    gpus: int = Field(gt=0)
    intra_gb_per_second: float = Field(gt=0)
    inter_gb_per_second: float | None = Field(default=None, gt=0)
    source: str
    as_of: datetime.date


@functools.cache
def nodes() -> dict[str, Node]:
    """The node of each device that has one, by the device's id."""
    rows = yaml.safe_load((ASSETS / "nodes.yaml").read_text(encoding="utf-8"))
    return {identifier: Node.model_validate(row) for identifier, row in rows.items()}
