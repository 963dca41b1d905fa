"""The command line: tables, data for scripts, and one line on stderr with status 2 for bad input."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from planner import load, parse_spec, size
from planner.__main__ import main
from planner.presets import read_yaml
from tests.planner.published import LLAMA_2_7B


@pytest.fixture
def spec_file(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "llama.yaml"
    path.write_text(LLAMA_2_7B.to_yaml(), encoding="utf-8")
    return str(path)


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    written = capsys.readouterr()
    assert written.err == ""
    return written.out


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str):  # type: ignore[no-untyped-def]
    return json.loads(output_of(capsys, *arguments, "--json"))


def test_size(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "6,738,415,616" in output_of(capsys, "size", spec_file)
    data = data_of(capsys, "size", spec_file, "--tensors")
    assert data["parameters"]["total"] == 6_738_415_616
    assert sum(tensor["count"] for tensor in data["tensors"]) == 6_738_415_616


def test_flops_and_cache(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    forward = data_of(capsys, "flops", spec_file, "--sequence-length", "512")
    training = data_of(capsys, "flops", spec_file, "--sequence-length", "512", "--training")
    assert training["total"] == 3 * forward["total"]
    assert data_of(capsys, "cache", spec_file, "--context-length", "4096")["cache_bytes"] == 2**31
    assert "2 GiB" in output_of(capsys, "cache", spec_file, "--context-length", "4096")
    paged = data_of(capsys, "cache", spec_file, "--context-length", "4097", "--block-size", "32", "--dtype", "fp8")
    assert (paged["ideal_bytes"], paged["allocated_bytes"]) == (2**18 * 4097, 2**18 * 4128)
    assert paged["allocated_status"] == "modelled"
    assert "per tensor" in paged["scheme"]
    assert "Blocks of 16 tokens" in output_of(capsys, "cache", spec_file)


def test_serve_and_fit(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    served = data_of(capsys, "serve", spec_file, "--set", "weight_format=int8", "--set", "hardware=h100")
    assert served["memory"]["total_bytes"] > served["memory"]["weights_bytes"] > 6e9
    assert served["max_context_length"] > 100_000
    assert served["uncertainty"]["low"] <= served["memory"]["total_bytes"] <= served["uncertainty"]["high"]
    assert "overhead: 0.3 to 0.6 GiB" in output_of(capsys, "serve", spec_file)
    assert served["inter_token_latency_seconds"] == pytest.approx(sum(served["decode_parts"].values()))
    assert {point["bound"] for point in served["roofline"] if point["phase"] == "decode"} == {"memory"}
    printed = output_of(capsys, "serve", spec_file, "--set", "hardware=h100", "--set", "batch_size=8")
    assert "inter-token latency" in printed
    assert "mlp: down_proj" in printed
    trained = data_of(capsys, "train", spec_file)
    assert trained["uncertainty"]["low"] < trained["memory"]["total_bytes"] < trained["uncertainty"]["high"]
    assert "MemTracker" in output_of(capsys, "train", spec_file)
    fitted = data_of(capsys, "fit", spec_file)
    assert {row["device"]: row["fits"] for row in fitted}["h100"] is True
    assert {row["device"]: row["fits"] for row in fitted}["laptop_16gb"] is False
    assert "does not fit" in output_of(capsys, "fit", spec_file, "--device", "t4")


def test_sensitivity(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of(capsys, "sensitivity", spec_file, "--output", "parameters")
    # Half and double of 32 layers of four matrices of 4,096², three of 4,096 by 11,008, and two norms.
    repeats = next(swing for swing in data["swings"] if swing["field"] == "repeats")
    assert repeats["high"] - repeats["low"] == 48 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096)
    text = output_of(capsys, "sensitivity", spec_file, "--first", "2", "--set", "batch_size=4")
    assert "fields more do less" in text
    found = data_of(
        capsys, "sensitivity", spec_file, "--largest", "num_layers", "--output", "parameters", "--at-most", "1e10"
    )
    assert (found["value"], found["next_value"]) == (48, 49)  # 262,148,096 outside of layers of 202,383,360
    on_a_card = data_of(capsys, "sensitivity", spec_file, "--largest", "context_length", "--device", "rtx4090")
    served = data_of(capsys, "serve", spec_file, "--set", "hardware=rtx4090")
    assert on_a_card["value"] == served["max_context_length"]


def test_budget(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of(capsys, "budget", spec_file, "--device", "h100", "--devices", "8", "--tokens", "1e12")
    assert data["tokens"] == 10**12
    assert data["cost_usd"] > 0
    assert "Approximated" in output_of(capsys, "budget", spec_file)


def test_compare(spec_file: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "tied.yaml"
    other.write_text(LLAMA_2_7B.model_copy(update={"name": "tied", "tie_word_embeddings": True}).to_yaml(), "utf-8")
    rows = {row["quantity"]: row for row in data_of(capsys, "compare", spec_file, str(other))["rows"]}
    assert rows["Parameters"]["absolute"] == [0, -32_000 * 4096]
    text = output_of(capsys, "compare", spec_file, str(other))
    assert "What changed from Llama 2 7B to tied" in text
    assert f"{-32_000 * 4096:+,}" in text.split("all together")[1]
    (changed,) = data_of(capsys, "compare", spec_file, str(other))["changes"]
    (change,) = changed["changes"]
    assert (change["path"], change["effect"]["parameters"]) == ("tie_word_embeddings", -32_000 * 4096)


def test_explain(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    block = "layer_groups[0].layers[0].sequence_mixer"
    assert "2·d·h·(n_kv + n_q)" in output_of(capsys, "explain", spec_file, "parameters", "--block", block)
    data = data_of(capsys, "explain", spec_file, "cache", "--set", "context_length=4096")
    assert data["value"] == 2**31
    assert data["symbols"]["T"] == 4096


def test_import_gives_a_specification(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_spec(read_yaml(output_of(capsys, "import", spec_file))) == LLAMA_2_7B
    imported = parse_spec(data_of(capsys, "import", "llama-2-7b"))
    assert size(imported).parameters.total == 6_738_415_616


def test_what_an_import_left_out_is_said(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vision tower beside a language model, and the layers of DeepSeek-V3 that predict further tokens."""
    path = tmp_path / "config.json"
    text = {"model_type": "gemma3_text", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2}
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}))
    for source, word in ((str(path), "vision_config"), ("deepseek-v3", "multi-token prediction")):
        for command in ("size", "import"):
            assert main([command, source]) == 0
            written = capsys.readouterr()
            assert word in written.err
            assert main([command, source, "--json"]) == 0
            written = capsys.readouterr()
            data = json.loads(written.out)
            assert any(word in sentence for sentence in data["left_out"])
            assert word in written.err
    # What was imported is read back, and still says it.
    kept = tmp_path / "imported.json"
    kept.write_text(json.dumps(data), encoding="utf-8")
    assert parse_spec(data) == load("deepseek-v3")
    assert data_of_kept(capsys, "size", str(kept))["left_out"] == data["left_out"]
    assert main(["import", "deepseek-v3"]) == 0
    commented = capsys.readouterr().out
    assert commented.startswith("# Layers for multi-token prediction")
    assert parse_spec(read_yaml(commented)) == load("deepseek-v3")


