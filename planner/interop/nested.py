"""The language model inside a multimodal configuration: where it stands, and what its surroundings say about it.

A multimodal ``config.json`` holds the language model's own configuration under a key (``text_config`` in transformers'
classes, ``llm_config`` or ``language_config`` in others), beside those of encoders for images and sound. That inner
configuration may lack its ``model_type``, and whether the head shares the embedding may be said outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from planner.errors import Problem, UnsupportedArchitecture
from planner.interop.base import IGNORED_EVERYWHERE, NEUTRAL_EVERYWHERE, Adapter, is_one_of, refusal, shown

TEXT_KEYS = ("text_config", "llm_config", "language_config")
DEEPEST = 3
"""Configurations inside configurations that are followed: Qwen-Omni's has its language model at the second level."""

Ties = Literal["outer", "text unless outer", "either", "text", "never"]
"""Whose ``tie_word_embeddings`` says whether the head is the embedding's matrix.

``outer``: that of the whole, false where it is absent. ``text unless outer``: that of the whole, else the language
model's (transformers' class takes its own default of true, and unties the two again when it reads weights that hold
both; files without the field were written when the language model's own field was the one that counted). ``either``:
one of the two suffices. ``never``: the head is always a matrix of its own.
"""


@dataclass(frozen=True, slots=True)
class Outer:
    """A class of multimodal configurations."""

    text: str
    """``model_type`` of the language model where its configuration names none."""
    ties: Ties
    flat: bool = False
    """Whether the first published files have the language model's fields beside ``vision_config``."""
    own_default: bool = False
    """Whether the language model of a file without one is not the one that its class makes by default."""
    filled: Mapping[str, Any] = field(default_factory=dict)
    """What the class writes into a language model's configuration where that leaves it out."""
    scaled_head: bool = False
    """Whether the whole multiplies and caps its logits as the language model does alone."""


_VOXTRAL: Mapping[str, Any] = {"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 8192} | {
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100_000_000.0,
    "head_dim": 128,
}
_GLM_ASR: Mapping[str, Any] = {"vocab_size": 59264, "hidden_size": 2048, "intermediate_size": 6144} | {
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}

OUTER: Mapping[str, Outer] = {
    "audioflamingo3": Outer("qwen2", "never"),
    "aya_vision": Outer("cohere2", "text unless outer"),
    "blip-2": Outer("opt", "text", scaled_head=True),
    "cohere2_vision": Outer("cohere2", "text unless outer"),
    "deepseek_vl": Outer("llama", "text unless outer"),
    "deepseek_vl_hybrid": Outer("llama", "text unless outer"),
    "exaone4_5": Outer("exaone4", "outer"),
    "fast_vlm": Outer("qwen2", "outer", own_default=True),
    "fuyu": Outer("persimmon", "outer"),
    "gemma3": Outer("gemma3_text", "text unless outer"),
    "glm4v": Outer("glm4v_text", "either"),
    "glm4v_moe": Outer("glm4v_moe_text", "either"),
    "glmasr": Outer("llama", "text unless outer", filled=_GLM_ASR),
    "got_ocr2": Outer("qwen2", "text unless outer", own_default=True),
    "granite_speech": Outer("granite", "text unless outer"),
    "granite_speech_plus": Outer("granite", "text unless outer"),
    "idefics2": Outer("mistral", "outer", own_default=True),
    "idefics3": Outer("llama", "outer", own_default=True),
    "instructblip": Outer("opt", "text", scaled_head=True),
    "internvl": Outer("qwen2", "text unless outer"),
    "janus": Outer("llama", "text unless outer"),
    "kimi_k25": Outer("deepseek_v3", "text unless outer"),
    "lfm2_vl": Outer("lfm2", "text unless outer"),
    "lighton_ocr": Outer("qwen3", "text unless outer", own_default=True),
    "llama4": Outer("llama4_text", "text", scaled_head=True),
    "llava": Outer("llama", "either"),
    "llava_next": Outer("llama", "outer"),
    "llava_next_video": Outer("llama", "either"),
    "llava_onevision": Outer("qwen2", "either"),
    "mistral3": Outer("mistral", "text unless outer", own_default=True),
    "moss_transcribe_diarize": Outer("qwen3", "text unless outer", own_default=True),
    "musicflamingo": Outer("qwen2", "never"),
    "paligemma": Outer("gemma", "text unless outer", own_default=True, scaled_head=True),
    "perception_lm": Outer("llama", "outer"),
    "pp_chart2table": Outer("qwen2", "text unless outer", own_default=True),
    "qianfan_ocr": Outer("qwen3", "outer"),
    "qwen2_5_omni_thinker": Outer("qwen2_5_omni_text", "outer"),
    "qwen2_5_vl": Outer("qwen2_5_vl_text", "either", flat=True),
    "qwen2_audio": Outer("qwen2", "never"),
    "qwen2_vl": Outer("qwen2_vl_text", "either", flat=True),
    "qwen3_5": Outer("qwen3_5_text", "outer"),
    "qwen3_5_moe": Outer("qwen3_5_moe_text", "outer"),
    "qwen3_omni_moe_thinker": Outer("qwen3_omni_moe_text", "outer"),
    "qwen3_vl": Outer("qwen3_vl_text", "outer"),
    "qwen3_vl_moe": Outer("qwen3_vl_moe_text", "outer"),
    "shieldgemma2": Outer("gemma3_text", "either"),
    "smolvlm": Outer("llama", "outer", own_default=True),
    "video_llama_3": Outer("qwen2", "either"),
    "video_llava": Outer("llama", "outer"),
    "vipllava": Outer("llama", "outer"),
    "voxtral": Outer("llama", "never", filled=_VOXTRAL),
}
"""transformers' classes. A class that is not here must name its language model's type, and where it says anything
about tied embeddings it must say the same inside and outside."""

