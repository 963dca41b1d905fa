"""Folders in the published format: what transformers writes is read, and what is written is read by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto import modeling_auto

from planner import from_huggingface
from runners.__main__ import main
from runners.models import Decoder, build, load_huggingface, save_huggingface
from runners.models.huggingface import COMPUTED
from runners.models.huggingface_files import INDEX, WHOLE, FolderTensors
from runners.training import checkpoint
from tests.planner.interop.oracle import modelled, small_config, small_surroundings
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

ALONE = [name for name in CONFIGS if name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
"""Families whose language model is a model of its own in transformers."""


def written(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    """Those of a model of either kind."""
    found: Tensor = (
        model(tokens).logits if isinstance(model, Decoder) else model(input_ids=tokens, use_cache=False).logits
    )
    return found


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_folder_that_transformers_wrote_is_read(model_type: str, tmp_path: Path) -> None:
    theirs = transformers_model(model_type, initializer_range=0.1)
    theirs.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path)
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(ours, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ALONE)
def test_a_folder_is_written_as_transformers_writes_it(model_type: str, tmp_path: Path) -> None:
    # transformers cuts joined convolutions into equal parts, and so writes three of one width as they were.
    changes = {"linear_num_value_heads": 2, "linear_value_head_dim": 6} if model_type == "olmo_hybrid" else {}
    theirs = transformers_model(model_type, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    save_huggingface(ours, tmp_path / "ours", config=theirs.config.to_dict())
    expected, found = written(tmp_path / "theirs"), written(tmp_path / "ours")
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith(COMPUTED)}
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


UNSAID = frozenset({"falcon_h1"})
"""The family whose model here has multipliers that no search finds: its weights go with transformers' configuration."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALONE)
def test_a_folder_that_was_written_is_loaded_by_transformers(model_type: str, tmp_path: Path) -> None:
    theirs = transformers_model(model_type, initializer_range=0.1)
    config = theirs.config.to_dict()
    ours = load_huggingface(theirs.state_dict(), config)
    save_huggingface(ours, tmp_path, model_type, config if model_type in UNSAID else None)
    loaded, how = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    how["missing_keys"] = [name for name in how["missing_keys"] if not name.endswith(COMPUTED)]
    assert not any(how.values())  # nothing is missing, left over or of another shape
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(loaded, tokens), logits(ours, tokens), rtol=1e-4, atol=1e-4)


def test_a_model_is_written_unless_transformers_has_it_only_within_another(tmp_path: Path) -> None:
    within = {name for name in CONFIGS if name not in ALONE}
    assert within
    for model_type in within:
        ours = build(from_huggingface({"model_type": model_type, **CONFIGS[model_type]}))
        with pytest.raises(ValueError, match="only within a multimodal model"):
            save_huggingface(ours, tmp_path, model_type)


def test_the_configuration_is_made_where_none_is_given(tmp_path: Path) -> None:
    ours = build(from_huggingface({"model_type": "llama", **CONFIGS["llama"]}), dtype=torch.bfloat16)
    config = save_huggingface(ours, tmp_path)
    assert (config["model_type"], config["torch_dtype"]) == ("llama", "bfloat16")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.model.embed_tokens.weight, ours.embed_tokens.weight)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "sarvam_moe"])
def test_large_models_are_cut_into_several_files(model_type: str, tmp_path: Path) -> None:
    theirs = transformers_model(model_type)
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    save_huggingface(ours, tmp_path, model_type)
    whole = written(tmp_path)
    largest = max(tensor.nbytes for tensor in whole.values())
    save_huggingface(ours, tmp_path, model_type, most_bytes=largest)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    assert not (tmp_path / WHOLE).exists()
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= largest for file in files)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    tokens = torch.randint(3, 96, (2, 21))
    expected = logits(ours, tokens)
    assert torch.equal(logits(load_huggingface(tmp_path), tokens), expected)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=1e-4, atol=1e-4)
    save_huggingface(ours, tmp_path, model_type)  # nothing of the files before is left to be read
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == [WHOLE]


def test_each_tensor_of_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers_model("mixtral").save_pretrained(tmp_path)
    read: list[str] = []
    part = FolderTensors._part
    monkeypatch.setattr(
        FolderTensors, "_part", lambda self, name, piece: (read.append(name), part(self, name, piece))[1]
    )
    load_huggingface(tmp_path)
    assert sorted(read) == sorted(written(tmp_path))


