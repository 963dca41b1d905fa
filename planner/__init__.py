"""Sizes, compute and memory of language-model architectures: pure arithmetic on a specification.

Everything here is exact or says what it is; what cannot be sized is refused with the name of the field.
"""

from planner.cache import cache_bytes
from planner.compute import Flops, flops
from planner.diff import SpecDiff, diff
from planner.dispatch import JobEstimate, estimate_job
from planner.errors import InvalidSpec, PlannerError, Problem, UnsupportedArchitecture, UnsupportedPlan
from planner.explain import explain, explain_block
from planner.generation import GeneratePlan
from planner.growth import Growth, grow
from planner.hardware import Device, MachineProfile, hardware, hardware_catalogue
from planner.intensity import Crossover, crossover, ridge_point
from planner.interop import from_huggingface
from planner.interop.export import to_huggingface
from planner.plans import (
    BenchmarkPlan,
    KernelsPlan,
    PrototypePlan,
    ServingPlan,
    TrainingPlan,
    VerifyPlan,
    parse_plan,
)
from planner.presets import load
from planner.prototype import ScaledSpec, scale_down
from planner.scaling import Budget, training_budget
from planner.serving import Fit, InferenceEstimate, estimate_inference, fits
from planner.serving.operators import Operator, operators
from planner.sizing import Size, size
from planner.spec import ArchitectureSpec, Layer, LayerGroup, parse_spec
from planner.terms import Term
from planner.training import TrainingEstimate, estimate_training

__all__ = [
    "ArchitectureSpec",
    "BenchmarkPlan",
    "Budget",
    "Crossover",
    "Device",
    "Fit",
    "Flops",
    "GeneratePlan",
    "Growth",
    "InferenceEstimate",
    "InvalidSpec",
    "JobEstimate",
    "KernelsPlan",
    "Layer",
    "LayerGroup",
    "MachineProfile",
    "Operator",
    "PlannerError",
    "Problem",
    "PrototypePlan",
    "ScaledSpec",
    "ServingPlan",
    "Size",
    "SpecDiff",
    "Term",
    "TrainingEstimate",
    "TrainingPlan",
    "UnsupportedArchitecture",
    "UnsupportedPlan",
    "VerifyPlan",
    "cache_bytes",
    "crossover",
    "diff",
    "estimate_inference",
    "estimate_job",
    "estimate_training",
    "explain",
    "explain_block",
    "fits",
    "flops",
    "from_huggingface",
    "grow",
    "hardware",
    "hardware_catalogue",
    "load",
    "operators",
    "parse_plan",
    "parse_spec",
    "ridge_point",
    "scale_down",
    "size",
    "to_huggingface",
    "training_budget",
]
