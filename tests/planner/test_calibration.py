"""Times from a machine's calibration, by hand; nothing here is timed."""

from __future__ import annotations

import datetime
import pathlib

import pytest

from planner import ServingPlan, TrainingPlan, UnsupportedPlan, estimate_inference, estimate_training, load
from planner.calibration import (
    Calibration,
    ExpertSeconds,
    KindRates,
    MatrixRates,
    OptionRates,
    OuterRates,
    Phase,
    PhaseRates,
    PrecisionRates,
    ScoreRates,
    Scores,
    calibration_path,
    predict_time,
    stored_calibration,
)
from planner.spec import ArchitectureSpec

RATE = 1e9
KIND = KindRates(launch_seconds=1e-3, seconds_per_byte=1e-9, seconds_per_flop=2e-9)
OUTER = OuterRates(launch_seconds=5e-3, seconds_per_logit=1e-8)


def flat(rate: float) -> MatrixRates:
    return MatrixRates(rows=(1,), sizes=(32,), working_sets=(1,), flops_per_second=(((rate,),),))


def rates(rate: float, **kinds: KindRates) -> PrecisionRates:
    phase = PhaseRates(kinds={"attention": KIND, "mlp": KIND, "moe": KIND, **kinds}, outer=OUTER)
    return PrecisionRates(
        forward=flat(rate), backward=flat(rate / 2), phases={"prefill": phase, "decode": phase, "training": phase}
    )


def calibration(**kinds: KindRates) -> Calibration:
    return Calibration(
        device_name="two cores", threads=2, versions={},
        measured_at=datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC),
        launch_seconds=1e-6, copy_bytes_per_second={}, attention_flops_per_second={},
        optimizer_seconds_per_parameter=1e-9, precisions={"fp32": rates(RATE, **kinds)},
    )  # fmt: skip


def test_rates_are_interpolated_between_rows_and_sizes_in_their_logarithms() -> None:
    warm = ((1.0, 100.0), (10_000.0, 1_000_000.0))
    cold = tuple(tuple(rate / 100 for rate in line) for line in warm)
    table = MatrixRates(rows=(1, 100), sizes=(10, 1000), working_sets=(1000, 100_000), flops_per_second=(warm, cold))
    assert table.at(1, 10, 10, 1000) == pytest.approx(1)
    assert table.at(100, 1000, 1000, 1000) == pytest.approx(1_000_000)
    # Half way in both logarithms: ten rows, and a matrix of 10 by 1,000, which is 100 squared.
    assert table.at(10, 10, 1000, 1000) == pytest.approx(1000)
    # Beyond the table the nearest edge holds.
    assert table.at(1e6, 1e6, 1e6, 1) == pytest.approx(1_000_000)
    assert table.at(0.1, 1, 1, 1) == pytest.approx(1)
    # Of ten times the bytes a tenth, as a hundred times have a hundredth.
    assert table.at(1, 10, 10, 10_000) == pytest.approx(0.1)
    assert table.at(1, 10, 10, 1e9) == pytest.approx(0.01)


def test_scores_take_their_seconds_by_length_and_channels() -> None:
    # A score of 8 channels takes 1 ns at 16 tokens and 4 ns at 256; of 32 channels twice that.
    table = ScoreRates(lengths=(16, 256), channels=(8, 32), seconds=((1e-9, 2e-9), (4e-9, 8e-9)))
    assert table.at(16, 8) == pytest.approx(1e-9)
    assert table.at(64, 16) == pytest.approx(2 * 2**0.5 * 1e-9)
    assert table.at(1, 1) == pytest.approx(1e-9)
    assert table.at(1e6, 1e6) == pytest.approx(8e-9)


