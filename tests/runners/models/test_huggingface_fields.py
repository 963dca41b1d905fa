"""Fields whose other values once changed transformers' logits and not ours: each is the same now, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from planner.interop import UnsupportedArchitecture, from_huggingface, left_out
from runners.models import load_huggingface
from tests.planner.interop.oracle import modelled
from tests.runners.models.test_huggingface import CONFIGS, transformers_model

LONGROPE: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.0, 4.0]} | {
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.5,
}
ROTATIONS = {
    kind: {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
    for kind in ("full_attention", "sliding_attention")
}
SAME: list[tuple[str, dict[str, Any]]] = [
    ("cohere2", {}),  # the rotary base of a file that has none
    ("bloom", {"pretraining_tp": 2}),
    *(
        (family, {"rope_parameters": None, "rope_theta": 100.0}) for family in ("apertus", "cwm", "gpt_oss")
    ),  # null is absent
    (
        "phi3",
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16}, "max_position_embeddings": 8192},
    ),
    ("mimo_v2_flash", {"rope_parameters": ROTATIONS}),  # whole heads
    *((family, {"rope_interleave": None}) for family in ("deepseek_v3", "youtu", "sarvam_mla")),
    ("deepseek_v3", {"num_nextn_predict_layers": "none"}),
]
"""Families with changes of their small configuration, as a file says them: without what transformers adds."""
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bloom", {"pretraining_tp": 2, "slow_but_exact": True}, "slow_but_exact"),
    ("ernie4_5_moe", {"moe_norm_min": 0.9}, "moe_norm_min"),
    ("rwkv", {"num_hidden_layers": 8, "rescale_every": 1}, "rescale_every"),
    *((family, {"head_dim": 2}, "head_dim") for family in ("deepseek_v3", "youtu")),
    ("phi3", {"rope_parameters": {**LONGROPE, "rope_type": "yarn", "factor": 4.0}}, "rope_type"),
]


@pytest.mark.parametrize("model_type, changes", SAME)
def test_logits_are_those_of_transformers(model_type: str, changes: dict[str, Any]) -> None:
    theirs = transformers_model(model_type, **copy.deepcopy(changes))  # which rewrites the mappings within
    ours = load_huggingface(theirs.state_dict(), {"model_type": model_type, **CONFIGS[model_type], **changes})
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type, changes, field", REFUSED)
def test_what_no_specification_says_is_refused_by_name(model_type: str, changes: dict[str, Any], field: str) -> None:
    theirs = transformers_model(model_type, **copy.deepcopy(changes))
    with pytest.raises(ValueError, match=field):
        load_huggingface(theirs.state_dict(), {"model_type": model_type, **CONFIGS[model_type], **changes})
    others = {name: value for name, value in changes.items() if field in changes and name != field}
    plain = transformers_model(model_type, **others)
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():  # the refusal is for a reason
        assert not torch.allclose(plain(input_ids=tokens).logits, theirs(input_ids=tokens).logits, rtol=1e-3)


def test_a_text_that_outgrows_the_short_frequencies_is_read_anew_as_phi_3_is() -> None:
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "max_position_embeddings": 64}
    theirs = transformers_model("phi3", **changes)
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    tokens = torch.randint(3, 96, (4, 9))
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    assert torch.equal(ours.generate(tokens, 40), expected)
    ours.reread_beyond = None
    assert not torch.equal(ours.generate(tokens, 40), expected)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_prompts_of_different_lengths_do_not_turn_each_other(kind: str) -> None:
    """Where positions turn by the length of the text, each row is what it is alone."""
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 8.0, "original_max_position_embeddings": 8}
    rope |= {name: [1.0, 1.5, 2.0, 8.0] for name in ("short_factor", "long_factor")} if kind == "longrope" else {}
    theirs = transformers_model("llama", rope_parameters=rope, max_position_embeddings=8)
    ours = load_huggingface(theirs.state_dict(), theirs.config.to_dict())
    prompts = [torch.randint(3, 96, (length,)) for length in (3, 12, 7)]
    for prompt, found in zip(prompts, ours.generate_each(prompts, 20), strict=True):
        assert torch.equal(found, ours.generate(prompt[None], 20)[0])
    with pytest.raises(ValueError, match="one length"):
        ours.stream(prompts, 20)


def test_a_head_that_differs_from_the_embedding_is_not_tied_to_it() -> None:
    theirs = transformers_model("llama", tie_word_embeddings=True)
    state = theirs.state_dict()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        load_huggingface(state, theirs.config.to_dict())


SEEING: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "patch_size": 14} | {
    "num_attention_heads": 2,
    "image_size": 28,
}
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    # The language model alone scales or caps its logits, and the whole does not.
    "aya_vision": ("cohere2", {"vision_config": {"model_type": "siglip_vision_model", **SEEING}}),
    "gemma3": ("gemma3_text", {"vision_config": {"model_type": "siglip_vision_model", **SEEING}}),
    # The class fills in what its language model leaves out: here the rotary base.
    "voxtral": ("llama", {"audio_config": {"model_type": "voxtral_encoder", "num_hidden_layers": 1}}),
}


@pytest.mark.parametrize("outer", WHOLES)
def test_a_whole_is_read_as_its_class_reads_it(outer: str) -> None:
    text, beside = WHOLES[outer]
    config = {"model_type": outer, **beside, "text_config": {**CONFIGS[text], "model_type": text}}
    torch.manual_seed(0)
    theirs: Any = modelled(copy.deepcopy(config)).eval()
    theirs.set_attn_implementation("eager")
    ours = load_huggingface(theirs.state_dict(), config)
    tokens = torch.randint(3, 96, (2, 21))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, ours(tokens).logits
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert any("caps the logits" in note for note in left_out(config)) == (outer != "voxtral")


def test_whether_an_unknown_whole_scales_its_logits_is_not_guessed() -> None:
    theirs = transformers_model("cohere2")
    config = {"model_type": "of_tomorrow", "text_config": {**CONFIGS["cohere2"], "model_type": "cohere2"}}
    state = {f"language_model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    with pytest.raises(ValueError, match="of_tomorrow"):
        load_huggingface(state, config)


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3"])
def test_a_scaling_that_transformers_overlooks_is_refused(model_type: str) -> None:
    """Where frequencies differ by layer type, it reads no ``type`` in place of ``rope_type``."""
    config = {"model_type": model_type, **CONFIGS[model_type], "rope_parameters": None}
    with pytest.raises(UnsupportedArchitecture) as refused:
        from_huggingface({**config, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert refused.value.path == "rope_scaling.type"
    from_huggingface({**config, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})
