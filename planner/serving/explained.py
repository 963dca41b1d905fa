"""The times of serving opened into terms: each operator with the formula of what bounds it.

Which operator is bound by memory and which by arithmetic is a matter of numbers; the formula of whichever takes longer,
and of what it does not hide of the other, is then read with symbols. ``bw`` is the bandwidth in bytes a second; peaks
and what the engine reaches stand as numbers, and so do the exchanges and the chains of kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from planner.errors import UnsupportedPlan
from planner.hardware import Device, hardware
from planner.plans import ServingPlan
from planner.quantities import Quantity
from planner.serving.engines import EngineTerms, profile_of
from planner.serving.estimate import check_serving
from planner.serving.formats import engine_of
from planner.serving.operators import Operator, Phase, operators
from planner.serving.speculative import speculation
from planner.serving.times import (
    OperatorTime,
    PassTime,
    decode_work,
    decoded_length,
    draft_seconds,
    pass_seconds,
    peak_of,
    prompt_length,
    prompt_passes,
    prompt_work,
    time_pass,
)
from planner.spec import ArchitectureSpec
from planner.symbolic import symbolic_fields
from planner.terms import SymbolValue, Term
from planner.uncertainty import Uncertainty

ROOFLINE = "Roofline: Williams et al. 2009, doi:10.1145/1498765.1498785"
LEVIATHAN = "Tokens a pass: Leviathan et al. 2022, arXiv:2211.17192, equation 1"
UNMEASURED = "calibrated on whole tokens and answers; no single part was measured"
TIME_QUANTITIES = ("inter_token_latency", "time_to_first_token")
"""Times of a :class:`ServingPlan` with hardware that :func:`planner.explain` opens."""


def explain_time(spec: ArchitectureSpec, quantity: str, plan: ServingPlan) -> Term:
    """The terms of a time of serving, in seconds.

    Raises
    ------
    UnsupportedPlan
        where the plan is not modelled, does not go with the specification, or names no hardware with a bandwidth.
    """
    check_serving(spec, plan)
    if plan.hardware is None:
        raise UnsupportedPlan.of(
            "Times are of a device.", path="hardware", remedy="Name one, such as h100.", code="no_hardware"
        )
    device = hardware(plan.hardware)
    if device.memory_bandwidth_bytes_per_second is None:
        raise UnsupportedPlan.of(
            f"No bandwidth is known of {device.name}.",
            path="hardware",
            remedy="Choose a device with one.",
            code="no_bandwidth",
        )
    if quantity == "time_to_first_token" and peak_of(device, "bf16") is None:
        raise UnsupportedPlan.of(
            f"No peak is known of {device.name}, so that reading a prompt has no time.",
            path="hardware",
            remedy="Choose a device with one.",
            code="no_peak",
        )
    explained = _Explained(spec, plan, device)
    return explained.token() if quantity == "inter_token_latency" else explained.first_token()


class _Explained:
    """One plan on one device, and the symbols of its specification."""

    def __init__(self, spec: ArchitectureSpec, plan: ServingPlan, device: Device) -> None:
        import sympy

        self.spec, self.plan, self.device = spec, plan, device
        self.profile: EngineTerms = profile_of(engine_of(plan), device)
        self.symbolic, values, fields = symbolic_fields(spec)
        self.known = {str(made): SymbolValue(str(made), value, fields[made]) for made, value in values.items()}
        self.length, self.batch, self.bandwidth = (
            sympy.Symbol(name, integer=True, positive=True) for name in ("T", "B", "bw")
        )
        self.known["T"] = SymbolValue("T", plan.context_length, "plan.context_length")
        self.known["B"] = SymbolValue("B", plan.batch_size, "plan.batch_size")
        rate = round(device.memory_bandwidth_bytes_per_second or 1)
        self.known["bw"] = SymbolValue("bw", rate, "hardware.memory_bandwidth_bytes_per_second")

    def term(self, name: str, value: float, formula: Any = None, **more: Any) -> Term:
        import sympy

        made = sympy.Float(value) if formula is None else sympy.sympify(formula)
        used = sorted(str(symbol) for symbol in made.free_symbols)
        more.setdefault("source", ROOFLINE)
        more.setdefault("uncertainty", Uncertainty(None, None, UNMEASURED))
        symbols = tuple(self.known[symbol] for symbol in used)
        return Term(name=name, value=value, formula=made, unit="seconds", status="modelled", symbols=symbols, **more)

    def sum_of(self, name: str, children: list[Term], over: float = 1, **more: Any) -> Term:
        """The sum of terms, all divided by ``over``."""
        parts = tuple(_divided(child, over) for child in children)
        formula: Any = 0
        for part in parts:
            formula = formula + part.formula
        return self.term(name, sum(part.value for part in parts), formula, children=parts, **more)

    def of_pass(self, timed: PassTime, formulas: list[Operator]) -> list[Term]:
        """The terms of one pass; ``formulas`` are its operators in symbols."""
        found = [self.operator(each, formula) for each, formula in zip(timed.operators, formulas, strict=True)]
        launch = "Each mixer's chain of kernels, as calibrated (assets/serving-efficiencies.yaml)"
        rest = [
            ("chains of kernels", timed.launch_seconds, launch),
            ("exchange between devices", timed.exchange_seconds, "Rings: 2(n − 1)/n of the stream behind each mixer"),
            ("waiting for the host", timed.waiting_seconds, "What starting kernels from Python takes longer"),
            ("between passes", timed.pass_seconds, "Scheduling and sampling, as calibrated"),
        ]
        return [*found, *(self.term(name, seconds, source=source) for name, seconds, source in rest if seconds)]

    def operator(self, timed: OperatorTime, formula: Operator) -> Term:
        """One operator by whichever bounds it."""
        done = timed.operator
        name = f"{done.component.replace('_', ' ')}: {done.name}, bound by {timed.bound}"
        where = {"path": done.path, "times": int(done.times)}
        if done.on_host:
            return self.term(f"{name}, on the host", timed.seconds, **where)
        weights = 0.0 if not done.weight_bytes else _share(self, timed, done)
        moved: Quantity = (formula.cache_bytes + formula.activation_bytes) / (self.bandwidth * self.profile.cache.value)
        if weights:
            moved = moved + formula.weight_bytes / (self.bandwidth * weights)
        if not timed.arithmetic_seconds:
            return self.term(name, timed.seconds, moved, **where)
        multiplied = formula.flops / (done.flops / timed.arithmetic_seconds)
        longer, shorter = (multiplied, moved) if timed.bound == "arithmetic" else (moved, multiplied)
        return self.term(name, timed.seconds, longer + (1 - timed.overlap) * shorter, **where)

    def symbols_of(self, phase: Phase, length: Quantity, head: Quantity) -> list[Operator]:
        """The operators of a pass in symbols."""
        return operators(self.symbolic, self.plan, phase, length, self.batch, 0, head)

    def token(self) -> Term:
        """From a token to the next one."""
        found = speculation(self.plan.speculative)
        plain = self.plan.model_copy(update={"speculative": None, "chunked_prefill": False})
        timed = time_pass(self.spec, plain, self.device, decode_work(self.spec, plain))
        length = self.length - (self.plan.context_length - decoded_length(self.plan))
        children = self.of_pass(timed, self.symbols_of("decode", length, self.batch))
        whole = pass_seconds(self.spec, self.plan, self.device)
        if whole != timed.seconds:
            what = "prompts and proposals read beside it" if found else "prompts read beside it"
            children.append(self.term(what, whole - timed.seconds, source="The same pass with more tokens"))
        over = 1.0
        if found is not None:
            over = found.tokens_a_pass
            if found.draft is not None:
                seconds = draft_seconds(self.plan, self.device)
                children.append(self.term(f"{found.proposed} passes of the draft", seconds))
        source = ROOFLINE if found is None else f"{ROOFLINE}. {LEVIATHAN}: {over:.3g}"
        return self.whole("inter-token latency", children, over, source)

    def first_token(self) -> Term:
        """Until all prompts have been read."""
        first, *others = prompt_passes(self.spec, self.plan, self.device)
        if self.plan.cached_prefix:
            children = [self.term(name, seconds) for name, seconds in first.timed.parts.items() if seconds]
        else:
            length = self.length - (self.plan.context_length - prompt_length(self.plan))
            _, pieces = prompt_work(self.spec, self.plan)
            formulas = [_piece(each, pieces) for each in self.symbols_of("prefill", length, self.batch)]
            children = self.of_pass(first.timed, formulas)
        children = [_divided(child, 1 / first.times) for child in children]
        children += [self.term(each.what, each.seconds) for each in others]
        return self.whole("time to first token", children, 1, ROOFLINE)

    def whole(self, name: str, children: list[Term], over: float, source: str) -> Term:
        """The root, with the interval in which measured times lay."""
        made = self.sum_of(name, children, over, source=source)
        low, high = self.profile.relative_interval
        ground = (
            f"of the runs that {self.profile.engine} on {self.profile.memory_text} was not calibrated on, four in five "
            f"took {low:.2f} to {high:.2f} times as long as predicted"
        )
        value = float(made.value)
        bounds = Uncertainty(min(value, low * value), max(value, high * value), ground)
        return dataclasses.replace(made, uncertainty=bounds)


def _share(explained: _Explained, timed: OperatorTime, done: Operator) -> float:
    """The share of the bandwidth at which an operator's weights were read."""
    rate = float(explained.device.memory_bandwidth_bytes_per_second or 1)
    other = (done.cache_bytes + done.activation_bytes) / (rate * explained.profile.cache.value)
    return float(done.weight_bytes) / rate / (timed.memory_seconds - float(other))


def _piece(operator: Operator, passes: int) -> Operator:
    """One of several passes over a prompt: a share of its tokens, and all of its weights."""
    if passes == 1:
        return operator
    return dataclasses.replace(
        operator,
        flops=operator.flops / passes,
        cache_bytes=operator.cache_bytes / passes,
        activation_bytes=operator.activation_bytes / passes,
    )


def _divided(term: Term, over: float) -> Term:
    return term if over == 1 else dataclasses.replace(term, value=term.value / over, formula=term.formula / over)
