"""What the benchmark times is right: its candidates are those that are sized one by one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import planner as benchmark
from planner import cache_bytes, load, size
from planner.symbolic import substitute


@pytest.mark.parametrize("name", benchmark.SPACES)
def test_the_timed_candidates_are_sized_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "CANDIDATES", 5)
    found = benchmark.search(name)()
    preset, ranges = benchmark.SPACES[name]
    drawn = np.random.default_rng(0)
    fields = {path: drawn.integers(low, high, 5) for path, (low, high) in ranges.items()}
    for index in range(5):
        spec = substitute(
            load(preset), lambda path, _, value, index=index: int(fields[path][index]) if path in fields else value
        )
        assert found["parameters"][index] == size(spec).parameters.total
        assert found["cache"][index] == cache_bytes(spec, benchmark.CONTEXT_LENGTH)


def test_the_least_time_of_a_work_is_kept() -> None:
    done: list[str] = []
    times = benchmark.least({"a": (lambda: done.append("a"), 2), "b": (lambda: done.append("b"), 1)}, rounds=3)
    assert done == ["a", "a", "b"] * 3
    assert set(times) == {"a", "b"}
    assert all(0 < seconds < 1 for seconds in times.values())
