"""One formula, three readings: numbers, float64 arrays and symbols must agree, for every quantity and component."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner import ArchitectureSpec, UnsupportedPlan, cache_bytes, flops, parse_spec, size
from planner.quantities import ceiling_divide, exact_divide, floor_divide, largest, rounded_up, smallest
from planner.serving import activation_bytes, pass_bytes, projection_outputs, weights_bytes
from planner.sizing import count_parameters
from planner.symbolic import candidates, evaluate, substitute, symbolic, symbolic_fields
from tests.planner.strategies import CHUNKED, specs

WEIGHT_FORMATS = ("bf16", "fp8_block", "gptq_int4", "nf4_dq", "mxfp4", "q4_k_m", "iq3_xs")
"""One of each way of counting: plain, by rows, by blocks, by groups, and mixtures of GGUF types."""
Formula = Callable[[ArchitectureSpec, Any, Any], Any]

QUANTITIES: dict[str, Formula] = {
    "parameters": lambda spec, length, batch: count_parameters(spec).total,
    "active parameters": lambda spec, length, batch: count_parameters(spec).active,
    "active without embedding": lambda spec, length, batch: count_parameters(spec).active_without_embedding,
    "flops": lambda spec, length, batch: flops(spec, length, batch).total,
    "needed flops": lambda spec, length, batch: flops(spec, length, batch).needed_total,
    "training flops": lambda spec, length, batch: flops(spec, length, batch, training=True).total,
    "2N": lambda spec, length, batch: flops(spec, length, batch).approximate_total,
    "cache": lambda spec, length, batch: cache_bytes(spec, length, batch, "bf16"),
    "serving activations": lambda spec, length, batch: sum(
        pass_bytes(spec, length, batch, outputs) for outputs in projection_outputs(spec)
    ),
    **{
        f"weights in {name}": lambda spec, length, batch, name=name: weights_bytes(spec, name)
        for name in WEIGHT_FORMATS
    },
}


def read_as_arrays(formula: Formula, spec: ArchitectureSpec, length: int, batch: int) -> np.ndarray:
    """The value with an array of two equal entries in every numeric field."""

    def change(path: str, symbol: str, value: int) -> np.ndarray:
        return np.array([value, value], dtype=np.float64)

    made = formula(substitute(spec, change), change("", "", length), change("", "", batch))
    return np.broadcast_to(np.asarray(made, dtype=np.float64), (2,))


def read_as_symbols(formula: Formula, spec: ArchitectureSpec, length: int, batch: int) -> sympy.Expr:
    """The value of the formula in symbols once each symbol has its number."""
    made, values = symbolic(spec)
    inputs = {
        sympy.Symbol("T", integer=True, positive=True): length,
        sympy.Symbol("B", integer=True, positive=True): batch,
    }
    return sympy.sympify(formula(made, *inputs)).subs({**values, **inputs})


def assert_readings_agree(formula: Formula, spec: ArchitectureSpec, length: int, batch: int) -> None:
    number = formula(spec, length, batch)
    assert isinstance(number, int)
    np.testing.assert_allclose(read_as_arrays(formula, spec, length, batch), number, rtol=1e-13)
    assert read_as_symbols(formula, spec, length, batch) == number


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
@settings(max_examples=12, deadline=None)
@given(spec=specs(), length=st.integers(1, 300), batch=st.integers(1, 5))
@example(spec=CHUNKED, length=198, batch=1)
def test_numbers_arrays_and_symbols_agree(quantity: str, spec: ArchitectureSpec, length: int, batch: int) -> None:
    assert_readings_agree(QUANTITIES[quantity], spec, length, batch)


@settings(max_examples=3, deadline=None)
@given(spec=specs(most_layers=1), length=st.integers(1, 300), batch=st.integers(1, 5))
def test_the_widest_pass_agrees(spec: ArchitectureSpec, length: int, batch: int) -> None:
    """With few layers: SymPy compares every pair of a maximum's arguments."""
    assert_readings_agree(activation_bytes, spec, length, batch)


def test_integer_arrays_are_refused_because_they_overflow_silently() -> None:
    """6ND for 37 B parameters and 14.8 T tokens is 3.3e24, where int64 ends at 9.2e18."""
    with pytest.raises(TypeError, match="float64"):
        smallest(np.array([1, 2]), 3)


@given(a=st.integers(0, 10_000), b=st.integers(1, 500))
def test_helpers_agree_with_plain_arithmetic(a: int, b: int) -> None:
    assert (smallest(a, b), largest(a, b)) == (min(a, b), max(a, b))
    assert (floor_divide(a, b), ceiling_divide(a, b)) == (a // b, (a + b - 1) // b)
    assert rounded_up(a, b) in range(a, a + b)
    assert rounded_up(a, b) % b == 0
    assert exact_divide(a * b, b) == a
    array = np.array([a], dtype=np.float64)
    assert ceiling_divide(array, b)[0] == ceiling_divide(a, b)
    assert ceiling_divide(sympy.Integer(a), b) == ceiling_divide(a, b)


@pytest.mark.parametrize("divide, quotients", [(floor_divide, (1, 0, 4)), (ceiling_divide, (2, 0, 5))])
def test_a_quotient_is_rounded_in_whatever_order_its_symbols_are_known(divide: Any, quotients: Any) -> None:
    """46, 0 and 160 in parts of 38, by hand, as an even maximum that is known but for one of its symbols."""
    length, back, size = sympy.symbols("T p c", integer=True, positive=True)
    formula = divide(largest(0, length - size * back), size)
    for behind, quotient in zip((4, 6, 1), quotients, strict=True):
        values = {length: 198, back: behind, size: 38}
        for order in itertools.permutations(values):
            read = formula
            for symbol in order:
                read = read.subs(symbol, values[symbol])
            assert read == quotient
    assert divide(length, 1) == length


def test_a_formula_that_branches_on_a_value_fails_at_once() -> None:
    made, _ = symbolic(parse_spec(DENSE))
    with pytest.raises(TypeError):
        min(made.hidden_size, made.vocab_size)


DENSE: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "layer_groups": [
        {
            "repeats": 4,
            "layers": [
                {
                    "sequence_mixer": {
                        "kind": "attention",
                        "num_attention_heads": 4,
                        "num_key_value_heads": 2,
                        "head_dim": 16,
                    },
                    "channel_mixer": {"kind": "mlp", "intermediate_size": 172},
                }
            ],
        }
    ],
}


