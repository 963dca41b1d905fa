"""Weights of transformers' models, read through the layout map of their family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from planner.components import LatentAttention
from planner.interop import adapter_for, from_huggingface
from planner.interop.base import laid_out
from planner.sizing import size
from planner.spec import ArchitectureSpec
from runners.models.context import Kernels
from runners.models.decoder import Decoder

CORRECTION = "model.layers.{layer}.mlp.gate.e_score_correction_bias"
"""DeepSeek-V3's buffer that steers the choice of experts; it is no parameter, so no layout rule names it."""


def load_into(model: Decoder, state_dict: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Copy the weights of a state dict into a model built from the same configuration.

    Raises
    ------
    ValueError
        naming a tensor that is missing, has another shape, or has no place in the model.
    """
    adapter, spec = adapter_for(config), model.spec
    own = dict(model.named_parameters())
    unread = set(state_dict)
    for name, shape, rule, ours in laid_out(adapter, size(spec).tensors, spec.num_layers):
        if name not in state_dict:
            raise ValueError(f"the state dict has no tensor {name!r}, which {config['model_type']} needs")
        unread.discard(name)
        theirs = state_dict[name]
        if tuple(theirs.shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {tuple(theirs.shape)}, not {tuple(shape)}")
        rows = theirs.t() if rule.transposed else theirs
        with torch.no_grad():
            for target, part in zip(ours, rows.split([own[target].shape[0] for target in ours]), strict=True):
                own[target].copy_(part)
    for index, _ in spec.iterate_layers():
        name = CORRECTION.format(layer=index)
        if name in state_dict:
            unread.discard(name)
            model.get_buffer(f"layers.{index}.channel_mixer.router.score_correction_bias").copy_(state_dict[name])
    if spec.tie_word_embeddings:
        unread.discard("lm_head.weight")
    unread = {name for name in unread if not name.endswith(("inv_freq", "attn.bias", "attn.masked_bias"))}
    if unread:
        raise ValueError(f"the model has no place for {', '.join(sorted(unread)[:5])}")
    if config.get("rope_interleave", config["model_type"].startswith("deepseek")):
        _uninterleave(model, spec)


@torch.no_grad()
def _uninterleave(model: Decoder, spec: ArchitectureSpec) -> None:
    """Order rotated channels as real parts, then imaginary parts, where the family stores them in turn.

    Queries and keys are reordered alike, so their products stay what they were.
    """
    for index, layer in spec.iterate_layers():
        mixer = layer.sequence_mixer
        if not isinstance(mixer, LatentAttention):
            continue
        rope = mixer.qk_rope_head_dim
        order = torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2)))
        prefix = f"layers.{index}.sequence_mixer"
        query = model.get_parameter(f"{prefix}.{'q_proj' if mixer.q_lora_rank is None else 'q_b_proj'}.weight")
        heads = query.view(mixer.num_attention_heads, mixer.qk_nope_head_dim + rope, -1)
        heads[:, mixer.qk_nope_head_dim :] = heads[:, mixer.qk_nope_head_dim :][:, order]
        names = ["weight", "bias"] if mixer.attention_bias else ["weight"]
        for name in names:
            latent = model.get_parameter(f"{prefix}.kv_a_proj.{name}")
            latent[mixer.kv_lora_rank :] = latent[mixer.kv_lora_rank :][order]


def load_huggingface(
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "auto",
) -> Decoder:
    """The model of a configuration (what ``json.load`` gives for a ``config.json``) with a transformers state dict."""
    from runners.models import build

    model = build(from_huggingface(config), device, dtype, kernels)
    load_into(model, state_dict, config)
    return model
