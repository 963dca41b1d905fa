"""Sizes, compute and memory of language-model architectures: pure arithmetic on a specification.

Everything here is exact or says what it is; what cannot be sized is refused with the name of the field.
"""

from planner.cache import cache_bytes
from planner.compute import Flops, flops
from planner.errors import InvalidSpec, PlannerError, Problem, UnsupportedArchitecture, UnsupportedPlan
from planner.plans import (
    BenchmarkPlan,
    KernelsPlan,
    PrototypePlan,
    ServingPlan,
    TrainingPlan,
    VerifyPlan,
    parse_plan,
)
from planner.sizing import Size, size
from planner.spec import ArchitectureSpec, Layer, LayerGroup, parse_spec

__all__ = [
    "ArchitectureSpec",
    "BenchmarkPlan",
    "Flops",
    "InvalidSpec",
    "KernelsPlan",
    "Layer",
    "LayerGroup",
    "PlannerError",
    "Problem",
    "PrototypePlan",
    "ServingPlan",
    "Size",
    "TrainingPlan",
    "UnsupportedArchitecture",
    "UnsupportedPlan",
    "VerifyPlan",
    "cache_bytes",
    "flops",
    "parse_plan",
    "parse_spec",
    "size",
]
