"""The building blocks of a layer. A component is registered by being in one of these unions."""

from typing import Annotated, Any, get_args

from pydantic import Field

from planner.components.attention import Attention
from planner.components.base import CacheEntry, Component, Operation, SavedTensor, Tensor
from planner.components.gated_delta_net import GatedDeltaNet
from planner.components.gated_linear_attention import GatedLinearAttention
from planner.components.kimi_delta_attention import KimiDeltaAttention
from planner.components.latent_attention import LatentAttention
from planner.components.lightning_attention import LightningAttention
from planner.components.mamba1 import Mamba1
from planner.components.mamba2 import Mamba2
from planner.components.mlp import MLP
from planner.components.moe import MoE
from planner.components.norms import LayerNorm, Norm, RMSNorm
from planner.components.parallel_mixers import ParallelMixers
from planner.components.rg_lru import RGLRU
from planner.components.rwkv import RWKVChannelMix, RWKVTimeMix
from planner.components.short_convolution import ShortConvolution

_Single = (
    Attention
    | GatedDeltaNet
    | GatedLinearAttention
    | KimiDeltaAttention
    | LatentAttention
    | LightningAttention
    | Mamba1
    | Mamba2
    | RGLRU
    | RWKVTimeMix
    | ShortConvolution
)
SingleMixer = Annotated[_Single, Field(discriminator="kind")]
SequenceMixer = Annotated[_Single | ParallelMixers, Field(discriminator="kind")]
ParallelMixers.model_rebuild(_types_namespace={"SingleMixer": SingleMixer})
ChannelMixer = Annotated[MLP | MoE | RWKVChannelMix, Field(discriminator="kind")]


def kinds_of(union: Any) -> dict[str, type[Component]]:
    """The components of one of these unions by their ``kind``."""
    return {member.model_fields["kind"].default: member for member in get_args(get_args(union)[0])}


__all__ = [
    "MLP",
    "RGLRU",
    "Attention",
    "CacheEntry",
    "ChannelMixer",
    "Component",
    "GatedDeltaNet",
    "GatedLinearAttention",
    "KimiDeltaAttention",
    "LatentAttention",
    "LayerNorm",
    "LightningAttention",
    "Mamba1",
    "Mamba2",
    "MoE",
    "Norm",
    "Operation",
    "ParallelMixers",
    "RMSNorm",
    "RWKVChannelMix",
    "RWKVTimeMix",
    "SavedTensor",
    "SequenceMixer",
    "ShortConvolution",
    "SingleMixer",
    "Tensor",
    "kinds_of",
]
