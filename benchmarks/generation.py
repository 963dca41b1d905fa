"""How fast text is generated: with a cache against without, against transformers, and with a draft against without.

usage: python -m benchmarks.generation            prints the tables
       python -m benchmarks.generation --write    writes them into docs/models.md, between their markers

Machines differ and others use them, so what stands in the tables is ratios of the processor's time: contenders take
turns in every round, each round gives one ratio, and the median of the rounds is shown with the least and the largest.
Where a median says that transformers is faster, the status is 1. Models of a few million parameters on a CPU: much of
the time is that of launching operations, as it is on a GPU with one sequence. One thread: more of them wait for each
other as soon as something else runs.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from planner import ArchitectureSpec, parse_spec, size
from planner.units import count_text
from runners.environment import describe
from runners.models import Decoder, Sampling, Speculation, build, load_huggingface
from runners.training.data import STANDARD_LIBRARY, Text, batch, load_text
from runners.training.loop import Trainer, TrainingSettings
from runners.training.schedule import peak_rate

Made = TypeVar("Made")

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- benchmarks.generation -->", "<!-- end of benchmarks.generation -->"
PROMPT, NEW = 64, 48
"""Tokens of a prompt, and tokens generated behind it."""
BATCHES = (1, 8)
ROUNDS = 9

_WIDTH: dict[str, Any] = {"vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 6, "pad_token_id": 0}
_ATTENTION: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 704}
_SPACE: dict[str, Any] = {"state_size": 64, "expand": 2, "conv_kernel": 4, "chunk_size": 64, "n_groups": 1}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {**_WIDTH, **_ATTENTION}),
    "Mamba-2": ("mamba2", {**_WIDTH, **_SPACE, "num_heads": 8, "head_dim": 64}),
    "hybrid (Bamba)": (
        "bamba",
        {**_WIDTH, **_ATTENTION, "attn_layer_indices": [2, 5], "mamba_n_heads": 8, "mamba_d_head": 64}
        | {"mamba_d_state": 64, "mamba_n_groups": 1, "mamba_chunk_size": 64},
    ),
    "experts (Mixtral)": (
        "mixtral",
        {**_WIDTH, **_ATTENTION, "intermediate_size": 352, "num_local_experts": 8, "num_experts_per_tok": 2}
        | {"sliding_window": None},
    ),
}

STEPS = {"target": 240, "draft": 200}
"""Training of the pair for speculative decoding, on Python's standard library."""
TRAINED: dict[str, dict[str, int]] = {
    "target": {"hidden_size": 192, "layers": 8, "heads": 6, "intermediate_size": 512},
    "draft": {"hidden_size": 96, "layers": 1, "heads": 3, "intermediate_size": 256},
}
SPECULATIVE_NEW, SPECULATIVE_PROMPTS = 96, 4
SAMPLINGS = {"0": Sampling(), "0.8": Sampling(0.8)}
DRAFT_TOKENS = (2, 4, 8)


def timed(call: Callable[[], Made]) -> tuple[float, Made]:
    """Seconds of the processor that a call took, and what it made."""
    started = time.process_time()
    made = call()
    return time.process_time() - started, made


def ratio(values: list[float]) -> str:
    """The median of the rounds' ratios, with the least and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


# --- cache, no cache, transformers ---


def pair_of(model_type: str, fields: dict[str, Any]) -> tuple[Decoder, Any]:
    """Our model and transformers', with the same weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.generation_config.eos_token_id = None  # neither stops early
    return load_huggingface(theirs.state_dict(), theirs.config.to_dict()).eval(), theirs


