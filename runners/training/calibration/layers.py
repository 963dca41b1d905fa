"""What components take beside their matrices, and models beside their layers.

A component is timed in models with five layers of it and with one: the difference, over four, is a layer. Narrow layers
of other kinds stand between them, five of each in both models, since a processor runs the same code five times over
faster than the changing code of a model. In a very narrow layer, what is left beside matrices and scores is its
launches; in two wider ones, at two lengths of as many tokens, what all these leave is told apart into bytes, FLOPs
between tokens and pairs of positions by least squares without negative terms. An option of a component is what a narrow
layer with it takes more than one without, and a wide one beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.optimize
import torch

from planner.calibration import (
    OPTIONS,
    PHASES,
    ExpertSeconds,
    KindRates,
    LaunchRates,
    OptionRates,
    OuterRates,
    Phase,
    Precision,
    PrecisionRates,
    cached_bytes,
    flops_between_tokens,
    head_seconds,
    kept_bytes,
    kinds_within,
    matrix_bytes,
    matrix_seconds,
    options_of,
    pairs_of_heads,
    score_seconds,
)
from planner.components import Component
from planner.matrices import matrices
from planner.presets import preset, preset_ids
from planner.prototype import narrowed
from planner.spec import ArchitectureSpec, Layer, LayerGroup, NoPositions
from runners.models import Decoder, build
from runners.models.decoder import next_tokens
from runners.training.calibration.clocks import Call, Clock, Stopwatch, device_seconds, elapsed, host_seconds, is_queued
from runners.training.calibration.operators import shapes_of, under

NARROW, FEW = 32, (1, 16)
"""Channels, and batch and length, of what is measured for its launches."""
VOCABULARY, LARGE_VOCABULARY = 256, 8192
LAYERS = 5
PLAIN = "mlp"
"""The kind in whose layers options of a layer are measured."""
FEW_EXPERTS, MANY_EXPERTS, EXPERTS_CHOSEN = 8, 128, 4
TYPICAL = ("llama-2-7b", "mixtral-8x7b", "deepseek-v2", "mamba-2.8b", "mamba2-2.7b")
"""Known models whose components stand for their kinds; of other kinds the first model that has one."""

Example = tuple[ArchitectureSpec, Layer]
"""A design, and the layer of one mixer that models of its width are made of."""


def examples() -> Iterator[tuple[str, Example]]:
    """A layer of each kind of component that a known model has, without what is measured as an option."""
    seen: set[str] = set()
    for name in dict.fromkeys((*TYPICAL, *preset_ids())):
        whole = preset(name).spec
        for layer in dict.fromkeys(layer for group in whole.layer_groups for layer in group.layers):
            for slot in ("sequence_mixer", "channel_mixer"):
                mixer = getattr(layer, slot)
                if mixer is None or getattr(mixer, "shares_key_values", False):
                    continue
                parts = list(kinds_within(mixer))
                if len(parts) == 1 and parts[0][0] not in seen:
                    seen.add(parts[0][0])
                    for option in options_of(mixer):
                        mixer = mixer.model_copy(update=OPTIONS[option].without)
                    alone = {_other(slot): None, slot: mixer, "residual": "sequential"}
                    for option in options_of(layer):
                        alone.update(OPTIONS[option].without)
                    yield parts[0][0], (whole, layer.model_copy(update=alone))


def example_of(option: str) -> str:
    """The kind in whose layers an option is measured."""
    component = OPTIONS[option].component
    return PLAIN if component == "layer" else component


def with_option(name: str, known: Mapping[str, Example]) -> tuple[Example, Example]:
    """An example with an option, and the one without it."""
    option = OPTIONS[name]
    plain = known[example_of(name)]
    spec, layer = plain
    if option.component == "layer":
        return (spec, layer.model_copy(update=option.fields)), plain
    mixer = _mixer(plain).model_copy(update=option.fields)
    return (spec, layer.model_copy(update={_slot(layer): mixer})), plain


def _slot(layer: Layer) -> str:
    return "sequence_mixer" if layer.sequence_mixer is not None else "channel_mixer"


def _other(slot: str) -> str:
    return "channel_mixer" if slot == "sequence_mixer" else "sequence_mixer"


def _model(example: Example, width: int, layers: int) -> tuple[ArchitectureSpec, Layer]:
    """``layers`` layers of one mixer in a stream of ``width`` channels."""
    spec, layer = example
    one = spec.model_copy(update={"layer_groups": (LayerGroup(repeats=1, layers=(layer,)),)})
    small = narrowed(one, width, 512, 1.0).spec
    narrow = small.layer_groups[0].layers[0]
    made = small.model_copy(update={"layer_groups": (LayerGroup(repeats=layers, layers=(narrow,)),)})
    return made, narrow


def _among_others(example: Example, width: int, layers: int) -> tuple[ArchitectureSpec, Layer]:
    """A model whose first ``layers`` of five layers of one mixer are there, each before a narrow one of attention and
    one of an MLP; these stand five times in any case."""
    made, own = _model(example, width, 1)
    common = preset(TYPICAL[0]).spec
    other = _model((common, common.layer_groups[0].layers[0]), NARROW, 1)[1]
    mixers = [other.model_copy(update={slot: None}) for slot in ("channel_mixer", "sequence_mixer")]
    stack = [layer for index in range(LAYERS) for layer in ([own] if index < layers else []) + mixers]
    return made.model_copy(update={"layer_groups": (LayerGroup(repeats=1, layers=tuple(stack)),)}), own


def kind_rates(
    watch: Stopwatch, precision: Precision, phase: Phase, example: Example, rates: PrecisionRates
) -> KindRates:
    """What a layer of one mixer takes beside its matrices and the scores of fused attention."""
    launches = launch_rates(watch, precision, phase, example, rates)
    least = launches.least_seconds if is_queued(watch.device) else launches.launch_seconds
    shapes = shapes_of(watch.device)
    passes = [(1, length) for length in shapes.contexts] if phase == "decode" else list(shapes.many)
    wide = [(example, width) for width in shapes.widths]
    if phase != "decode" and pairs_of_heads(_mixer(example), *shapes.many[0]):
        wide.append((_with_thin_heads(example), shapes.widths[-1]))
    terms, rest = [], []
    for each, width in wide:
        for batch, length in passes:
            rest.append(max(0.0, _beside(watch, precision, phase, each, width, batch, length, rates)[1] - least))
            model, layer = _model(each, width, LAYERS)
            mixer = getattr(layer, _slot(layer))
            if phase == "decode":
                terms.append((cached_bytes(mixer, width, length, batch), 0.0, 0.0))
                continue
            flops = pairs = 0.0
            if _slot(layer) == "sequence_mixer" and score_seconds(mixer, length, batch, rates, phase) is None:
                flops = flops_between_tokens(mixer, width, length, batch, is_queued(watch.device))
                pairs = pairs_of_heads(mixer, length, batch)
            terms.append((_kept(model, layer, batch, length, precision), flops, pairs))
    per_byte, per_flop, per_pair = _shares(terms, rest)
    return KindRates(
        **launches.model_dump(), seconds_per_byte=per_byte, seconds_per_flop=per_flop, seconds_per_pair=per_pair
    )


def _mixer(example: Example) -> Component:
    mixer: Component = getattr(example[1], _slot(example[1]))
    return mixer


def _with_thin_heads(example: Example) -> Example:
    """As many channels in heads of half as many each, so that scores count twice beside their FLOPs."""
    spec, layer = example
    mixer = _mixer(example)
    # The sides of a head in fields, whichever the kind has.
    factors = {"num_heads": 2.0, "num_attention_heads": 2.0, "num_key_value_heads": 2.0, "head_dim": 0.5}
    shape = {name: int(factor * getattr(mixer, name)) for name, factor in factors.items() if hasattr(mixer, name)}
    thin = mixer.model_copy(update=shape)
    return spec, layer.model_copy(update={_slot(layer): thin})


def _beside(
    watch: Stopwatch,
    precision: Precision,
    phase: Phase,
    example: Example,
    width: int,
    batch: int,
    length: int,
    rates: PrecisionRates,
) -> tuple[float, float]:
    """Seconds of a layer: the host's, and the device's beside its matrices and the scores of fused attention."""
    models = [_among_others(example, width, layers)[0] for layers in (1, LAYERS)]
    layer = _among_others(example, width, 1)[1]
    host, seconds = _layer_seconds(watch, precision, phase, models, batch, length)
    mixer = getattr(layer, _slot(layer))
    seconds -= _matrices(models[-1], mixer, (batch, length), rates, phase)
    if phase != "decode":
        seconds -= score_seconds(mixer, length, batch, rates, phase) or 0.0
    return host, seconds


def _kept(spec: ArchitectureSpec, layer: Layer, batch: int, length: int, precision: Precision) -> float:
    return kept_bytes(spec, layer, length, batch, precision)[_slot(layer).removesuffix("_mixer")]


def expert_seconds(watch: Stopwatch, precision: Precision, example: Example, rates: PrecisionRates) -> ExpertSeconds:
    """What each further expert's matrices take beside their arithmetic: of a few large experts and of many small ones
    that share the same tokens. On a GPU, which multiplies all at once, nothing."""
    if is_queued(watch.device):
        return ExpertSeconds()
    by_side = {
        side: {
            phase: _further_expert(watch, precision, phase, example, rates, side)
            for phase in (PHASES if side % 8 == 0 else ("training",))
            if phase != "decode"
        }
        for side in (NARROW, NARROW + 4)
    }
    return ExpertSeconds(
        prompt=by_side[NARROW]["prefill"],
        training=by_side[NARROW]["training"],
        training_one_by_one=by_side[NARROW + 4]["training"],
    )


def _further_expert(
    watch: Stopwatch, precision: Precision, phase: Phase, example: Example, rates: PrecisionRates, side: int
) -> float:
    """For each matrix, of a model of ``side`` channels with experts of as many."""
    batch, length = shapes_of(watch.device).many[0]
    seconds = []
    for experts in FEW_EXPERTS, MANY_EXPERTS:
        models = []
        for layers in (1, LAYERS):
            made, narrow = _model(example, NARROW, 1)
            assert narrow.channel_mixer is not None
            shape = {"num_experts": experts, "num_experts_per_tok": EXPERTS_CHOSEN, "intermediate_size": side}
            mixer = narrow.channel_mixer.model_copy(update=shape)
            layer = narrow.model_copy(update={"channel_mixer": mixer})
            stack = LayerGroup(repeats=layers, layers=(layer,))
            models.append(made.model_copy(update={"hidden_size": side, "layer_groups": (stack,)}))
        _, each = _layer_seconds(watch, precision, phase, models, batch, length)
        seconds.append(each - _matrices(models[-1], mixer, (batch, length), rates, phase))
    stacked = sum(tensor.active_share[1] > 1 for tensor in matrices(mixer, side))
    return max(0.0, seconds[1] - seconds[0]) / (stacked * (MANY_EXPERTS - FEW_EXPERTS))


def option_rates(
    watch: Stopwatch,
    precision: Precision,
    phase: Phase,
    name: str,
    known: Mapping[str, Example],
    rates: PrecisionRates,
) -> OptionRates:
    """What an option adds to its component, or takes off it: in a narrow layer, and in a wide one beyond that."""
    both = with_option(name, known)
    found, without = (launch_rates(watch, precision, phase, example, rates) for example in both)
    per_byte = 0.0
    if phase != "decode":
        width, (batch, length) = shapes_of(watch.device).widths[-1], shapes_of(watch.device).many[0]
        wide = [_beside(watch, precision, phase, each, width, batch, length, rates)[1] for each in both]
        narrow = [_beside(watch, precision, phase, each, NARROW, *FEW, rates)[1] for each in both]
        kept = _kept(*_model(both[0], width, LAYERS), batch, length, precision)
        per_byte = (wide[0] - narrow[0] - (wide[1] - narrow[1])) / kept
    return OptionRates(
        launch_seconds=found.launch_seconds - without.launch_seconds,
        least_seconds=found.least_seconds - without.least_seconds,
        seconds_per_byte=per_byte,
    )


def launch_rates(
    watch: Stopwatch, precision: Precision, phase: Phase, example: Example, rates: PrecisionRates
) -> LaunchRates:
    """What the operators of a narrow layer take beside its matrices: of the host, and where it queues, of the device
    too."""
    host, least = _beside(watch, precision, phase, example, NARROW, *FEW, rates)
    if is_queued(watch.device):
        return LaunchRates(launch_seconds=max(0.0, host), least_seconds=max(0.0, least))
    return LaunchRates(launch_seconds=max(0.0, least))


def _matrices(
    spec: ArchitectureSpec, mixer: Component, shape: tuple[int, int], rates: PrecisionRates, phase: Phase
) -> float:
    tokens = shape[0] * (1 if phase == "decode" else shape[1])
    return matrix_seconds(mixer, spec.hidden_size, tokens, rates, phase, matrix_bytes(spec))


def _shares(terms: Sequence[tuple[float, ...]], seconds: list[float]) -> list[float]:
    """Seconds for one of each term, none below zero, that add up to what is left."""
    # Each shape counts alike, whether it takes long or not.
    weights = 1 / np.maximum(np.array(seconds), max(seconds) / 100 or 1.0)
    table = np.array(terms) * weights[:, None]
    scale = np.maximum(table.max(axis=0), 1e-30)
    found, _ = scipy.optimize.nnls(table / scale, np.array(seconds) * weights)
    return [float(share) for share in found / scale]


def _layer_seconds(
    watch: Stopwatch, precision: Precision, phase: Phase, models: list[ArchitectureSpec], batch: int, length: int
) -> tuple[float, float]:
    """Seconds of the host and of the device for a layer: the difference between a model with several and with one."""
    clocks = (host_seconds, device_seconds) if is_queued(watch.device) else (device_seconds,)
    found = []
    for clock in clocks:
        one, several = _passes(watch, precision, phase, models, batch, length, clock)
        found.append((several - one) / (LAYERS - 1))
    return found[0], found[-1]


def _passes(
    watch: Stopwatch,
    precision: Precision,
    phase: Phase,
    models: list[ArchitectureSpec],
    batch: int,
    length: int,
    clock: Clock = device_seconds,
) -> list[float]:
    """Seconds of a pass of each, which take turns."""

    def make() -> list[Call]:
        built = [build(each, device=watch.device) for each in models]
        return [_pass(each, phase, batch, length, watch.device, precision) for each in built]

    name = (precision, phase, *(each.content_hash() for each in models), batch, length, clock.__name__)
    return watch.in_turns(name, make, clock)


def _pass(model: Decoder, phase: Phase, batch: int, length: int, device: str, precision: Precision) -> Call:
    """One pass as a benchmark runs it."""
    tokens = torch.randint(0, model.spec.vocab_size, (batch, length), device=device)
    if phase == "training":

        def training() -> object:
            model.zero_grad(set_to_none=True)
            with under(precision, device):
                loss = model.loss(tokens, next_tokens(tokens))
            loss.backward()
            return loss

        return training
    if phase == "prefill":

        @torch.no_grad()
        def prefill() -> object:
            with under(precision, device):
                return model(tokens, cache=model.new_cache(batch, length)).logits

        return prefill
    with torch.no_grad(), under(precision, device):
        cache = model.new_cache(batch, length + 1)
        model(tokens, cache=cache)

    @torch.no_grad()
    def decode() -> object:
        cache.length = length
        with under(precision, device):
            return model(tokens[:, :1], cache=cache).logits

    return decode


def pass_seconds(
    watch: Stopwatch, precision: Precision, phase: Phase, spec: ArchitectureSpec, batch: int, length: int
) -> float:
    """Seconds of a pass of a design as it is, the optimizer's step included where it trains."""

    def make() -> list[Call]:
        model = build(spec, device=watch.device)
        call = _pass(model, phase, batch, length, watch.device, precision)
        if phase != "training":
            return [call]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def step() -> object:
            call()
            return optimizer.step()

        return [step]

    return watch.in_turns(("whole", precision, phase, spec.content_hash(), batch, length), make, elapsed)[0]


