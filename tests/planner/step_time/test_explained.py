"""A step's time opens into terms that sum to it, and whose formulas give them."""

from __future__ import annotations

from typing import Any

import pytest

from planner import explain, load
from planner.errors import UnsupportedPlan
from planner.plans import ServingPlan, TrainingPlan
from planner.step_time import step_time

PLANS: list[tuple[str, dict[str, Any]]] = [
    ("llama-3-8b", {}),
    ("deepseek-v3", {"expert_parallel": 8, "data_parallel": 8, "pipeline_parallel": 4, "global_batch_size": 64}),
    ("nemotron-h-8b", {"recompute": "full", "data_parallel": 8, "zero_stage": 3}),
    ("llama-3.1-70b", {"tensor_parallel": 8, "sequence_parallel": True, "context_parallel": 2, "precision": "fp8"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "fields"), PLANS)
def test_terms_sum_to_the_step_and_their_formulas_give_them(model: str, fields: dict[str, Any]) -> None:
    spec, plan = load(model), TrainingPlan(hardware="h100", sequence_length=8192, **fields)
    root = explain(spec, "step_time", plan)
    assert root.value == step_time(spec, plan).seconds
    assert len(root.children) >= 4
    for term in root.walk():
        if term.children:
            assert sum(child.value for child in term.children) == pytest.approx(term.value, rel=1e-9)
        numbers = {entry.symbol: entry.value for entry in term.symbols}
        given = {symbol: numbers[str(symbol)] for symbol in term.formula.free_symbols}
        assert float(term.formula.subs(given)) == pytest.approx(term.value, rel=1e-9)
        assert term.source
        assert term.status == "modelled"


def test_a_matrix_s_term_is_six_flops_an_element_and_token() -> None:
    spec, plan = load("llama-3-8b"), TrainingPlan(hardware="h100", sequence_length=8192)
    (matmul,) = [term for term in explain(spec, "step_time", plan).children if term.name == "matmul"]
    (head,) = [term for term in matmul.children if term.path == "lm_head"]
    assert {entry.field for entry in head.symbols} == {"vocab_size", "hidden_size"}
    assert head.uncertainty is not None


def test_without_a_device_there_is_nothing_to_open() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        explain(load("llama-3-8b"), "step_time", TrainingPlan())
    assert caught.value.problems[0].path == "hardware"


def test_a_step_is_of_a_plan_of_training() -> None:
    with pytest.raises(UnsupportedPlan):
        explain(load("llama-3-8b"), "step_time", ServingPlan(hardware="h100"))