def test_fused_scores_are_half_of_a_square_or_a_whole_one_under_a_mask() -> None:
    each = [ScoreRates(lengths=(1,), channels=(1,), seconds=((seconds,),)) for seconds in (1e-9, 2e-9, 5e-9, 7e-9)]
    scores: dict[Scores, tuple[ScoreRates, ScoreRates]] = {"causal": (each[0], each[1]), "masked": (each[2], each[3])}
    masked = {"attention, masked": KIND}

    def between(name: str, phase: Phase) -> float:
        known = calibration(**masked)
        precision = known.precisions["fp32"].model_copy(update={"scores": scores})
        known = known.model_copy(update={"precisions": {"fp32": precision}})
        return predict_time(load(name), known, phase, batch_size=2, length=64).parts["between tokens"]

    # Two sequences and 32 heads in 32 layers.
    assert between("llama-2-7b", "prefill") == pytest.approx(1e-9 * 2 * 32 * 32 * 64 * 65 / 2)
    assert between("llama-2-7b", "training") == pytest.approx(3e-9 * 2 * 32 * 32 * 64 * 65 / 2)
    # A window, whatever it hides.
    assert between("mistral-7b", "prefill") == pytest.approx(5e-9 * 2 * 32 * 32 * 64 * 64)
    assert between("mistral-7b", "training") == pytest.approx(12e-9 * 2 * 32 * 32 * 64 * 64)


def test_an_option_changes_the_launches_of_its_kind() -> None:
    added = {
        "norms of queries and keys": OptionRates(launch_seconds=4e-4),
        "no rotation": OptionRates(launch_seconds=-2e-4),
        "no gate": OptionRates(launch_seconds=-5.0),
        "norms before and behind": OptionRates(launch_seconds=3e-4),
    }

    def launches(name: str) -> float:
        known = calibration(**{"attention, scores computed again": KIND})
        phases = {
            phase: each.model_copy(update={"options": added}) for phase, each in known.precisions["fp32"].phases.items()
        }
        precision = known.precisions["fp32"].model_copy(update={"phases": phases})
        known = known.model_copy(update={"precisions": {"fp32": precision}})
        return predict_time(load(name), known, "decode", batch_size=1, length=64).parts["launches"]

    assert launches("llama-2-7b") == pytest.approx(64 * 1e-3 + 5e-3)
    # 36 layers, whose queries and keys have norms.
    assert launches("qwen3-8b") == pytest.approx(36 * (2e-3 + 4e-4) + 5e-3)
    # 26 layers of two mixers, each with a norm on both sides; tanh's GELU is not among those known here.
    assert launches("gemma-2-2b") == pytest.approx(26 * 2 * (1e-3 + 3e-4) + 5e-3)
    # Twelve layers without rotation; their MLPs have no gate, and nothing takes less than no time.
    assert launches("gpt2") == pytest.approx(12 * (1e-3 - 2e-4) + 5e-3)


def test_a_prompt_takes_what_a_hand_calculation_says() -> None:
    spec = load("llama-2-7b")
    found = predict_time(spec, calibration(), "prefill", batch_size=1, length=64)
    # Two FLOPs a weight of four matrices of 4,096², three of 4,096 by 11,008 in 32 layers, and of the head.
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11_008) + 32_000 * 4096
    assert found.parts["matrices"] == pytest.approx(2 * 64 * weights / RATE)
    # Two mixers in 32 layers, and what is outside.
    assert found.parts["launches"] == pytest.approx(64 * 1e-3 + 5e-3)
    # The square of 64 of 32 heads of 128 channels, twice two FLOPs, since nothing is known of fused scores; and with a
    # queue what is before each.
    assert found.parts["between tokens"] == pytest.approx(2e-9 * 32 * 4 * 32 * 128 * 64 * 64)
    queued = calibration().model_copy(update={"is_queued": True})
    found_there = predict_time(spec, queued, "prefill", batch_size=1, length=64)
    assert found_there.parts["between tokens"] == pytest.approx(2e-9 * 32 * 4 * 32 * 128 * 64 * 65 / 2)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert "two cores" in found.profile


