"""Run in a process of its own with TRITON_INTERPRET=1: each kernel in Triton's interpreter against float64.

Prints a line a check; ends with status 1 if one fails. bf16 is left out, since the interpreter multiplies its bits as
integers.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys

import torch
from torch import Tensor

from planner import parse_spec
from planner.components.patterns import MaskPattern
from runners.kernels import causal_attention, rms_norm, swiglu
from runners.kernels.attention_blocks import Places
from runners.kernels.base import KernelUnsupported
from runners.models import build

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
failures = 0


def check(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    global failures
    error = ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)).item()
    good = error <= tolerance
    failures += not good
    print(f"{'ok  ' if good else 'FAIL'} {what}: {error:.2e}", flush=True)


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def gradients(result: Tensor, inputs: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((result.double() * weights).sum(), inputs)


def check_norm() -> None:
    for dtype, (rows, channels), centered in itertools.product(TOLERANCE, [(5, 64), (3, 100), (300, 8)], [False, True]):
        inputs = drawn(rows, channels, dtype=dtype), drawn(channels, dtype=dtype)
        weights = torch.randn(rows, channels).double()
        wide = tuple(part.detach().double().requires_grad_() for part in inputs)
        found = rms_norm.triton_rms_norm(*inputs, 1e-5, centered)
        expected = rms_norm.reference(*wide, 1e-5, centered)
        name = f"rms_norm {dtype} {rows}x{channels} centered={centered}"
        check(name, found, expected, TOLERANCE[dtype])
        for part, one, other in zip(
            ("x", "weight"), gradients(found, inputs, weights), gradients(expected, wide, weights), strict=True
        ):
            check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 2)


def check_swiglu() -> None:
    for dtype, shape in itertools.product(TOLERANCE, [(4, 64), (3, 7, 100), (1, 1), (2, 1500)]):
        inputs = drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
        weights = torch.randn(*shape).double()
        wide = tuple(part.detach().double().requires_grad_() for part in inputs)
        found, expected = swiglu.triton_swiglu(*inputs), swiglu.reference(*wide)
        name = f"swiglu {dtype} {shape}"
        check(name, found, expected, TOLERANCE[dtype])
        for part, one, other in zip(
            ("gate", "up"), gradients(found, inputs, weights), gradients(expected, wide, weights), strict=True
        ):
            check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 2)


PATTERNS = [
    MaskPattern(),
    MaskPattern(sliding_window=9),
    MaskPattern(sliding_window=33),
    MaskPattern(sliding_window=7, dilation=3),
    MaskPattern(sliding_window=9, global_tokens=5),
    MaskPattern(sliding_window=5, dilation=2, global_tokens=2),
    MaskPattern(attention_chunk_size=24),
    MaskPattern(attention_chunk_size=16, previous_chunks=2),
    MaskPattern(attention_chunk_size=20, chunk_summaries=3),
    MaskPattern(attention_chunk_size=12, previous_chunks=1, chunk_summaries=2, global_tokens=15),
    MaskPattern(stride=8),
    MaskPattern(sliding_window=6, stride=7, global_tokens=2),
    MaskPattern(block_size=12, block_offsets=(1, 3)),
    MaskPattern(block_size=8, block_offsets=(2,), random_blocks=2, random_seed=7, global_tokens=10),
]


def compare_attention(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    sizes: tuple[int, int],
    pattern: MaskPattern,
    with_sinks: bool = False,
    places: Places | None = None,
) -> None:
    """Output and gradients. ``shape``: batch, heads, key heads, queries, keys; ``sizes``: channels of keys, values."""
    batch, heads, key_heads, queries, keys = shape
    inputs = [
        drawn(batch, heads, queries, sizes[0], dtype=dtype),
        drawn(batch, key_heads, keys, sizes[0], dtype=dtype),
        drawn(batch, key_heads, keys, sizes[1], dtype=dtype),
    ]
    if with_sinks:
        inputs.append(drawn(heads, dtype=dtype))
    wide = [part.detach().double().requires_grad_() for part in inputs]
    results = [
        run(*parts[:3], sizes[0] ** -0.5, pattern, parts[3] if with_sinks else None, places)
        for run, parts in ((causal_attention.triton_causal_attention, inputs), (causal_attention.reference, wide))
    ]
    name = f"causal_attention {name} {dtype} {shape} {sizes} {pattern.words()}"
    check(name, results[0], results[1], TOLERANCE[dtype])
    weights = torch.randn_like(results[1])
    found, expected = (gradients(one, tuple(part), weights) for one, part in zip(results, (inputs, wide), strict=True))
    for part, one, other in zip(("q", "k", "v", "sinks"), found, expected, strict=False):
        check(f"{name} gradient of {part}", one, other, TOLERANCE[dtype] * 4)


def check_attention() -> None:
    """Sizes: groups, heads that are no power of two, values of another width, several tiles, queries behind a cache."""
    for dtype, (shape, size, window) in itertools.product(
        TOLERANCE,
        [
            ((1, 2, 2, 33, 33), 16, None),
            ((2, 4, 2, 50, 50), 24, None),
            ((1, 4, 1, 70, 70), 64, 9),
            ((1, 2, 1, 140, 140), 16, 33),
            ((1, 2, 2, 5, 40), 32, None),
            ((1, 2, 2, 1, 17), 32, 4),
            # windows just wider than a block of keys, and than a tile
            ((1, 1, 1, 300, 300), 32, 65),
            ((1, 1, 1, 140, 300), 80, 129),
        ],
    ):
        compare_attention("sizes", dtype, shape, (size, size), MaskPattern(window))
    compare_attention("narrow values", torch.float32, (1, 2, 1, 40, 40), (48, 20), MaskPattern(11))


def check_patterns() -> None:
    """Every pattern, whole sequences and queries behind a cache; with sinks in turn."""
    for index, pattern in enumerate(PATTERNS):
        compare_attention("whole", torch.float32, (1, 2, 1, 75, 75), (16, 16), pattern, index % 2 == 0)
        compare_attention("cached", torch.float32, (1, 2, 2, 37, 75), (16, 16), pattern, index % 2 == 1)


def check_places() -> None:
    """Documents of several lengths, and keys with gaps between them, as a cache leaves them."""
    ids = torch.tensor([[0] * 3 + [1] * 40 + [2] * 1 + [3] * 31, [4] * 70 + [5] * 5])
    begins = torch.cat((torch.ones(2, 1, dtype=torch.bool), ids[:, 1:] != ids[:, :-1]), 1)
    first = torch.where(begins, torch.arange(75), 0).cummax(1).values
    documents = Places(torch.arange(75) - first, ids)
    for index, pattern in enumerate(PATTERNS):
        compare_attention("documents", torch.float32, (2, 2, 1, 75, 75), (16, 16), pattern, index % 2 == 1, documents)
    for pattern in (
        MaskPattern(sliding_window=9, global_tokens=5),
        MaskPattern(attention_chunk_size=24),
        MaskPattern(block_size=10, block_offsets=(4,)),
    ):
        gaps = Places(torch.cat((torch.arange(5), torch.arange(50, 100)))[None])
        compare_attention("gaps", torch.float32, (2, 2, 1, 40, 55), (16, 16), pattern, False, gaps)


def check_models() -> None:
    """A model of layers of every pattern with Triton's kernels, against plain PyTorch in float64."""
    heads = {"kind": "attention", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    masks = [
        {name: size for name, size in dataclasses.asdict(pattern).items() if size is not None} for pattern in PATTERNS
    ]
    layers = [
        {"sequence_mixer": {**heads, **mask, "sinks": index % 2 == 0}, "channel_mixer": None}
        for index, mask in enumerate(masks)
    ]
    spec = parse_spec({"vocab_size": 20, "hidden_size": 16, "layer_groups": [{"layers": layers}]})
    found, expected = build(spec, kernels="triton"), build(spec, dtype=torch.float64, kernels="reference")
    expected.load_state_dict(found.state_dict())
    tokens = torch.randint(20, (2, 40))
    ids = torch.tensor([[0] * 13 + [1] * 27, [2] * 40])
    for name, documents in (("whole", None), ("documents", ids)):
        results = [model(tokens, labels=tokens, document_ids=documents) for model in (found, expected)]
        check(f"model, {name}", results[0].logits, results[1].logits, 1e-4)
        for result in results:
            result.loss.backward()
        for (parameter, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
            if parameter.endswith(("sinks", "q_proj.weight", "k_proj.weight", "embed_tokens.weight")):
                check(f"model, {name}, gradient of {parameter}", one.grad, other.grad, 1e-3)
    whole = expected(tokens).logits
    with torch.no_grad():
        cache, start = found.new_cache(2, 40), 0
        for length in (20, 1, 7, 12):
            read = found(tokens[:, start : start + length], cache=cache).logits
            check(f"model, {length} behind {start}", read, whole[:, start : start + length], 1e-4)
            start += length


def check_refusals() -> None:
    """Shapes that disagree would be read past their ends; a kernel says so instead."""
    global failures
    x, heads = torch.zeros(2, 8), torch.zeros(1, 2, 4, 16)
    calls = {
        "weight of another width": lambda: rms_norm.triton_rms_norm(x, torch.zeros(4), 1e-6),
        "fewer values than keys": lambda: causal_attention.triton_causal_attention(heads, heads, heads[:, :, :3], 1.0),
        "fewer batches of keys": lambda: causal_attention.triton_causal_attention(
            heads.expand(2, 2, 4, 16), heads, heads, 1.0
        ),
        "an empty window": lambda: causal_attention.triton_causal_attention(heads, heads, heads, 1.0, MaskPattern(0)),
        "sinks of other heads": lambda: causal_attention.triton_causal_attention(
            heads, heads, heads, 1.0, MaskPattern(), torch.zeros(3)
        ),
        "places of other keys": lambda: causal_attention.triton_causal_attention(
            heads, heads, heads, 1.0, MaskPattern(), None, Places(torch.zeros(1, 3))
        ),
    }
    for what, call in calls.items():
        try:
            call()
        except KernelUnsupported as refused:
            print(f"ok   {what}: {refused}", flush=True)
        else:
            failures += 1
            print(f"FAIL {what} was taken", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    {
        "rms_norm": check_norm,
        "swiglu": check_swiglu,
        "causal_attention": check_attention,
        "patterns": check_patterns,
        "places": check_places,
        "models": check_models,
        "refusals": check_refusals,
    }[sys.argv[1]]()
    sys.exit(1 if failures else 0)