def data_of_kept(capsys: pytest.CaptureFixture[str], *arguments: str):  # type: ignore[no-untyped-def]
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_export_gives_a_configuration(spec_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(output_of(capsys, "export", spec_file))
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 32)


@pytest.mark.parametrize(
    "arguments",
    [
        ["flops", "gpt2", "--sequence-length", "1025"],
        ["cache", "gpt2", "--context-length", "1025"],
        ["serve", "gpt2", "--set", "context_length=1025"],
        ["train", "gpt2", "--set", "sequence_length=1025"],
        ["compare", "gpt2", "llama-2-7b", "--context-length", "1025", "--sequence-length", "9"],
    ],
    ids=" ".join,
)
def test_a_sequence_beyond_the_learned_positions_is_said(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2 has 1,024 positions (Radford et al. 2019)."""
    assert main(arguments) == 0
    assert "learned positions end at 1,024" in capsys.readouterr().err
    assert main([argument.replace("1025", "1024") for argument in arguments]) == 0
    assert capsys.readouterr().err == ""


HUGE = "1" + 200 * "0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["size", "no-such-preset"],
        ["size", "/nowhere/spec.yaml"],
        ["size"],
        ["shrink", "llama-2-7b"],
        ["flops", "llama-2-7b", "--sequence-length", "0"],
        ["flops", "llama-2-7b", "--sequence-length", "many"],
        ["cache", "llama-2-7b", "--dtype", "int3"],
        ["cache", "llama-2-7b", "--block-size", "0"],
        ["cache", "llama-2-7b", "--windowed-pages", "some"],
        ["train", "llama-2-7b", "--set", "precision=nvfp4"],
        ["train", "llama-2-7b", "--set", "precision=[bf16"],
        ["serve", "llama-2-7b", "--set", "weight_format=q4_k_x"],
        ["serve", "llama-2-7b", "--set", "hardware=h1000"],
        ["serve", "llama-2-7b", "--set", "hardware"],
        ["fit", "llama-2-7b", "--device", "abacus"],
        ["sensitivity", "llama-2-7b", "--output", "beauty"],
        ["sensitivity", "llama-2-7b", "--first", "0"],
        ["sensitivity", "llama-2-7b", "--device", "h100"],
        ["sensitivity", "llama-2-7b", "--at-most", "1e9"],
        ["sensitivity", "llama-2-7b", "--largest", "colour", "--device", "h100"],
        ["sensitivity", "llama-2-7b", "--largest", "num_layers"],
        ["export", "tiny-hybrid"],
        ["flops", "llama-2-7b", "--sequence-length", HUGE],
        ["cache", "llama-2-7b", "--batch-size", HUGE],
        ["cache", "llama-2-7b", "--block-size", HUGE],
        ["compare", "llama-2-7b", "gpt2", "--context-length", HUGE],
        ["serve", "llama-2-7b", "--set", f"context_length={HUGE}"],
        ["serve", "llama-2-7b", "--set", "batch_size=true"],
        ["train", "llama-2-7b", "--set", "dropout=true"],
        ["train", "llama-2-7b", "--set", f"micro_batch_size={HUGE}"],
        ["fit", "llama-2-7b", "--training", "--set", "sequence_length=true"],
        ["explain", "llama-2-7b", "flops", "--set", f"sequence_length={HUGE}"],
        ["explain", "llama-2-7b", "parameters", "--set", "sequence_length=8"],
        ["budget", "llama-2-7b", "--tokens", "1e300", "--device", "h100"],
        ["budget", "llama-2-7b", "--devices", HUGE, "--device", "h100"],
        ["budget", "llama-2-7b", "--utilisation", "2"],
        ["budget", "llama-2-7b", "--tokens", "nan"],
        ["budget", "llama-2-7b", "--tokens", "inf"],
        ["explain", "llama-2-7b", "beauty"],
        ["explain", "llama-2-7b", "parameters", "--block", "layer_groups[9]"],
    ],
    ids=" ".join,
)
def test_bad_input_ends_with_status_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    written = capsys.readouterr()
    assert status == 2
    assert written.out == ""
    assert len(written.err.splitlines()) == 1
    assert written.err.startswith("planner")


def test_a_broken_specification_names_its_field(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(LLAMA_2_7B.to_yaml().replace("num_key_value_heads: 32", "num_key_value_heads: 5"), "utf-8")
    assert main(["size", str(path)]) == 2
    assert "sequence_mixer.num_key_value_heads" in capsys.readouterr().err


def test_as_a_program(spec_file: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "planner", *arguments], capture_output=True, text=True, env=os.environ, check=False
        )

    good = run("size", spec_file, "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["parameters"]["total"] == 6_738_415_616
    bad = run("size", "nothing-like-it")
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1


def run_with_input(arguments: list[str], text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planner", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_a_dash_is_standard_input() -> None:
    """Also where it is named twice: it is read once."""
    config = {"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "tie_word_embeddings": True}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 3}
    found = run_with_input(["size", "-", "--json"], json.dumps(config))
    # Embedding, four projections of the stream's width, an MLP of three, and three norms.
    assert json.loads(found.stdout)["parameters"]["total"] == 10 * 8 + 4 * 8 * 8 + 3 * 8 * 3 + 3 * 8
    both = run_with_input(["compare", "-", "-", "--json"], json.dumps(config))
    assert both.returncode == 0, both.stderr
    broken = run_with_input(["size", "-"], "{")
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.startswith("planner size: ")
    assert broken.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "typed, expected",
    [
        (["planner", "cac"], {"cache"}),
        (["planner", "size", "llama-3-8"], {"llama-3-8b"}),
        (["planner", "flops", "--tr"], {"--training"}),
    ],
)
def test_bash_completes_commands_presets_and_options(typed: list[str], expected: set[str]) -> None:
    words = " ".join(typed)
    program = (
        f'eval "$({sys.executable} -m planner completion bash)"; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; '
        '_shtab_planner; echo "${COMPREPLY[@]}"'
    )
    found = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == expected


def test_zsh_has_a_completion_too() -> None:
    script = run_with_input(["completion", "zsh"], "").stdout
    assert "compadd bamba-9b" in script
    assert "compdef" in script
