"""What serving takes: formats of weights, memory on each device, and what fits."""

from planner.serving.devices import Split, check_devices, kept_layers, part_of
from planner.serving.estimate import (
    Fit,
    InferenceEstimate,
    check_serving,
    estimate_inference,
    fits,
    largest_true,
    longest_context,
)
from planner.serving.formats import WEIGHT_FORMATS, describe_format, is_large_matrix
from planner.serving.memory import (
    PREFILL_TOKENS,
    ServingMemory,
    activation_bytes,
    check_serving_plan,
    pass_bytes,
    planned_cache,
    projection_outputs,
    serving_memory,
)
from planner.serving.weights import Storage, weights_bytes

__all__ = [
    "PREFILL_TOKENS",
    "WEIGHT_FORMATS",
    "Fit",
    "InferenceEstimate",
    "ServingMemory",
    "Split",
    "Storage",
    "activation_bytes",
    "check_devices",
    "check_serving",
    "check_serving_plan",
    "describe_format",
    "estimate_inference",
    "fits",
    "is_large_matrix",
    "kept_layers",
    "largest_true",
    "longest_context",
    "part_of",
    "pass_bytes",
    "planned_cache",
    "projection_outputs",
    "serving_memory",
    "weights_bytes",
]
