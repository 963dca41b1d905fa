"""How much data a model of a size deserves, and what training on it costs in FLOPs, days and money.

Everything here is ``approximated``: fitted to dense transformers of one laboratory on one kind of text.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.compute import flops
from planner.errors import UnsupportedPlan
from planner.hardware import Device, hardware
from planner.sizing import size
from planner.spec import ArchitectureSpec

TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022 (arXiv:2203.15556), table 3: 20.0 to 21.6 tokens a parameter at the optimum."""

MOST = 10**18
"""Tokens, devices or positions that a budget takes: beyond, its FLOPs would exceed what a float holds."""

DEFAULT_UTILISATION = 0.4
"""Share of the dense peak that large training runs reach, as an assumption to change: 38% to 43% is reported for
Llama 3 on H100 (arXiv:2407.21783, table 4), 46% for PaLM on TPU v4 (arXiv:2204.02311, table 3)."""


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """Loss of a model of N parameters after D tokens: L(N, D) = E + A / N^alpha + B / D^beta, in nats a token."""

    name: str
    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in nats a token."""
        return self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta

    @property
    def _balance(self) -> float:
        return (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))

    def optimal_parameters(self, training_flops: float) -> float:
        """Parameters with the least loss for a compute of C = 6ND (Hoffmann et al. 2022, equation 4)."""
        return self._balance * (training_flops / 6) ** (self.beta / (self.alpha + self.beta))

    def optimal_tokens(self, parameters: float) -> float:
        """Tokens at which ``parameters`` is the size with the least loss for the compute C = 6ND.

        There both terms fall equally fast: alpha A / N^alpha = beta B / D^beta.
        """
        return (self.beta * self.b / (self.alpha * self.a)) ** (1 / self.beta) * parameters ** (self.alpha / self.beta)


HOFFMANN_2022 = ScalingLaw(
    "Hoffmann et al. 2022, approach 3", 1.69, 406.4, 410.7, 0.34, 0.28, "arXiv:2203.15556, equation 10"
)
BESIROGLU_2024 = ScalingLaw(
    "Besiroglu et al. 2024, replication", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, "arXiv:2404.10102, equation 4"
)
LAWS = (HOFFMANN_2022, BESIROGLU_2024)


@dataclass(frozen=True, slots=True)
class LawReading:
    """What one law says of a model."""

    law: ScalingLaw
    optimal_tokens: float
    loss: float
    """At the budget's tokens."""
    loss_at_optimum: float


@dataclass(frozen=True, slots=True)
class Budget:
    """Training one model on a number of tokens."""

    parameters: int
    """Those that the rule counts: active ones a token, embeddings included."""
    tokens: int
    tokens_per_parameter: float
    rule_tokens: int
    """20 tokens a parameter."""
    flops: int
    """Training FLOPs a token of this architecture at ``sequence_length``, times the tokens."""
    flops_6nd: int
    laws: tuple[LawReading, ...]
    sequence_length: int
    device: Device | None
    devices: int
    utilisation: float
    precision: str
    seconds: float | None
    device_hours: float | None
    cost_usd: float | None
    """``None`` without a device, or where it has no published price."""
    notes: tuple[str, ...]
    status: str = "approximated"


def chinchilla_tokens(spec: ArchitectureSpec) -> int:
    """Twenty tokens a parameter (Hoffmann et al. 2022); of a mixture of experts, a parameter that a token uses."""
    return TOKENS_PER_PARAMETER * size(spec).parameters.active


def training_budget(
    spec: ArchitectureSpec,
    tokens: int | None = None,
    sequence_length: int = 4096,
    device: Device | str | None = None,
    devices: int = 1,
    utilisation: float = DEFAULT_UTILISATION,
    precision: str = "bf16",
) -> Budget:
    """FLOPs, time and money of a training run; ``tokens`` absent: twenty a parameter.

    Parameters
    ----------
    utilisation
        Share of the device's dense peak that the run is assumed to reach, above 0 and at most 1.
    precision
        Which peak of the device counts: ``bf16``, ``fp16``, ``fp32``, ``fp8`` …
    """
    if not 0 < utilisation <= 1:
        raise UnsupportedPlan.of(
            f"A share of {utilisation} of the peak cannot be reached.",
            path="utilisation",
            remedy="Choose a value above 0 and at most 1.",
            code="utilisation_out_of_range",
        )
    for path, value in (("tokens", tokens), ("devices", devices), ("sequence_length", sequence_length)):
        if value is not None and value < 1:
            raise UnsupportedPlan.of(
                f"{value} {path.replace('_', ' ')} train nothing.",
                path=path,
                remedy="Choose a value above 0.",
                code="not_positive",
            )
        if value is not None and value > MOST:
            raise UnsupportedPlan.of(
                f"More {path.replace('_', ' ')} than there will ever be.",
                path=path,
                remedy=f"Choose a value up to {MOST:,}.",
                code="too_large",
            )
    parameters = size(spec).parameters
    counted = parameters.active
    rule = TOKENS_PER_PARAMETER * counted
    trained = rule if tokens is None else tokens
    step = flops(spec, sequence_length, training=True).total
    exact = -(-step * trained // sequence_length)
    notes: list[str] = []
    if parameters.active != parameters.total:
        notes.append("A mixture of experts: N is the active parameters; the laws were fitted to dense models.")
    seconds = hours = cost = None
    if isinstance(device, str):
        device = hardware(device)
    if device is not None:
        peak = device.peak_flops.get(precision)
        if peak is None:
            notes.append(f"{device.name} has no published {precision} rate, so no time is given.")
        else:
            seconds = exact / (peak * utilisation * devices)
            hours = seconds * devices / 3600
            if device.price_per_hour_usd is None:
                notes.append(f"No public price an hour is known for {device.name}.")
            else:
                cost = hours * device.price_per_hour_usd
    return Budget(
        parameters=counted,
        tokens=trained,
        tokens_per_parameter=trained / counted,
        rule_tokens=rule,
        flops=exact,
        flops_6nd=6 * counted * trained,
        laws=tuple(_read(law, counted, trained) for law in LAWS),
        sequence_length=sequence_length,
        device=device,
        devices=devices,
        utilisation=utilisation,
        precision=precision,
        seconds=seconds,
        device_hours=hours,
        cost_usd=cost,
        notes=tuple(notes),
    )


def _read(law: ScalingLaw, parameters: int, tokens: int) -> LawReading:
    optimum = law.optimal_tokens(parameters)
    return LawReading(law, optimum, law.loss(parameters, tokens), law.loss(parameters, optimum))