def outer_rates(watch: Stopwatch, precision: Precision, phase: Phase, rates: PrecisionRates) -> OuterRates:
    """What a model takes beside its layers: of the difference between vocabularies, and of what is left of a model."""
    whole = preset("llama-2-7b").spec
    both = whole.layer_groups[0].layers[0]
    layer, attending = (both.model_copy(update={mixer: None}) for mixer in ("sequence_mixer", "channel_mixer"))
    batch, length = shapes_of(watch.device).many[0]
    small, _ = _model((whole, layer), NARROW, 1)
    sized = [
        small.model_copy(update={"vocab_size": vocabulary, "positions": NoPositions()})
        for vocabulary in (VOCABULARY, LARGE_VOCABULARY)
    ]
    few, many = _passes(watch, precision, phase, sized, batch, length)
    tokens = batch * (1 if phase == "decode" else length)
    heads = [head_seconds(each, tokens, rates, phase, matrix_bytes(each)) for each in sized]
    per_logit = max(0.0, (many - few) - (heads[1] - heads[0])) / (tokens * (LARGE_VOCABULARY - VOCABULARY))
    left, with_places = (_beside_layers(watch, precision, phase, (whole, each)) for each in (layer, attending))
    places = max(0.0, with_places - left)
    if not is_queued(watch.device):
        few_tokens = FEW[0] * (1 if phase == "decode" else FEW[1])
        left -= head_seconds(sized[0], few_tokens, rates, phase, matrix_bytes(sized[0]))
    return OuterRates(launch_seconds=max(0.0, left), places_seconds=places, seconds_per_logit=per_logit)


def _beside_layers(watch: Stopwatch, precision: Precision, phase: Phase, example: Example) -> float:
    """Seconds of the host for what a narrow model does outside its layers."""
    thin = [_model(example, NARROW, count)[0] for count in (1, LAYERS)]
    one, several = _passes(watch, precision, phase, thin, *FEW, host_seconds)
    return one - (several - one) / (LAYERS - 1)
