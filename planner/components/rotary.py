"""How rotary frequencies are stretched for contexts longer than those that a model was first trained on.

Nothing here changes a size or a cost; it changes what is computed, so that a model built from a published
configuration gives that model's own logits. The field names are those of published configurations' ``rope_parameters``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planner.components.base import refuse
from planner.components.strict import Strict


class _Scaling(Strict):
    def for_channels(self, rotary_dim: int) -> Self:
        """The same stretching of heads with this many rotated channels, as a smaller model has them."""
        return self


class LinearScaling(_Scaling):
    """Positions are divided by the factor (Chen et al. 2023, arXiv:2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0)


class DynamicScaling(_Scaling):
    """The base grows with the sequence, once that is longer than the original context ("NTK-aware", section 3.3 of
    Peng et al. 2023, arXiv:2309.00071)."""

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0)


class YarnScaling(_Scaling):
    """Slow frequencies are divided by the factor, fast ones stay, a ramp leads from the ones to the others (YaRN; Peng
    et al. 2023, arXiv:2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    """Turns within the original context from which a frequency stays."""
    beta_slow: float = Field(default=1.0, gt=0)
    """Turns within the original context up to which a frequency is divided."""
    truncate: bool = True
    """Whether the ramp begins and ends at whole pairs of channels."""
    attention_factor: float | None = Field(default=None, ge=0)
    """Factor on rotated queries and keys; absent: ``0.1 ln(factor) + 1``, or what the two fields below say."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """Where both are set, the factor is the quotient of ``0.1 m ln(factor) + 1`` for the two (DeepSeek)."""

    @property
    def resulting_attention_factor(self) -> float:
        """Factor on rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


class Llama3Scaling(_Scaling):
    """Long wavelengths are divided by the factor, short ones stay, those between are blended (Llama 3.1;
    arXiv:2407.21783)."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    """Turns within the original context up to which a frequency is divided."""
    high_freq_factor: float = Field(gt=0)
    """Turns within the original context from which a frequency stays."""
    original_max_position_embeddings: int = Field(gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Equal ones (Llama 4 Scout has them) leave nothing to blend: a frequency is divided or stays.
        if self.high_freq_factor < self.low_freq_factor:
            refuse(
                "high_freq_factor",
                f"Between {self.low_freq_factor} and {self.high_freq_factor} turns there is nothing to blend over.",
                "Choose at least low_freq_factor.",
                "empty_range",
            )
        return self


class LongRopeScaling(_Scaling):
    """Each frequency is divided by a factor of its own, found by search: one list for sequences within the original
    context, one for longer ones (LongRoPE; Ding et al. 2024, arXiv:2402.13753)."""

    kind: Literal["longrope"] = "longrope"
    factor: float = Field(gt=0)
    """Longest context over the original one."""
    original_max_position_embeddings: int = Field(gt=1)
    short_factor: tuple[float, ...] = Field(min_length=1)
    long_factor: tuple[float, ...] = Field(min_length=1)
    """One for each pair of rotated channels."""
    attention_factor: float | None = Field(default=None, ge=0)
    """Factor on rotated queries and keys; absent: ``sqrt(1 + ln(factor) / ln(original context))``."""

    def for_channels(self, rotary_dim: int) -> Self:
        pairs = max(1, rotary_dim // 2)
        old = len(self.short_factor)
        # Frequencies fall evenly, on a scale of powers: the factor of the nearest one.
        nearest = [min(old - 1, (2 * pair + 1) * old // (2 * pairs)) for pair in range(pairs)]
        return self.model_copy(
            update={
                field: tuple(getattr(self, field)[index] for index in nearest)
                for field in ("short_factor", "long_factor")
            }
        )

    @property
    def resulting_attention_factor(self) -> float:
        """Factor on rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position_embeddings))


RotaryScaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling, Field(discriminator="kind")
]


def check_rotation(positions: Any, rotary_dim: int, theta: float | None, scaling: RotaryScaling | None) -> None:
    """Refuse rotary fields of a mixer that have no effect, and lists of another length than its frequencies."""
    if positions.kind != "rotary":
        for field, value in (("rope_theta", theta), ("rope_scaling", scaling)):
            if value is not None:
                refuse(
                    field,
                    "A rotary base or its scaling has no effect where the model's positions are not rotary.",
                    "Remove it, or set positions to {kind: rotary}.",
                    "positions_not_rotary",
                )
        return
    place, used = ("positions.scaling", positions.scaling) if scaling is None else ("rope_scaling", scaling)
    if isinstance(used, DynamicScaling) and rotary_dim == 2:
        refuse(
            f"{place}.kind",
            "A base that grows has no effect where a single pair of channels is rotated.",
            "Choose another kind of scaling, or rotate more channels.",
            "single_frequency",
        )
    if isinstance(used, LongRopeScaling) and rotary_dim:
        for field in ("short_factor", "long_factor"):
            count = len(getattr(used, field))
            if 2 * count != rotary_dim:
                refuse(
                    f"{place}.{field}",
                    f"{count} factors do not belong to {rotary_dim} rotated channels.",
                    f"Give {rotary_dim // 2} of them: one for each pair of channels.",
                    "wrong_number_of_factors",
                )
