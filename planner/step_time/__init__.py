"""How long a training step takes, of what the time consists, and what a run on a budget of tokens costs."""

from planner.step_time.estimate import step_time
from planner.step_time.records import StepTime

__all__ = ["StepTime", "step_time"]
