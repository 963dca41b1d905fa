"""The time of a training step opened into its parts, and these into layers, with the formulas of each.

The slowest stage's layers are read a second time with symbols in the specification's fields; the plan's numbers and the
device's rates stand as numbers. What a step waits for beside that stage's work stands as a number.
"""

from __future__ import annotations

from typing import Any

from planner.errors import UnsupportedPlan
from planner.plans import TrainingPlan
from planner.spec import ArchitectureSpec
from planner.step_time.estimate import (
    check_time_plan,
    known_machine,
    micro_batches,
    slowest_stage,
    stages_of,
    step_time,
)
from planner.step_time.operators import Pass, Seconds, Setting, embedding_pass, head_pass, layer_pass, setting_of
from planner.symbolic import symbolic_fields
from planner.terms import SymbolValue, Term
from planner.tree import place_of
from planner.uncertainty import Uncertainty

STEP_QUANTITIES = ("step_time",)
"""Times of a :class:`TrainingPlan` with hardware that :func:`planner.explain` opens."""
SOURCES = {
    "matmul": "Roofline: Williams et al. 2009, doi:10.1145/1498765.1498785",
    "attention": "Fused attention: Dao 2023, arXiv:2307.08691, section 4.1",
    "elementwise": "What is kept between matrices is written or read once by a kernel of its own",
    "launches": "Kernels by their number (assets/efficiencies.yaml)",
    "tensor_parallel": "Sequence parallelism: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2",
    "expert_parallel": "Rows to their experts and back: Rajbhandari et al. 2022, arXiv:2201.05596, section 5",
    "context_parallel": "Ring attention: Liu et al. 2023, arXiv:2310.01889, section 3",
    "recomputation": "What the backward pass computes again: Chen et al. 2016, arXiv:1604.06174",
    "bubble": "Schedules of pipelines: Narayanan et al. 2021, arXiv:2104.04473, section 2.2",
    "pipeline": "What stages send each other: Narayanan et al. 2021, arXiv:2104.04473, section 2.2",
    "data_parallel": "Rings: Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002",
    "optimizer": "States read and written once: Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1",
}
UNMEASURED = "calibrated on whole steps; no single part was measured"


def explain_step(spec: ArchitectureSpec, plan: TrainingPlan) -> Term:
    """The terms of a step's time, in seconds.

    Raises
    ------
    UnsupportedPlan
        where the plan is not modelled, or the time is not known.
    """
    found = step_time(spec, plan)
    if found.seconds is None:
        raise UnsupportedPlan.of(found.text, path="hardware", remedy="Name one, such as h100.", code="no_hardware")
    check_time_plan(plan, spec)
    known = known_machine(plan, found.devices)
    assert not isinstance(known, str)
    setting = setting_of(plan, known[2])
    explained = _Explained(spec, setting)
    stages = stages_of(spec, setting)
    layers = explained.layers(stages[slowest_stage(stages)].passes)
    parts = []
    for part, seconds in found.parts.items():
        if not seconds:
            continue
        children = tuple(layers.get(part, ()))
        formula = sum((child.formula for child in children), start=0) if children else None
        parts.append(explained.term(part.replace("_", " "), seconds, formula, SOURCES[part], children=children))
    low, high = float(found.low_seconds or 0), float(found.high_seconds or 0)
    ground = f"four of five measured steps that {found.profile} was not calibrated on lay there"
    if found.notes:
        ground = " ".join(found.notes)
    return explained.term(
        "step time",
        found.seconds,
        sum((part.formula for part in parts), start=0),
        f"Efficiencies of {found.profile} (assets/efficiencies.yaml)",
        children=tuple(parts),
        uncertainty=Uncertainty(low, high, ground),
    )


class _Explained:
    """One specification and its symbols, under one plan on one machine."""

    def __init__(self, spec: ArchitectureSpec, setting: Setting) -> None:
        self.setting = setting
        self.symbolic, values, fields = symbolic_fields(spec)
        self.known = {str(made): SymbolValue(str(made), value, fields[made]) for made, value in values.items()}

    def term(self, name: str, value: Any, formula: Any, source: str, **more: Any) -> Term:
        import sympy

        made = sympy.Float(value) if formula is None else sympy.sympify(formula)
        symbols = tuple(self.known[symbol] for symbol in sorted(str(symbol) for symbol in made.free_symbols))
        more.setdefault("uncertainty", Uncertainty(None, None, UNMEASURED))
        return Term(name, float(value), made, "seconds", "modelled", source, symbols, **more)

    def layers(self, passes: list[tuple[Any, Pass]]) -> dict[str, list[Term]]:
        """The terms of each part, a layer that is alike or a block outside the layers each."""
        number = micro_batches(self.setting.plan)
        terms: dict[str, list[Term]] = {}
        counts: dict[str, int] = {}
        of_path: dict[str, Pass] = {}
        for times, one in passes:
            counts[one.path] = counts.get(one.path, 0) + times
            of_path[one.path] = one
        for path, one in of_path.items():
            symbols = self._symbolic(path)
            for part, seconds in _by_part(one).items():
                formula = number * counts[path] * _by_part(symbols)[part]
                value = number * counts[path] * seconds
                if value:
                    made = self.term(path, value, formula, SOURCES[part], path=path, times=counts[path])
                    terms.setdefault(part, []).append(made)
        return terms

    def _symbolic(self, path: str) -> Pass:
        if path == "lm_head":
            return head_pass(self.symbolic, self.setting)
        if path == "token_embedding":
            return embedding_pass(self.symbolic, self.setting)
        group, layer = place_of(path)
        return layer_pass(self.symbolic, self.symbolic.layer_groups[group].layers[layer], self.setting, path)


def _by_part(one: Pass) -> dict[str, Any]:
    """Seconds of a micro batch by part, with what is computed again as one."""
    whole = Seconds()
    whole.update(one.forward)
    whole.update(one.backward)
    return {**whole.parts, "recomputation": one.again.total}