def test_a_step_has_two_products_more_and_the_optimizer() -> None:
    spec = load("llama-2-7b")
    forward = predict_time(spec, calibration(), "prefill", batch_size=2, length=64)
    step = predict_time(spec, calibration(), "training", batch_size=2, length=64)
    # The backward pass has twice the FLOPs at half the rate.
    assert step.parts["matrices"] == pytest.approx(5 * forward.parts["matrices"])
    assert step.parts["optimizer"] == pytest.approx(6_738_415_616e-9)


def test_a_token_reads_the_cache() -> None:
    spec = load("llama-2-7b")
    found = predict_time(spec, calibration(), "decode", batch_size=3, length=1000)
    # Keys and values of 32 heads of 128 in 32 layers for 1,000 tokens of three sequences, four bytes each; the logits.
    cache = 2 * 32 * 128 * 32 * 1000 * 3 * 4
    assert found.parts["elementwise"] == pytest.approx(1e-9 * cache + 1e-8 * 3 * 32_000)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11_008) + 32_000 * 4096
    assert found.parts["matrices"] == pytest.approx(2 * 3 * weights / RATE)


def test_a_token_touches_the_experts_that_it_chooses() -> None:
    spec = load("mixtral-8x7b")
    found = predict_time(spec, calibration(), "prefill", batch_size=1, length=64)
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 2 * 3 * 4096 * 14_336 + 8 * 4096
    assert found.parts["matrices"] == pytest.approx(2 * 64 * (32 * layer + 32_000 * 4096) / RATE)


def test_a_device_with_a_queue_takes_the_longer_of_its_own_time_and_the_hosts() -> None:
    spec = load("llama-2-7b")
    # The host queues what 64 mixers do for 1 ms each; the device is done with one token long after, or long before.
    slow, fast = (
        calibration().model_copy(update={"is_queued": True, "precisions": {"fp32": rates(rate)}})
        for rate in (1e9, 1e15)
    )
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11_008) + 32_000 * 4096
    bound_by_device = predict_time(spec, slow, "prefill", batch_size=1, length=1)
    assert bound_by_device.parts["launches"] == 0
    assert bound_by_device.parts["matrices"] == pytest.approx(2 * weights / 1e9)
    bound_by_host = predict_time(spec, fast, "prefill", batch_size=1, length=1)
    assert bound_by_host.seconds == pytest.approx(64 * 1e-3 + 5e-3)
    # A step of the optimizer is queued tensor by tensor: nine in a layer, and three outside.
    queued = fast.model_copy(update={"optimizer_launch_seconds": 1e-2, "optimizer_seconds_per_parameter": 0.0})
    step = predict_time(spec, queued, "training", batch_size=1, length=1)
    assert step.seconds == pytest.approx(64 * 1e-3 + 5e-3 + (32 * 9 + 3) * 1e-2)


def test_experts_that_no_token_chooses_cost_nothing_but_in_training() -> None:
    spec = load("mixtral-8x7b")
    # 32 layers of two matrices, each stacked by expert: one widens, with its gate, and one narrows.
    stacked = 2
    without = calibration()
    seconds = ExpertSeconds(prompt=1e-3, training=3e-3, training_one_by_one=5e-3)
    rates_of_experts = without.precisions["fp32"].model_copy(update={"expert_seconds": seconds})
    each = without.model_copy(update={"precisions": {"fp32": rates_of_experts}})

    def added(phase: Phase, batch_size: int, spec: ArchitectureSpec = spec) -> float:
        found, before = (predict_time(spec, one, phase, batch_size=batch_size, length=64) for one in (each, without))
        return found.seconds - before.seconds

    # One token chooses two of eight; two tokens, by even choices, 8 (1 - (6/8)^2) = 3.5 of them.
    assert added("decode", 1) == pytest.approx(32 * stacked * 2 * 1e-3)
    assert added("decode", 2) == pytest.approx(32 * stacked * 3.5 * 1e-3)
    assert added("training", 1) == pytest.approx(32 * stacked * 8 * 3e-3)
    # Sides that are no multiples of eight go one by one.
    assert added("training", 1, spec.model_copy(update={"hidden_size": 4100})) == pytest.approx(32 * stacked * 8 * 5e-3)


