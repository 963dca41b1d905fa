"""Weights of transformers' models, read through the layout map of their family."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planner.components import Attention, LatentAttention
from planner.interop import ADAPTERS, from_huggingface, resolved
from planner.interop.base import Placed, laid_out
from planner.spec import ArchitectureSpec, Layer, RotaryPositions
from runners.models.context import Kernels
from runners.models.decoder import Decoder

CORRECTIONS = ("e_score_correction_bias", "expert_bias")
"""The buffer that steers the choice of experts (DeepSeek-V3, LFM2); it is no parameter, so no layout rule names it."""

COMPUTED = (
    *("inv_freq", "attn.bias", "attn.masked_bias"),
    *(f"self_attn.{name}" for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay")),
)
"""Ends of the names of buffers that follow from the configuration: rotary frequencies, masks, lightning attention's
decays."""

XIELU = {"act_fn.beta": 0.5, "act_fn.eps": -1e-6}
"""What Apertus' files hold beside the parameters of its activation."""

PART = re.compile(r"(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)")
"""Where multimodal models keep their language model's tensors."""


def load_into(model: Decoder, state_dict: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Copy the weights of a state dict into a model built from the same configuration.

    Raises
    ------
    ValueError
        naming a tensor that is missing, has another shape, or has no place in the model.
    """
    inner = resolved(config)
    if inner.config["model_type"] != config.get("model_type"):
        state_dict = _language_model(state_dict)
    config = inner.config
    adapter, spec = ADAPTERS[config["model_type"]], model.spec
    for field, value in adapter.unmodelled_in(config).items():
        raise ValueError(
            f"{field} is {value!r}, which no specification can say: the model would not compute what these weights mean"
        )
    own = dict(model.named_parameters())
    layers = [layer for _, layer in spec.iterate_layers()]
    unread = {name for name, tensor in state_dict.items() if tensor.numel()}
    for placed in laid_out(adapter, spec):
        if placed.name not in state_dict:
            raise ValueError(f"the state dict has no tensor {placed.name!r}, which {config['model_type']} needs")
        unread.discard(placed.name)
        theirs = state_dict[placed.name]
        if tuple(theirs.shape) != placed.shape:
            raise ValueError(f"{placed.name} has the shape {tuple(theirs.shape)}, not {placed.shape}")
        with torch.no_grad():
            if placed.row is not None:
                own[placed.ours[0]][placed.row].copy_(theirs)
                continue
            targets = [own[name] for name in placed.ours]
            for target, part in zip(targets, _parts(theirs, placed, targets, layers[placed.layer]), strict=True):
                target.copy_(part)
    for name in [name for name in unread if name.endswith(CORRECTIONS)]:
        index = next(part for part in name.split(".") if part.isdecimal())
        model.get_buffer(f"layers.{index}.channel_mixer.router.score_correction_bias").copy_(state_dict[name].flatten())
        unread.discard(name)
    for name in [name for name in unread if name.endswith(tuple(XIELU))]:
        constant = next(value for end, value in XIELU.items() if name.endswith(end))
        if not torch.isclose(state_dict[name].double(), torch.tensor(constant, dtype=torch.float64), rtol=0.01):
            raise ValueError(f"{name} is {float(state_dict[name])}, and here it is always {constant}")
        unread.discard(name)
    if spec.tie_word_embeddings:  # the head, by the family's name of it
        rules = adapter.layout(spec) if callable(adapter.layout) else adapter.layout
        unread -= {rule.theirs for rule in rules if rule.ours == ("lm_head.weight",)} | {"lm_head.weight"}
    unread = {name for name in unread if not name.endswith(COMPUTED)}
    if unread:
        raise ValueError(f"the model has no place for {', '.join(sorted(unread)[:5])}")
    in_pairs = adapter.rotary_in_pairs
    if in_pairs(config) if callable(in_pairs) else in_pairs:
        _reorder(model, spec, lambda rope: torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2))))
    if adapter.rotary_backwards:
        _reorder(model, spec, lambda rope: torch.arange(rope).roll(rope // 2))


def _language_model(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the language model inside a multimodal one, by the names that it has alone."""
    found = {}
    for name, tensor in state_dict.items():
        part = PART.match(name)
        if part is not None:
            found[f"model.{name[part.end() :]}"] = tensor
        elif name.endswith("lm_head.weight"):
            found["lm_head.weight"] = tensor
    return found


def _parts(theirs: Tensor, placed: Placed, targets: Sequence[Tensor], layer: Layer) -> list[Tensor]:
    """The parts of one of transformers' tensors that our ``targets`` are."""
    rows = theirs.transpose(-1, -2) if placed.rule.transposed else theirs
    rows = rows[0] if placed.rule.as_one_row else rows
    if placed.rule.halves_in_turn:
        rows = torch.cat((rows[:, 0::2], rows[:, 1::2]), 1)
    sizes = [target.shape[0] for target in targets]
    if placed.rule.interleaved_by is None:
        return list(rows.split(sizes))
    by = placed.rule.interleaved_by
    blocks = by if isinstance(by, int) else getattr(placed.rule.mixer(layer), by)
    by_block = rows.reshape(blocks, rows.shape[0] // blocks, *rows.shape[1:])
    return [part.flatten(0, 1) for part in by_block.split([size // blocks for size in sizes], 1)]


@torch.no_grad()
def _reorder(model: Decoder, spec: ArchitectureSpec, order_of: Callable[[int], Tensor]) -> None:
    """Order the rotated channels of a head, of which there are so many, as real parts, then imaginary parts.

    Queries and keys are reordered alike, so their products stay what they were; the norms of both follow them.
    """
    if not isinstance(spec.positions, RotaryPositions):
        return
    own = dict(model.named_parameters())
    places = [
        (f"layers.{index}.sequence_mixer{end}", part)
        for index, layer in spec.iterate_layers()
        if layer.sequence_mixer is not None
        for end, part in layer.sequence_mixer.parts()
    ]
    for place, mixer in places:
        if isinstance(mixer, LatentAttention):
            rope, nope = mixer.qk_rope_head_dim, mixer.qk_nope_head_dim
            query = "q_proj" if mixer.q_lora_rank is None else "q_b_proj"
            # Name, channels before the rotated ones, and channels of a head; the keys' rotated part serves all heads.
            parts = [(query, nope, nope + rope), ("kv_a_proj", mixer.kv_lora_rank, mixer.kv_lora_rank + rope)]
        elif isinstance(mixer, Attention) and mixer.rotary_dim:
            rope = mixer.rotary_dim
            parts = [(name, 0, mixer.head_dim) for name in ("q_proj", "k_proj", "q_norm", "k_norm")]
        else:
            continue
        order = order_of(rope)
        for name, before, width in parts:
            for end in ("weight", "bias"):
                parameter = own.get(f"{place}.{name}.{end}")
                if parameter is None:
                    continue
                # Rows are channels of the heads one after the other; a norm may have a row a head instead.
                channels = (
                    parameter.view(-1, width) if "norm" in name else parameter.view(-1, width, *parameter.shape[1:])
                )
                channels[:, before : before + rope] = channels[:, before : before + rope][:, order]


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