NOT_SIZED: Mapping[str, str] = {"ovis2": "Its head has sizes of its own, beside those of the language model."}
"""Classes whose language model is not the one that its own configuration describes."""

_PREFIXES = (
    "audio_", "downsample_", "dynamic_", "image_", "mm_", "multimodal_", "projector_", "select_", "spatial_",
    "talker_", "temporal_", "tile_", "token2wav_", "video_", "vision_", "vit_",
)  # fmt: skip
_SUFFIXES = ("_config", "_token", "_token_id", "_token_ids", "_token_index", "_token_indices")
_ABOUT_IMAGES = frozenset(
    {
        "enable_audio_output", "enable_talker", "force_image_size", "global_view_pos", "has_lora_adapter",
        "ignore_index",
        "is_omni", "max_dynamic_patch", "max_patch_size", "min_dynamic_patch", "position_id_per_seconds", "ps_version",
        "qk_layernorms_perceiver", "scale_factor", "seconds_per_chunk", "template", "use_image_newline_parameter",
        "use_image_newline", "use_thumbnail", "pad2square", "vocab_list", "window_size", "fuse_method", "perturb_steps",
        "system_message", "candidate_resolutions", "anyres_image_size", "use_cls_token", "use_pixel_shuffle",
        "adapter_layer_norm_eps", "alignment_intermediate_size", "initializer_factor", "num_channels",
        "num_query_tokens", "patch_size", "projection_dim", "projection_hidden_size", "projection_layer_norm_eps",
    }
)  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **NEUTRAL_EVERYWHERE,
    "use_backbone_lora": (0,),
    "use_decoder_only_language_model": (True,),  # BLIP-2 with T5 has False
    "use_llm_lora": (0,),
}


@dataclass(frozen=True, slots=True)
class Inner:
    """A language model's configuration and where it was found."""

    path: str
    """Keys to it, joined by dots; empty where the configuration is the language model's own."""
    config: dict[str, Any]
    beside: tuple[str, ...] = ()
    """Other configurations beside it, of encoders and decoders for images and sound."""
    assumed_untied: bool = False
    """Whether only the language model's own field (or default) says that the head is a matrix of its own."""
    within: Outer | None = None
    """The class of the whole around it."""


def language_model(config: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> Inner:
    """The language model of a configuration: itself where its type is known, else the one inside it."""
    return _found(config, adapters, "", DEEPEST)


def _found(config: Mapping[str, Any], adapters: Mapping[str, Adapter], path: str, depth: int) -> Inner:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in adapters:
        return Inner(path, dict(config))
    prefix = f"{path}." if path else ""
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping) and depth:
        assumed_type = {"model_type": f"{model_type}_thinker"} if isinstance(model_type, str) else {}
        inner = _found(
            {**assumed_type, **{str(name): value for name, value in thinker.items()}},
            adapters,
            f"{prefix}thinker_config",
            depth - 1,
        )
        return replace(inner, beside=(*inner.beside, *_others(config, "thinker_config")))
    outer = OUTER.get(model_type) if isinstance(model_type, str) else None
    for key in TEXT_KEYS:
        text = config.get(key)
        if isinstance(text, Mapping) and depth:
            return _inside(config, text, key, outer, adapters, prefix)
    if outer is not None and outer.flat:
        text = {name: value for name, value in config.items() if not _is_beside(name)}
        return Inner(path, text | {"model_type": outer.text}, _others(config, ""), within=outer)
    if outer is not None and outer.own_default:
        raise refusal(
            f"{prefix}{TEXT_KEYS[0]}",
            f"There is no language model in this {shown(model_type)}.",
            "Use the config.json that is published with the model.",
            "no_language_model",
        )
    if outer is not None and outer.text in adapters:
        return _inside(config, {}, TEXT_KEYS[0], outer, adapters, prefix)
    return Inner(path, dict(config))


