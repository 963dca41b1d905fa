"""Runs that others measured and published, as specifications and plans, to hold predictions against.

The files are in ``assets/measured``, each row with its source, license and date. A row whose setting no plan can say is
skipped with a reason, never bent to fit; :func:`summary` counts both.
"""

from planner.measured.rows import MeasuredMemory, Skipped, TrainingRow
from planner.measured.training import Summary, skipped_rows, summary, training_rows

__all__ = ["MeasuredMemory", "Skipped", "Summary", "TrainingRow", "skipped_rows", "summary", "training_rows"]
