"""What the planner says of measured runs of serving today."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.hardware import Device, hardware
from planner.measured.inference import InferenceRow
from planner.serving.engines import EngineTerms
from planner.serving.memory import memory_by_stage
from planner.serving.times import (
    PromptWork,
    Work,
    decode_work,
    passes_with_prompts,
    prompts,
    time_pass,
    time_prompts,
)


@dataclass(frozen=True)
class Case:
    """A row with what its passes do, which no term changes."""

    row: InferenceRow
    device: Device
    decode: Work
    beside: tuple[float, Work | None]
    prompt: PromptWork | None

    @classmethod
    def of(cls, row: InferenceRow) -> Case:
        share, piece = passes_with_prompts(row.plan)
        longer = decode_work(row.spec, row.plan, piece) if share else None
        return cls(
            row,
            hardware(row.plan.hardware or ""),
            decode_work(row.spec, row.plan),
            (share, longer),
            prompts(row.spec, row.plan) if row.reading in ("answer", "prompt") else None,
        )

    def seconds(self, terms: EngineTerms | None = None) -> float:
        """The predicted reading; ``terms`` are those of the engine's profile where they are absent."""
        row = self.row
        reading = 0.0
        if self.prompt is not None:
            timed = time_prompts(row.spec, row.plan, self.device, self.prompt, terms)
            reading = sum(each.seconds for each in timed)
            if row.reading == "prompt":
                return reading
        token = time_pass(row.spec, row.plan, self.device, self.decode, terms).seconds
        share, longer = self.beside
        if longer is not None:
            token += share * (time_pass(row.spec, row.plan, self.device, longer, terms).seconds - token)
        return token if self.prompt is None else token * (row.plan.output_length or 1) + reading

    def log_ratio(self, terms: EngineTerms | None = None) -> float:
        """The logarithm of predicted over measured."""
        return math.log(self.seconds(terms) / self.row.value)


def error_of(row: InferenceRow) -> float:
    """The prediction's error as a share of what was measured; memory is held against all but the process's overhead."""
    if row.reading == "memory":
        held = memory_by_stage(row.spec, row.plan, row.plan.context_length, row.plan.batch_size)
        return float(sum(each.total_bytes - each.overhead_bytes for each in held) / row.value - 1)
    return math.exp(Case.of(row).log_ratio()) - 1