def _inside(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    key: str,
    outer: Outer | None,
    adapters: Mapping[str, Adapter],
    prefix: str,
) -> Inner:
    """The language model under ``key``, with what its surroundings decide, and those judged."""
    made = {**({} if outer is None else outer.filled), **{str(name): value for name, value in text.items()}}
    path = f"{prefix}{key}"
    whole = config.get("model_type")
    if isinstance(whole, str) and whole in NOT_SIZED:
        raise refusal(
            "model_type",
            f"{shown(whole)}: {NOT_SIZED[whole]}",
            "Size the language model by itself.",
            "unsupported_model_type",
        )
    if made.get("model_type") is None:
        if outer is None:
            raise refusal(
                f"{path}.model_type",
                f"There is no model_type, so nothing says which language model of {shown(whole)} this is.",
                "Write the language model's own type there.",
                "no_model_type",
            )
        made["model_type"] = outer.text
    adapter = adapters.get(made["model_type"]) if isinstance(made["model_type"], str) else None
    if adapter is None:
        raise refusal(
            f"{path}.model_type",
            f"The language model {shown(made['model_type'])} of {shown(whole)} is not supported.",
            "Size another model, or write its layers as a specification.",
            "unsupported_model_type",
        )
    _judge(config, key, made, adapter)
    tie, own = config.get("tie_word_embeddings"), made.get("tie_word_embeddings")
    ties = outer.ties if outer is not None else "text unless outer"
    if outer is None and tie is not None and own is not None and tie != own:
        raise refusal(
            "tie_word_embeddings",
            f"It is {shown(tie)} here and {shown(own)} in {path}.",
            "Keep the one that is meant.",
            "contradiction",
        )
    assumed = False
    if adapter.reads("tie_word_embeddings"):
        if own is None:
            own = adapter.defaults.get("tie_word_embeddings", False)
        if ties == "outer":
            own = False if tie is None else tie
        elif ties == "never":
            own = False
        elif ties == "either":
            own = tie if tie is not None and tie is not False else own
        elif ties == "text unless outer":
            assumed = tie is None and own is False
            own = own if tie is None else tie
        made["tie_word_embeddings"] = own
    if "quantization_config" in config and "quantization_config" not in made:
        made["quantization_config"] = config["quantization_config"]
    return Inner(path, made, _others(config, key), assumed, outer)


def _judge(config: Mapping[str, Any], key: str, text: Mapping[str, Any], adapter: Adapter) -> None:
    """Refuse what stands beside a language model and might be about it."""
    problems = []
    for name, value in config.items():
        if name == key or name == "tie_word_embeddings" or name in IGNORED_EVERYWHERE or _is_beside(name):
            continue
        if is_one_of(value, _NEUTRAL.get(name, ())):
            continue
        if adapter.reads(name) or name in adapter.ignored:
            # A copy for the convenience of readers; transformers reads the inner one.
            inside = text.get(name, adapter.defaults.get(name))
            if inside == value or name in adapter.ignored or value is None:
                continue
            problems.append(
                Problem(
                    name,
                    f"It is {shown(value)} here and {shown(inside)} in {key}.",
                    f"Keep the one in {key}.",
                    "contradiction",
                )
            )
            continue
        problems.append(
            Problem(
                name,
                f"This field of {shown(config.get('model_type'))} is not known beside a language model, and it might "
                "change its size.",
                "Remove it if it does not change the language model.",
                "unknown_field",
            )
        )
    if problems:
        raise UnsupportedArchitecture(problems)


def _is_beside(name: str) -> bool:
    """Whether a field is about images, sound or special tokens, by its name."""
    if name in ("num_image_tokens", *_ABOUT_IMAGES):
        return True
    return name.startswith(_PREFIXES) or name.endswith(_SUFFIXES)


def _others(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Configurations beside the one under ``key``."""
    return tuple(
        name
        for name, value in config.items()
        if name != key and name != "quantization_config" and name.endswith("_config") and isinstance(value, Mapping)
    )