@torch.no_grad()
def decoding_rows() -> tuple[list[str], list[str]]:
    """One row a model and batch size; of those in which transformers is the faster, what they are."""
    rows, behind = [], []
    for name, (model_type, fields) in CONFIGS.items():
        ours, theirs = pair_of(model_type, fields)
        for batch_size in BATCHES:
            prompts = torch.randint(0, 256, (batch_size, PROMPT), generator=torch.Generator().manual_seed(1))

            def with_cache(ours: Decoder = ours, prompts: Tensor = prompts) -> Tensor:
                return ours.generate(prompts, NEW)

            def without_cache(ours: Decoder = ours, prompts: Tensor = prompts) -> Tensor:
                return ours.generate(prompts, NEW, use_cache=False)

            def by_transformers(theirs: Any = theirs, prompts: Tensor = prompts) -> Tensor:
                mask = torch.ones_like(prompts)
                return theirs.generate(
                    prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
                )

            _, text = timed(with_cache)  # warms up, and says what each writes
            _, other = timed(by_transformers)
            rounds = [(timed(with_cache)[0], timed(by_transformers)[0]) for _ in range(ROUNDS)]
            # Takes so much longer that one round says enough.
            anew, again = timed(without_cache)
            own = statistics.median(times[0] for times in rounds)
            same = torch.equal(text, again) and torch.equal(text, other)
            ratios = [theirs / ours for ours, theirs in rounds]
            if statistics.median(ratios) < 1:
                behind.append(f"{name}, {batch_size} at a time: {ratio(ratios)}")
            parameters = count_text(sum(parameter.numel() for parameter in ours.parameters()))
            rows.append(
                f"| {name} | {parameters} | {batch_size} | {batch_size * NEW / own:,.0f} | {anew / own:.1f} | "
                f"{ratio(ratios)} | {'yes' if same else 'no'} |"
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows, behind


# --- with a draft ---


def spec_of(hidden_size: int, layers: int, heads: int, intermediate_size: int) -> ArchitectureSpec:
    """A Llama of bytes."""
    attention = {"kind": "attention", "num_attention_heads": heads, "num_key_value_heads": heads}
    layer = {
        "sequence_mixer": {**attention, "head_dim": hidden_size // heads},
        "channel_mixer": {"kind": "mlp", "intermediate_size": intermediate_size},
    }
    return parse_spec(
        {"vocab_size": 256, "hidden_size": hidden_size, "layer_groups": [{"repeats": layers, "layers": [layer]}]}
    )


def trained(role: str, text: Text) -> tuple[Decoder, float]:
    """A model after a brief training, and its bits per byte of held-out text."""
    model = build(spec_of(**TRAINED[role]))
    settings = TrainingSettings(
        steps=STEPS[role],
        batch_size=8,
        sequence_length=128,
        peak_rate=peak_rate(model.spec.hidden_size),
        warmup_steps=20,
        weight_decay=0.1,
        gradient_clip=1.0,
        seed=0,
        evaluate_every=STEPS[role],
        checkpoint_every=STEPS[role],
        bf16=False,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        *_, last = Trainer(model, text, settings, pathlib.Path(folder)).run()
    print(f"{role}: {last.bits_per_byte:.2f} bits per byte", file=sys.stderr, flush=True)
    return model.eval(), last.bits_per_byte or float("nan")


def speculative_rows(target: Decoder, draft: Decoder, text: Text) -> list[str]:
    """One row a temperature and number of proposals; prompts are of held-out text."""
    prompts = batch(text.validation, 7, 0, SPECULATIVE_PROMPTS, PROMPT)
    rows = []
    for temperature, sampling in SAMPLINGS.items():
        for draft_tokens in DRAFT_TOKENS:
            ratios: list[float] = []
            made: list[Speculation] = []
            for prompt in prompts:
                made.append(
                    Speculation(target, draft, prompt[None], SPECULATIVE_NEW, sampling, draft_tokens=draft_tokens)
                )
                assisted, _ = timed(lambda made=made: list(made[-1]))
                plain, _ = timed(
                    lambda prompt=prompt, sampling=sampling: target.generate(prompt[None], SPECULATIVE_NEW, sampling)
                )
                ratios.append(plain / assisted)
            accepted = sum(one.accepted for one in made) / sum(one.proposed for one in made)
            a_pass = sum(one.tokens for one in made) / sum(one.target_passes for one in made)
            rows.append(f"| {temperature} | {draft_tokens} | {accepted:.0%} | {a_pass:.2f} | {ratio(ratios)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


# --- the page ---


def tables() -> tuple[str, list[str]]:
    """What stands between the markers, and where transformers is the faster one."""
    started = time.perf_counter()
    environment = describe("cpu")
    decoding, behind = decoding_rows()
    text = load_text(STANDARD_LIBRARY)
    target, target_bits = trained("target", text)
    draft, draft_bits = trained("draft", text)
    assisted = speculative_rows(target, draft, text)
    parameters = {
        role: count_text(size(model.spec).parameters.total) for role, model in (("target", target), ("draft", draft))
    }
    where = f"{environment['device']}, one thread, a load of {environment['load_before']} before it, fp32"
    versions = (
        f"torch {environment['torch']}, transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    page = "\n".join(
        [
            BEGIN,
            "",
            f"Written by `python -m benchmarks.generation --write` in {time.perf_counter() - started:.0f} s on "
            f"{datetime.datetime.now(datetime.UTC):%d %B %Y}:",
            f"{where};",
            f"{versions}. Greedy, {NEW} tokens behind prompts of {PROMPT}.",
            "Ratios are of the processor's time in the same round, the median of the rounds (the least to the",
            "largest); above 1, ours with its cache is faster.",
            "",
            "| model | parameters | batch | tokens a second | without a cache | transformers | all write the same |",
            "|---|---|---|---|---|---|---|",
            *decoding,
            "",
            f"With a draft: a target of {parameters['target']} parameters in {TRAINED['target']['layers']} layers "
            f"({target_bits:.2f} bits per byte) and a draft of {parameters['draft']} in",
            f"{TRAINED['draft']['layers']} ({draft_bits:.2f}), both trained briefly on the standard library; "
            f"{SPECULATIVE_NEW} tokens behind each of {SPECULATIVE_PROMPTS} prompts of held-out text.",
            "",
            "| temperature | proposals at a time | taken | tokens a pass | times as fast as without |",
            "|---|---|---|---|---|",
            *assisted,
            "",
            END,
        ]
    )
    return page, behind


def main() -> int:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/models.md")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    made, behind = tables()
    for each in behind:
        print(f"transformers is faster: {each}", file=sys.stderr)
    if not arguments.write:
        print(made)
        return 1 if behind else 0
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{PAGE.name} has no markers to write between", file=sys.stderr)
        return 1
    PAGE.write_text(before + made + after, encoding="utf-8")
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
