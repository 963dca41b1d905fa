"""The formula pages are what the code writes, whatever the order of its sets, and say what the papers say."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from planner.components import ChannelMixer, Norm, SequenceMixer, kinds_of
from scripts.formula_pages import FOLDER, differing, main, pages

KINDS = [kind for union in (SequenceMixer, ChannelMixer, Norm) for kind in kinds_of(union)]
WRITE = "run python -m scripts.formula_pages"


def test_the_pages_are_those_that_the_code_writes() -> None:
    assert differing(FOLDER, pages()) == [], WRITE


def test_the_order_of_sets_changes_no_formula() -> None:
    """Python hashes words anew in each process; SymPy's sums and products must not follow."""
    command = [sys.executable, "-m", "scripts.formula_pages", "--check"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_has_a_page_with_its_source(kind: str) -> None:
    page = (FOLDER / f"{kind}.md").read_text(encoding="utf-8")
    for heading in ("Symbols", "Parameters", "FLOPs of a forward pass", "Cache of one sequence"):
        assert f"## {heading}" in page
    assert f"({kind}.md)" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "`planner/components/" in page


@pytest.mark.parametrize(
    "kind, formula",
    [
        # Four projections of h × n·d, of which two have KV heads alone: Ainslie et al. 2023, arXiv:2305.13245.
        ("attention", "Total: `2·d·h·(n_kv + n_q)`"),
        # Keys and values, 2·n·d a token: Shazeer 2019, arXiv:1911.02150.
        ("attention", "Total: `2·T·d·n_kv`"),
        # The whole square of scores and values, and 2 FLOPs a weight: Kaplan et al. 2020, arXiv:2001.08361, table 1.
        ("attention", "Total: `4·B·T·d·(T·n_q + h·n_kv + h·n_q)`"),
        # (d_c + d_h^R)·l elements a token: DeepSeek-V2, arXiv:2405.04434, table 1.
        ("latent_attention", "Total: `T·(c_kv + d_rope)`"),
        # Three matrices: Shazeer 2020, arXiv:2002.05202.
        ("mlp", "Total: `3·f·h`"),
        # E experts of three matrices and a router of h × E: Mixtral, arXiv:2401.04088.
        ("moe", "Total: `E·h·(3·f + 1)`"),
        # D channels with a state of N, and the window of the convolution: Gu & Dao 2023, arXiv:2312.00752.
        ("mamba1", "Total: `e·(k + s)`"),
    ],
)
def test_formulas_are_those_of_the_papers(kind: str, formula: str) -> None:
    assert formula in (FOLDER / f"{kind}.md").read_text(encoding="utf-8").splitlines() or any(
        line.startswith(f"{formula};") for line in (FOLDER / f"{kind}.md").read_text(encoding="utf-8").splitlines()
    )


def test_what_an_option_changes_is_said() -> None:
    rows = (FOLDER / "attention.md").read_text(encoding="utf-8").splitlines()
    (bias,) = [row for row in rows if row.startswith("| `query_key_value_bias` ")]
    assert bias == "| `query_key_value_bias` | `d·(2·n_kv + n_q)` |  |  |  |  |"
    (window,) = [row for row in rows if row.startswith("| `sliding_window` ")]
    assert "`2·d·n_kv·(-T + Min(T, w))`" in window


def test_a_page_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr("scripts.formula_pages.FOLDER", tmp_path)
    monkeypatch.setattr("scripts.formula_pages.pages", lambda: {"a.md": "one\n", "b.md": "two\n"})
    assert main(["--check"]) == 1
    said: list[str] = []
    assert main([], said.append) == 0
    assert said == ["a.md written", "b.md written"]
    (tmp_path / "b.md").write_text("three\n")
    (tmp_path / "c.md").write_text("four\n")
    assert differing(tmp_path, {"a.md": "one\n", "b.md": "two\n"}) == ["b.md", "c.md"]
    assert main([]) == 0
    assert main(["--check"]) == 0
