"""Terms of a number: they sum up, their formulas are the code's own, and the values put into them give the number."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sympy
from hypothesis import given, settings

from planner import (
    ArchitectureSpec,
    PlannerError,
    ServingPlan,
    Term,
    TrainingPlan,
    cache_bytes,
    estimate_inference,
    explain,
    explain_block,
    flops,
    size,
)
from planner.cache import cache_use
from planner.explain import QUANTITIES, plain_text
from planner.scaling import chinchilla_tokens
from planner.serving import weights_bytes
from tests.planner.published import DEEPSEEK_V3, JAMBA, LLAMA_2_7B, MAMBA_2_130M
from tests.planner.strategies import specs

SERVING = ServingPlan(context_length=4096, batch_size=3, cache_dtype="fp8", weight_format="int4")
TRAINING = TrainingPlan(sequence_length=1000, micro_batch_size=2, precision="bf16_autocast")
PLANS = dict.fromkeys(("cache", "allocated_cache", "weights_memory", "inference_memory"), SERVING)
EXPLAINED = [quantity for quantity in QUANTITIES if quantity != "training_memory"]


def value_of(term: Term) -> sympy.Expr:
    """The formula with the symbols' values put in."""
    return term.formula.subs({sympy.Symbol(s.symbol, integer=True, positive=True): s.value for s in term.symbols})


def assert_sound(term: Term) -> None:
    for part in term.walk():
        assert value_of(part) == sympy.nsimplify(part.value) or float(value_of(part)) == part.value
        if part.children:
            assert sum(child.value for child in part.children) == pytest.approx(part.value, rel=1e-15)


@pytest.mark.parametrize("quantity", EXPLAINED)
@settings(max_examples=5, deadline=None)
@given(spec=specs(most_layers=2))
def test_terms_sum_up_and_formulas_give_the_number(quantity: str, spec: ArchitectureSpec) -> None:
    assert_sound(explain(spec, quantity, PLANS.get(quantity, TRAINING)))


def test_the_numbers_are_the_ones_that_pages_show() -> None:
    spec = DEEPSEEK_V3
    counted = flops(spec, 1000, 2)
    expected = {
        "parameters": size(spec).parameters.total,
        "active_parameters": size(spec).parameters.active,
        "flops": counted.total,
        "needed_flops": counted.needed_total,
        "training_flops": 3 * counted.total,
        "flops_forward": counted.total / 2000,
        "flops_training": 3 * counted.total / 2000,
        "cache": cache_bytes(spec, 4096, 3, "fp8"),
        "allocated_cache": cache_use(spec, 4096, 3, "fp8").allocated_bytes,
        "weights_memory": weights_bytes(spec, "int4"),
        "inference_memory": estimate_inference(spec, SERVING).memory.total_bytes,
        "chinchilla_tokens": chinchilla_tokens(spec),
    }
    assert set(expected) == set(EXPLAINED)
    for quantity, value in expected.items():
        assert explain(spec, quantity, PLANS.get(quantity, TRAINING)).value == value, quantity


def test_layers_that_are_alike_stand_together() -> None:
    root = explain(LLAMA_2_7B, "parameters")
    (layers,) = [child for child in root.children if child.path.startswith("layer_groups")]
    assert layers.times == 32
    assert layers.name == "attention + mlp (layers 0–31)"
    jamba = [child for child in explain(JAMBA, "parameters").children if child.path.startswith("layer_groups")]
    assert jamba[4].name == "attention + mlp (layers 4–28, every 8)"


def test_a_block_reads_as_in_a_textbook() -> None:
    term = explain_block(LLAMA_2_7B, "layer_groups[0].layers[0].sequence_mixer", "parameters")
    assert term.text == "2·d·h·(n_kv + n_q)"
    assert term.substitution == "2·128·4,096·(32 + 32)"
    assert term.value == 4 * 4096 * 4096
    assert {entry.symbol: entry.field for entry in term.symbols}["h"] == "hidden_size"
    assert "n_{kv}" in term.latex
    assert "arXiv:1911.02150" in term.source


def test_a_block_is_counted_once_whatever_the_repeats() -> None:
    path = "layer_groups[1].layers[0].channel_mixer"
    once = explain_block(DEEPSEEK_V3, path, "parameters")
    (all_of_them,) = [t for t in explain(DEEPSEEK_V3, "parameters").walk() if t.path == path and t.children]
    assert all_of_them.value == 58 * once.value


def test_a_state_does_not_grow_with_the_context() -> None:
    term = explain(MAMBA_2_130M, "cache")
    assert "T" not in {entry.symbol for entry in term.symbols}
    assert "B" in {entry.symbol for entry in term.symbols}


def test_a_rule_of_thumb_says_that_it_is_one() -> None:
    assert explain(LLAMA_2_7B, "parameters").status == "exact"
    rule = explain(LLAMA_2_7B, "chinchilla_tokens")
    assert rule.status == "approximated"
    assert "2203.15556" in rule.source


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(PlannerError) as caught:
        explain(LLAMA_2_7B, "weight")
    assert "parameters" in caught.value.remedy
    with pytest.raises(PlannerError) as caught:
        explain_block(LLAMA_2_7B, "layer_groups[7]", "parameters")
    assert "lm_head" in caught.value.remedy


def test_plain_text() -> None:
    assert plain_text("2*T**2*h") == "2·T²·h"


def test_importing_the_planner_loads_neither_sympy_nor_scipy_nor_torch() -> None:
    heavy = ("sympy", "scipy", "torch", "streamlit", "sqlalchemy")
    code = f"import planner, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