def test_the_formula_of_a_dense_model_is_the_one_of_the_textbook() -> None:
    made, _ = symbolic(parse_spec(DENSE))
    symbols = sympy.symbols("L d h n_kv n_q f V", integer=True, positive=True)
    L, d, h, n_kv, n_q, f, V = symbols
    expected = L * (2 * d * h * n_q + 2 * d * h * n_kv + 3 * f * h + 2 * h) + 2 * V * h + h
    assert sympy.expand(size(made).parameters.total - expected) == 0


def test_candidates_are_sized_in_one_pass() -> None:
    widths = np.array([64.0, 128.0, 256.0])
    made = candidates(parse_spec(DENSE), {"hidden_size": widths})
    each = [count_parameters(parse_spec({**DENSE, "hidden_size": int(width)})).total for width in widths]
    assert count_parameters(made).total.tolist() == each
    with pytest.raises(ValueError, match="no such numeric fields"):
        candidates(parse_spec(DENSE), {"hidden": widths})


MIXED: dict[str, Any] = {
    **DENSE,
    "layer_groups": [
        *DENSE["layer_groups"],
        {
            "repeats": 3,
            "layers": [
                {
                    "sequence_mixer": {
                        "kind": "latent_attention",
                        "num_attention_heads": 4,
                        "kv_lora_rank": 32,
                        "qk_nope_head_dim": 16,
                        "qk_rope_head_dim": 8,
                        "v_head_dim": 16,
                    },
                    "channel_mixer": {
                        "kind": "moe",
                        "num_experts": 8,
                        "num_experts_per_tok": 2,
                        "intermediate_size": 48,
                    },
                }
            ],
        },
    ],
}


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_candidates_in_blocks_are_those_that_are_sized_one_by_one(block: int) -> None:
    """Of ten candidates the last block holds what is left, or is the only one."""
    experts = "layer_groups[1].layers[0].channel_mixer.num_experts"
    drawn = np.random.default_rng(0)
    fields = {
        "hidden_size": drawn.integers(8, 4096, 10).astype(np.float64),
        "layer_groups[1].repeats": drawn.integers(1, 90, 10).astype(np.float64),
        experts: drawn.integers(2, 400, 10).astype(np.float64),
    }
    found = evaluate(
        parse_spec(MIXED),
        fields,
        {
            "total": lambda spec: count_parameters(spec).total,
            "active": lambda spec: count_parameters(spec).active,
            "cache": lambda spec: cache_bytes(spec, 1000),
            "width": lambda spec: spec.hidden_size,
        },
        block=block,
    )
    for index in range(10):
        data = copy.deepcopy(MIXED)
        data["hidden_size"] = int(fields["hidden_size"][index])
        data["layer_groups"][1]["repeats"] = int(fields["layer_groups[1].repeats"][index])
        data["layer_groups"][1]["layers"][0]["channel_mixer"]["num_experts"] = int(fields[experts][index])
        spec = parse_spec(data)
        counts = size(spec).parameters
        assert {name: values[index] for name, values in found.items()} == {
            "total": counts.total,
            "active": counts.active,
            "cache": cache_bytes(spec, 1000),
            "width": spec.hidden_size,
        }


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"hidden_size": np.arange(3)}, TypeError),
        ({"hidden_size": np.ones(3), "vocab_size": np.ones(4)}, ValueError),
        ({"hidden_size": np.ones((3, 2))}, ValueError),
        ({"hidden": np.ones(3)}, ValueError),
        ({}, ValueError),
    ],
)
def test_fields_that_make_no_candidates_are_refused(fields: dict[str, np.ndarray], error: type[Exception]) -> None:
    with pytest.raises(error):
        evaluate(parse_spec(DENSE), fields, {"total": lambda spec: count_parameters(spec).total})


def test_fields_with_the_same_short_name_get_symbols_of_their_own() -> None:
    """``k`` is both the kernel of a convolution and the experts a token."""
    layer = {
        "sequence_mixer": {"kind": "mamba1", "intermediate_size": 64, "state_size": 8, "time_step_rank": 4},
        "channel_mixer": {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 32},
    }
    _, values, fields = symbolic_fields(parse_spec({**DENSE, "layer_groups": [{"layers": [layer]}]}))
    assert len(set(fields.values())) == len(fields)
    by_name = {str(symbol): value for symbol, value in values.items()}
    assert (by_name["k"], by_name["k_channel"]) == (4, 2)


def test_unsupported_formats_are_refused_in_every_reading() -> None:
    made, _ = symbolic(parse_spec(DENSE))
    with pytest.raises(UnsupportedPlan):
        cache_bytes(made, 10, dtype="int3")
