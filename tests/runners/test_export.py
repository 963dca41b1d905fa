"""A model written out as one file: alone with PyTorch it is the model that was built, tensor by tensor and logit by
logit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from ruff import find_ruff_bin

import planner
from planner import ArchitectureSpec, UnsupportedPlan
from planner.components import ChannelMixer, Component, SequenceMixer, kinds_of
from planner.presets import preset, preset_ids
from planner.prototype import scale_down
from planner.symbolic import symbolic
from runners.__main__ import main
from runners.export import export_pytorch
from runners.models import build
from tests.runners.models.specs import specs

SEED = 3
LENGTH = 21
READS = (9, 1, 11)
"""How many positions each of three calls with a cache reads."""

ALONE = '''
import importlib.abc, importlib.util, json, pathlib, sys

class Nothing(importlib.abc.MetaPathFinder):
    """Nothing of the planner's, and nothing that it needs, is found."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("planner", "runners", "pydantic", "pydantic_core", "yaml", "safetensors"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Nothing())
import torch

torch.set_num_threads(1)
found = {}
for folder in sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_dir()):
    spec = importlib.util.spec_from_file_location(folder.name, folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)
    model = module.build(dtype=torch.float64)
    saved = torch.load(folder / "saved.pt", weights_only=True)
    model.load_state_dict(saved["state"], strict=True)
    with torch.no_grad():
        cache, logits, start = model.new_cache(2, saved["tokens"].shape[1]), [], 0
        for length in saved["reads"]:
            logits.append(model(saved["tokens"][:, start : start + length], cache=cache).logits)
            start += length
        found[folder.name] = {
            "whole": torch.equal(model(saved["tokens"]).logits, saved["logits"]),
            "continued": torch.equal(torch.cat(logits, 1), saved["continued"]),
            "cache": cache.bytes == saved["cache"],
            "generated": torch.equal(model.generate(saved["tokens"], 4), saved["generated"]),
        }