def test_angles_and_masks_that_layers_share_count_once_each() -> None:
    outer = OUTER.model_copy(update={"places_seconds": 7e-3})
    kinds = {"mamba2": KIND, "attention, masked": KIND}
    shared, without = calibration(**kinds), calibration(**kinds)
    phases = {
        phase: rates_of.model_copy(update={"outer": outer})
        for phase, rates_of in shared.precisions["fp32"].phases.items()
    }
    precision = shared.precisions["fp32"].model_copy(update={"phases": phases})
    shared = shared.model_copy(update={"precisions": {"fp32": precision}})
    # One rotation; one and a window; two and a window; none; no attention at all.
    places = {"llama-2-7b": 1, "mistral-7b": 2, "gemma-3-4b": 3, "gpt2": 0, "mamba2-2.7b": 0}
    for name, count in places.items():
        found, before = (
            predict_time(load(name), one, "decode", batch_size=1, length=8).seconds for one in (shared, without)
        )
        assert found - before == pytest.approx(count * 7e-3, abs=1e-9)


def test_what_was_not_calibrated_is_refused() -> None:
    with pytest.raises(UnsupportedPlan) as caught:
        predict_time(load("mamba2-2.7b"), calibration(), "prefill", batch_size=1, length=64)
    assert caught.value.code == "kind_not_calibrated"
    with pytest.raises(UnsupportedPlan) as caught:
        predict_time(load("llama-2-7b"), calibration(), "prefill", batch_size=1, length=64, precision="bf16_autocast")
    assert caught.value.path == "precision"


def test_this_machine_has_times_once_it_is_calibrated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    spec = load("llama-2-7b")
    plan = TrainingPlan(
        hardware="here", precision="fp32", micro_batch_size=2, global_batch_size=6, sequence_length=64
    )  # fmt: skip
    serving = ServingPlan(hardware="here", weight_format="fp32", context_length=1000, batch_size=3)
    assert "not calibrated" in estimate_training(spec, plan).time_note
    assert "not calibrated" in estimate_inference(spec, serving).time_note
    stored = calibration().model_copy(update={"relative_interval": (0.9, 1.2)})
    calibration_path().write_text(stored.model_dump_json(), encoding="utf-8")
    # Three micro batches, and one step of the optimizer.
    one = predict_time(spec, stored, "training", batch_size=2, length=64)
    found = estimate_training(spec, plan)
    assert found.step_seconds == pytest.approx(3 * (one.seconds - one.parts["optimizer"]) + one.parts["optimizer"])
    assert found.time.high_seconds == pytest.approx(1.2 * found.step_seconds)
    assert found.tokens_per_second == pytest.approx(6 * 64 / found.step_seconds)
    served = estimate_inference(spec, serving)
    token = predict_time(spec, stored, "decode", batch_size=3, length=1000)
    assert served.inter_token_latency_seconds == pytest.approx(token.seconds)
    assert served.relative_interval == (0.9, 1.2)
    other = estimate_training(spec, plan.model_copy(update={"precision": "bf16_mixed"}))
    assert other.step_seconds is None
    assert "not in bf16_mixed" in other.time_note


def test_the_stored_calibration_comes_back(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA_DIR", str(tmp_path))
    assert stored_calibration() is None
    calibration_path().write_text(calibration().model_dump_json(), encoding="utf-8")
    assert stored_calibration() == calibration()
    calibration_path().write_text("{", encoding="utf-8")
    with pytest.raises(UnsupportedPlan) as caught:
        stored_calibration()
    assert str(calibration_path()) in caught.value.remedy
