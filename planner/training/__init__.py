"""Memory of a training step on the device that needs most: parameters, gradients, optimizer, activations, and when.

The states are counted to the element and divided as the plan says; the activations are the tensors that each component
says it keeps (:mod:`planner.activations`), divided likewise. What is not modelled is refused by name
(:mod:`planner.training.checks`). The time of a step is of :mod:`planner.step_time`.

A step has moments at which much is alive at once; the largest decides (``peak``). With a large vocabulary that is
mostly the start of the backward pass, where logits and their gradients meet everything that was saved; with a small
one it lies inside the backward pass, where gradients appear, saved tensors go, and each component's backward pass
needs room of its own. Gradients that stay allocated (accumulation, or master weights) are there throughout; else
PyTorch frees them between steps. The optimizer is taken to be fused: it needs no room of its own.

On small models the total less the overhead is within 0.02% of the peak that MemTracker reports in most cases, and 4% in
the worst of all presets, scaled down; single components are held to 6%. Under FSDP2 it is equal to what its tracker
reports but for one layer's forward pass. Against CUDA's allocator (an H200, models of 0.2 to 0.6 billion parameters) it
is within 4%, but up to 9% low where grouped queries meet a window or fp32: CUDA's fused attention then needs keys
repeated for every head. Steps of Megatron on eight B200 are within 1%, and its own tests within 2% in the median, two
of them in fp8 (:mod:`planner.training.narrow`). What DeepSpeed keeps beside Megatron's operators is of
:mod:`planner.training.deepspeed`.

A pipeline is taken rank by rank, whatever layers each has (:mod:`planner.stages`), and the one that needs most is
given. Of a forward pass nothing is followed but what it keeps; of communication nothing that an allocator does not see.
"""

from planner.training.checks import check_training_plan as check_training_plan
from planner.training.estimate import allocated_bytes as allocated_bytes
from planner.training.estimate import estimate_training as estimate_training
from planner.training.estimate import training_memory as training_memory
from planner.training.narrow import is_cast as is_cast
from planner.training.records import DEVICE_OVERHEAD_BYTES as DEVICE_OVERHEAD_BYTES
from planner.training.records import Buffer as Buffer
from planner.training.records import Change as Change
from planner.training.records import Moment as Moment
from planner.training.records import TrainingEstimate as TrainingEstimate
from planner.training.records import TrainingMemory as TrainingMemory
from planner.training.states import StateBytes as StateBytes
from planner.training.states import state_bytes as state_bytes
