"""What the planner says of measured runs of serving today."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.hardware import Device, hardware
from planner.measured.inference import InferenceRow
from planner.serving.engines import EngineTerms
from planner.serving.memory import serving_memory
from planner.serving.times import Work, decode_work, passes_with_prompts, prompt_work, time_pass


@dataclass(frozen=True)
class Case:
    """A row with what its passes do, which no term changes."""

    row: InferenceRow
    device: Device
    decode: Work
    beside: tuple[float, Work | None]
    prompt: tuple[Work, int] | None

    @classmethod
    def of(cls, row: InferenceRow) -> Case:
        share, piece = passes_with_prompts(row.plan)
        longer = decode_work(row.spec, row.plan, piece) if share else None
        return cls(
            row,
            hardware(row.plan.hardware or ""),
            decode_work(row.spec, row.plan),
            (share, longer),
            prompt_work(row.spec, row.plan) if row.reading in ("answer", "prompt") else None,
        )

    def seconds(self, terms: EngineTerms | None = None) -> float:
        """The predicted reading; ``terms`` are those of the engine's profile where they are absent."""
        row = self.row
        if self.prompt is not None and row.reading == "prompt":
            work, passes = self.prompt
            return time_pass(row.spec, row.plan, self.device, work, terms).seconds * passes
        token = time_pass(row.spec, row.plan, self.device, self.decode, terms).seconds
        share, longer = self.beside
        if longer is not None:
            token += share * (time_pass(row.spec, row.plan, self.device, longer, terms).seconds - token)
        if self.prompt is None:
            return token
        work, passes = self.prompt
        prompt = time_pass(row.spec, row.plan, self.device, work, terms).seconds * passes
        return token * (row.plan.output_length or 1) + prompt

    def log_ratio(self, terms: EngineTerms | None = None) -> float:
        """The logarithm of predicted over measured."""
        return math.log(self.seconds(terms) / self.row.value)


def error_of(row: InferenceRow) -> float:
    """The prediction's error as a share of what was measured; memory is held against all but the process's overhead."""
    if row.reading == "memory":
        held = serving_memory(row.spec, row.plan, row.plan.context_length, row.plan.batch_size)
        return float((held.total_bytes - held.overhead_bytes) / row.value - 1)
    return math.exp(Case.of(row).log_ratio()) - 1