def test_files_without_the_prefix_of_the_module_are_read(tmp_path: Path) -> None:
    theirs = transformers_model("gpt2")  # whose published file was written from the model without its head
    theirs.save_pretrained(tmp_path)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / WHOLE).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 96, 96).tril() for layer in range(2)}
    save_file(bare | masks, tmp_path / WHOLE)
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(load_huggingface(tmp_path), tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)


def test_layers_that_predict_further_tokens_are_left_where_they_are(tmp_path: Path) -> None:
    theirs = transformers_model("deepseek_v3")
    theirs.save_pretrained(tmp_path)
    tensors, own = load_file(tmp_path / WHOLE), theirs.config.num_hidden_layers
    extra = {f"model.layers.{own}.eh_proj.weight": torch.ones(2, 2), "mtp.fc.weight": torch.ones(2, 2)}
    save_file(tensors | extra, tmp_path / WHOLE)
    config = theirs.config.to_dict()
    load_huggingface(tmp_path, config | {"num_nextn_predict_layers": 1})
    with pytest.raises(ValueError, match=rf"no place for model\.layers\.{own}\.eh_proj\.weight"):
        load_huggingface(tmp_path, config | {"num_nextn_predict_layers": 0})


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_that_need_a_scale_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    transformers_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].to(dtype)}, tmp_path / WHOLE)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is of (int8|float8_e4m3fn)"):
        load_huggingface(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, text, prefix",
    [("llava", "llama", "language_model.model."), ("gemma3", "gemma3_text", "language_model.model."),
     ("qwen2_vl", "qwen2_vl_text", "model.")],
)  # fmt: skip
def test_the_language_model_is_read_from_the_files_of_a_multimodal_one(
    outer: str, text: str, prefix: str, tmp_path: Path
) -> None:
    config = {**small_surroundings(outer), "model_type": outer, "tie_word_embeddings": False}
    config["text_config"] = small_config(text) | {"initializer_range": 0.1}
    if text in CONFIGS and "rope_parameters" in CONFIGS[text]:
        config["text_config"]["rope_parameters"] = CONFIGS[text]["rope_parameters"]
    torch.manual_seed(0)
    theirs = modelled(config).eval()
    theirs.save_pretrained(tmp_path)
    assert f"{prefix}embed_tokens.weight" in written(tmp_path)  # as it is published
    tokens = torch.randint(3, 60, (2, 21))
    expected = logits(theirs, tokens)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits(load_huggingface(tmp_path), tokens), expected, rtol=1e-4, atol=1e-4)


def test_what_is_no_folder_of_such_weights_is_refused(tmp_path: Path) -> None:
    theirs = transformers_model("llama")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="quantised"):
        load_huggingface(tmp_path, config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(ValueError, match="give the configuration"):
        load_huggingface(theirs.state_dict())
    ours = load_huggingface(tmp_path)
    with pytest.raises(ValueError, match="not that of this model"):
        save_huggingface(ours, tmp_path, config=config | {"hidden_size": 64})
    next(iter(tmp_path.glob("*-00001-of-*.safetensors"))).unlink()
    with pytest.raises(ValueError, match="which the index names"):
        load_huggingface(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match="neither"):
        load_huggingface(tmp_path)


def test_experts_that_may_be_turned_round_are_told_by_their_shape(tmp_path: Path) -> None:
    theirs = transformers_model("qwen3_vl_moe_text")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    turned = {name: t.transpose(-1, -2).contiguous() if ".experts." in name else t for name, t in tensors.items()}
    assert any(turned[name].shape != tensors[name].shape for name in tensors)
    save_file(turned, tmp_path / WHOLE)
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(load_huggingface(tmp_path), tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)
    transformers_model("qwen3_vl_moe_text", moe_intermediate_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="square"):
        load_huggingface(tmp_path)


def test_a_trained_model_is_written_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = from_huggingface({"model_type": "llama", **CONFIGS["llama"]})
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    model = build(spec, seed=5)
    checkpoint.save(tmp_path, model, torch.optim.AdamW(model.parameters()), {"next_step": 1})
    command = ["export", str(tmp_path / "spec.json"), "--huggingface", str(tmp_path / "out"), "--checkpoint"]
    assert main([*command, str(tmp_path)]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens = torch.randint(3, 96, (2, 21))
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), rtol=1e-4, atol=1e-4)
    assert main([*command, str(tmp_path / "elsewhere")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("export: there is no checkpoint in ")
    with pytest.raises(SystemExit, match="2"):
        main(["export", "gpt2", "--pytorch", str(tmp_path / "gpt2.py"), "--checkpoint", str(tmp_path)])
    assert "--checkpoint goes with --huggingface" in capsys.readouterr().err