print(json.dumps({"found": found, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
'''


def mixers_of(spec: ArchitectureSpec) -> Iterator[Component]:
    """The mixers of a model, and those within."""
    for _, layer in spec.iterate_layers():
        for mixer in (layer.sequence_mixer, layer.channel_mixer):
            if mixer is not None:
                yield mixer
                yield from (part for _, part in mixer.parts())


def kinds_in(spec: ArchitectureSpec) -> frozenset[str]:
    return frozenset(mixer.kind for mixer in mixers_of(spec))  # type: ignore[attr-defined]


def small(name: str) -> ArchitectureSpec:
    """A preset scaled down as far as it goes, in steps of twice the parameters."""
    for budget in (50_000 * 2**power for power in range(6)):
        with contextlib.suppress(UnsupportedPlan):
            return scale_down(preset(name).spec, budget, sequence_length=32).spec
    raise AssertionError(name)


def chosen() -> dict[str, ArchitectureSpec]:
    """Presets with every kind of component that any preset has, scaled down, and two with other options."""
    names = ["gpt2", "gemma-2-2b"]
    missing = {*kinds_of(SequenceMixer), *kinds_of(ChannelMixer)}
    while missing:
        name = max(preset_ids(), key=lambda name: len(missing & kinds_in(preset(name).spec)))
        if not missing & kinds_in(preset(name).spec):
            break
        names.append(name)
        missing -= kinds_in(preset(name).spec)
    return {name: small(name) for name in sorted(set(names))}


SMALL = chosen()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def written(name: str) -> str:
    return export_pytorch(SMALL[name])


def drawn_tokens(spec: ArchitectureSpec) -> torch.Tensor:
    return torch.randint(0, spec.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def randomized(spec: ArchitectureSpec) -> Any:
    """The model in float64 by reference kernels; weights that start at zero or one are moved as well."""
    model = build(spec, dtype=torch.float64, kernels="reference", seed=SEED)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def imported(text: str) -> types.ModuleType:
    module = types.ModuleType("exported")
    sys.modules["exported"] = module  # data classes look for their module
    exec(compile(text, "exported.py", "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the files say of themselves, in a process that has nothing but PyTorch."""
    root = tmp_path_factory.mktemp("exported")
    for name, spec in SMALL.items():
        model, tokens = randomized(spec), drawn_tokens(spec)
        with torch.no_grad():
            cache, logits, start = model.new_cache(2, LENGTH), [], 0
            for length in READS:
                logits.append(model(tokens[:, start : start + length], cache=cache).logits)
                start += length
            saved = {
                "state": model.state_dict(),
                "tokens": tokens,
                "reads": READS,
                "logits": model(tokens).logits,
                "continued": torch.cat(logits, 1),
                "cache": cache.bytes,
                "generated": model.generate(tokens, 4),
            }
        folder = root / name.replace("-", "_").replace(".", "_")
        folder.mkdir()
        (folder / "model.py").write_text(written(name), encoding="utf-8")
        torch.save(saved, folder / "saved.pt")
    (root / "alone.py").write_text(ALONE)
    empty = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-I", str(root / "alone.py"), str(root)]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_every_kind_of_component_is_written_out() -> None:
    kinds = {kind for spec in SMALL.values() for kind in kinds_in(spec)}
    assert kinds == {*kinds_of(SequenceMixer), *kinds_of(ChannelMixer)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_file_starts_from_the_same_weights_in_the_same_types(name: str) -> None:
    module = imported(written(name))
    for dtype in (torch.float32, torch.bfloat16):
        ours = build(SMALL[name], dtype=dtype, seed=SEED).state_dict()
        theirs = module.build(dtype=dtype, seed=SEED).state_dict()
        assert list(ours) == list(theirs)
        assert all(ours[key].dtype == theirs[key].dtype for key in ours)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_file_alone_gives_the_same_logits(name: str, alone: dict[str, Any]) -> None:
    found = alone["found"][name.replace("-", "_").replace(".", "_")]
    assert found == {"whole": True, "continued": True, "cache": True, "generated": True}


def test_a_file_needs_pytorch_alone(alone: dict[str, Any]) -> None:
    assert "torch" in alone["modules"]
    assert not {"planner", "runners", "pydantic", "db", "pages"} & set(alone["modules"])


@pytest.mark.slow
@given(specs())
@settings(max_examples=4, derandomize=True, deadline=None, phases=[Phase.generate])  # nothing traces the exporter
def test_drawn_models_give_the_same_logits_and_gradients(spec: ArchitectureSpec) -> None:
    ours, theirs = randomized(spec), imported(export_pytorch(spec)).build(dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = drawn_tokens(spec)
    made, expected = theirs(tokens, labels=tokens), ours(tokens, labels=tokens)
    assert torch.equal(made.logits, expected.logits)
    made.loss.backward()
    expected.loss.backward()
    for (name, parameter), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if parameter.grad is None or other.grad is None:
            assert parameter.grad is None, name
            assert other.grad is None, name
        else:
            torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-9, atol=1e-12)


def test_files_are_laid_out_and_have_no_unused_or_undefined_names(tmp_path: pathlib.Path) -> None:
    for name in SMALL:
        (tmp_path / f"{name}.py").write_text(written(name), encoding="utf-8")
    isolated = ["--isolated", "--no-cache", "--line-length", "120"]
    for command in (["format", "--check"], ["check", "--select", "E,F,I"]):
        done = subprocess.run(
            [find_ruff_bin(), *command, *isolated, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_a_file_holds_no_component_and_no_option_that_is_not_used() -> None:
    text = written("gpt2")
    for absent in ("Mamba", "MoE", "Latent", "Rotation", "RMSNorm", "sliding_window is not None", "kernels", "triton_"):
        assert absent not in text, absent
    assert "class QueryKeyNorm(" not in written("gemma-2-2b")
    assert "logit_softcap" in written("gemma-2-2b")


def test_sizes_in_a_file_may_be_changed() -> None:
    module, spec = imported(written("gpt2")), SMALL["gpt2"]
    (group,) = module.CONFIG.layer_groups
    (layer,) = group.layers
    mlp = dataclasses.replace(layer.channel_mixer, intermediate_size=48)
    other = dataclasses.replace(
        module.CONFIG,
        vocab_size=70,
        layer_groups=(dataclasses.replace(group, repeats=3, layers=(dataclasses.replace(layer, channel_mixer=mlp),)),),
    )
    data = spec.model_dump(mode="json") | {"vocab_size": 70}
    data["layer_groups"][0]["repeats"] = 3
    data["layer_groups"][0]["layers"][0]["channel_mixer"]["intermediate_size"] = 48
    ours = build(planner.parse_spec(data), seed=SEED).state_dict()
    theirs = module.build(other, seed=SEED).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())


def test_any_name_of_a_model_can_stand_in_a_file() -> None:
    name = 'x" \\ """\n\x00 é\u2028'
    text = export_pytorch(SMALL["gpt2"].model_copy(update={"name": name}))
    assert repr(imported(text).CONFIG) == repr(imported(written("gpt2")).CONFIG)


def test_what_has_no_numbers_is_refused() -> None:
    symbols, _ = symbolic(SMALL["gpt2"])
    with pytest.raises(UnsupportedPlan) as caught:
        export_pytorch(symbols)
    assert caught.value.code == "not_a_number"
    assert caught.value.path == "vocab_size"


def test_the_command_writes_the_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, file = tmp_path / "spec.json", tmp_path / "model.py"
    spec.write_text(SMALL["gpt2"].to_json())
    assert main(["export", str(spec), "--pytorch", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == written("gpt2")
    assert capsys.readouterr().err == ""


def stopped(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize(
    "given_arguments",
    [
        lambda folder: ["export", "no-such-model", "--pytorch", str(folder / "model.py")],
        lambda folder: ["export", str(folder / "broken.json"), "--pytorch", str(folder / "model.py")],
        lambda folder: ["export", "gpt2", "--pytorch", str(folder / "missing" / "model.py")],
        lambda folder: ["export", "gpt2", "--pytorch", str(folder)],
        lambda folder: ["export", "gpt2"],
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(
    given_arguments: Callable[[pathlib.Path], list[str]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text('{"vocab_size": true, "hidden_size": -1}')
    assert stopped(given_arguments(tmp_path)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert not (tmp_path / "model.py").exists()
