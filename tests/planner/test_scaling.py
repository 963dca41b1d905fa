"""Budgets against the tables and equations of the papers that they quote."""

from __future__ import annotations

import pytest

from planner import UnsupportedPlan, flops, hardware, training_budget
from planner.scaling import BESIROGLU_2024, HOFFMANN_2022, LAWS, ScalingLaw, chinchilla_tokens
from tests.planner.published import LLAMA_2_7B, MIXTRAL_8X7B

# Hoffmann et al. 2022, arXiv:2203.15556, table 3: parameters, FLOPs, tokens.
CHINCHILLA_TABLE_3 = [
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12),
    (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
]


@pytest.mark.parametrize("parameters, training_flops, tokens", CHINCHILLA_TABLE_3)
def test_twenty_tokens_a_parameter_is_within_13_percent_of_table_3(
    parameters: float, training_flops: float, tokens: float
) -> None:
    """The table rounds: 1.5 T for 67 B is 22.4 a parameter, which its FLOPs put at 21.4."""
    assert 20 * parameters == pytest.approx(tokens, rel=0.13)
    assert 6 * parameters * tokens == pytest.approx(training_flops, rel=0.05)


def test_chinchilla_itself_is_near_the_replications_optimum() -> None:
    """Besiroglu et al. 2024, section 4: their fit agrees with the 70 B parameters and 1.4 T tokens of Chinchilla."""
    assert BESIROGLU_2024.optimal_tokens(70e9) / 70e9 == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.name)
@pytest.mark.parametrize("parameters", [1e8, 1e10, 1e12])
def test_at_the_optimum_no_other_split_of_the_compute_is_better(law: ScalingLaw, parameters: float) -> None:
    tokens = law.optimal_tokens(parameters)
    best = law.loss(parameters, tokens)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law.loss(parameters * factor, tokens / factor) > best
    assert law.optimal_parameters(6 * parameters * tokens) == pytest.approx(parameters)


def test_the_law_gives_the_loss_by_hand() -> None:
    by_hand = 1.69 + 406.4 / (70e9) ** 0.34 + 410.7 / (1.4e12) ** 0.28
    assert HOFFMANN_2022.loss(70e9, 1.4e12) == pytest.approx(by_hand)


def test_a_budget_on_hardware() -> None:
    budget = training_budget(LLAMA_2_7B, device="h100", devices=8, utilisation=0.4)
    assert budget.tokens == chinchilla_tokens(LLAMA_2_7B) == 20 * 6_738_415_616
    assert budget.flops_6nd == 6 * 6_738_415_616 * budget.tokens
    per_token = flops(LLAMA_2_7B, 4096, training=True).total / 4096
    assert budget.flops == pytest.approx(per_token * budget.tokens)
    h100 = hardware("h100")
    assert budget.seconds == pytest.approx(budget.flops / (989.4e12 * 0.4 * 8))
    assert budget.device_hours == pytest.approx(budget.seconds * 8 / 3600)
    assert budget.cost_usd == pytest.approx(budget.device_hours * h100.price_per_hour_usd)
    assert budget.status == "approximated"


def test_of_a_mixture_the_active_parameters_count() -> None:
    budget = training_budget(MIXTRAL_8X7B)
    assert budget.parameters < 13e9
    assert any("mixture" in note for note in budget.notes)


def test_what_is_not_known_is_left_out_and_said() -> None:
    budget = training_budget(LLAMA_2_7B, device="m3_max")
    assert budget.seconds is None
    assert budget.cost_usd is None
    assert "bf16" in budget.notes[0]
    unpriced = training_budget(LLAMA_2_7B, device="mi300x")
    assert unpriced.seconds is not None
    assert unpriced.cost_usd is None


@pytest.mark.parametrize(
    "change, path",
    [
        ({"utilisation": 0}, "utilisation"),
        ({"utilisation": 1.2}, "utilisation"),
        ({"tokens": 0}, "tokens"),
        ({"devices": 0}, "devices"),
    ],
)
def test_impossible_inputs_are_refused(change: dict[str, float], path: str) -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        training_budget(LLAMA_2_7B, **change)
    assert caught.value.path == path
