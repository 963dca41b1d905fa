"""How an architecture is run: the plans that estimates and jobs take, checked before anything is computed or queued."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticKnownError

from planner.components.base import refuse
from planner.components.strict import bound_whole_numbers
from planner.errors import UnsupportedPlan
from planner.spec import problems_of
from planner.tasks import TASKS, TaskName


class Plan(BaseModel):
    """Fields are validated; one that does not exist is refused.

    Numbers may be text, as forms and command lines have them, but no flags; whole ones have the bound of every size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        bound_whole_numbers(schema)
        return schema

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            accepted = {annotation, *get_args(annotation)}
            if bool not in accepted and accepted & {int, float}:
                raise PydanticKnownError("int_type" if int in accepted else "float_type")
        return value


PlanType = TypeVar("PlanType", bound=Plan)


def parse_plan(plan_class: type[PlanType], data: dict[str, Any]) -> PlanType:
    """A plan from plain data; ``UnsupportedPlan`` names each field that is wrong, and the remedy."""
    try:
        return plan_class.model_validate(data)
    except ValidationError as error:
        raise UnsupportedPlan(problems_of(error)) from error


RecomputedModule = Literal["core_attn", "layernorm", "mla_up_proj", "mlp", "moe", "moe_act"]
"""Scores and weighted values, norms, keys and values from their latents, a dense MLP, the mixture of experts, or the
experts' activation."""


class TrainingPlan(Plan):
    """One way of training. What is not modelled yet is refused by name when an estimate is asked for."""

    micro_batch_size: int = Field(default=1, gt=0)
    global_batch_size: int | None = Field(default=None, gt=0)
    """Sequences an optimizer step; absent: one micro batch a data-parallel rank."""
    sequence_length: int = Field(default=2048, gt=0)
    precision: Literal["fp32", "bf16_autocast", "bf16_mixed", "bf16", "fp8", "nvfp4"] = "bf16_mixed"
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise", "mxfp8"] = "delayed"
    """With fp8, in Megatron-Core's words: one scale a tensor (of this step or of the last ones), or one a block."""
    fp8_param_gather: bool = False
    """With fp8: whether the weights themselves are in fp8, and gathered so, beside their master copies."""
    gradient_dtype: Literal["bf16", "fp32"] = "bf16"
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd"] = "adamw"
    zero_stage: int = Field(default=0, ge=0, le=3)
    fsdp_reshard: bool = True
    data_parallel: int = Field(default=1, gt=0)
    tensor_parallel: int = Field(default=1, gt=0)
    sequence_parallel: bool = False
    tp_comm_overlap: bool = False
    """With sequence parallelism: whether products run beside the exchange of what they read or make, with Megatron in
    workspaces of their own."""
    pipeline_parallel: int = Field(default=1, gt=0)
    pipeline_schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    virtual_stages: int = Field(default=1, gt=0)
    pipeline_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers of each stage of a pipeline, or of each chunk of an interleaved one, in the network's order. Empty: as the
    next four fields say, and where these say nothing, as :func:`planner.stages.layers_of_chunks` does."""
    account_for_embedding_in_pipeline_split: bool = False
    """Whether the embedding counts as a layer when layers are dealt out evenly, in Megatron-Core's words."""
    account_for_loss_in_pipeline_split: bool = False
    """The same of head and loss."""
    decoder_first_pipeline_num_layers: int | None = Field(default=None, ge=0)
    """Layers of the first stage; the others have what is left, evenly."""
    decoder_last_pipeline_num_layers: int | None = Field(default=None, ge=0)
    expert_parallel: int = Field(default=1, gt=0)
    expert_tensor_parallel: int = Field(default=1, gt=0)
    """Devices that each routed expert's matrices are split over, whatever ``tensor_parallel`` is for the rest."""
    context_parallel: int = Field(default=1, gt=0)
    recompute: Literal["none", "selective", "full"] = "none"
    recompute_modules: tuple[RecomputedModule, ...] = ("core_attn",)
    """What ``selective`` computes again, in Megatron-Core's words."""
    attention: Literal["eager", "fused"] = "fused"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    chunked_loss: bool = False
    adapter_rank: int | None = Field(default=None, gt=0)
    """Rank of adapters (LoRA; Hu et al. 2021, arXiv:2106.09685) beside the matrices of sequence mixers, all other
    weights being frozen; absent: all weights are trained."""
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = "none"
    hardware: str | None = None
    network_gb_per_second: float | None = Field(default=None, gt=0)
    """Between nodes, of one device in one direction; absent: what is usual for the device."""
    engine: Literal["auto", "torch", "megatron", "deepspeed"] = "auto"
    """Whose way of keeping tensors is counted: that of PyTorch's own operators, Megatron-LM's with Transformer Engine's
    fused kernels, or Megatron-DeepSpeed's, whose operators are Megatron's and whose states and pipeline DeepSpeed's.
    ``auto``: Megatron's in fp8, and where master weights meet gradients in fp32; else PyTorch's."""
    cross_entropy: Literal["auto", "plain", "parallel", "fused"] = "auto"
    """``plain``: PyTorch's, of fp32 logits; ``parallel``: Megatron's own, over a divided vocabulary, of fp32 logits
    that it overwrites; ``fused``: of logits that their gradient overwrites. ``auto``: ``fused`` with Megatron."""
    gradient_fusion: bool = True
    """With Megatron: whether weight gradients are summed into the main gradients as they are computed; Transformer
    Engine then keeps a placeholder for each shape of weight."""
    context_exchange: Literal["ring", "all_to_all"] = "ring"
    """How the devices of one sequence attend to each other's keys: these go round, or heads are exchanged for
    positions."""


class ServingPlan(Plan):
    """One way of serving."""

    weight_format: str = "bf16"
    cache_dtype: str = "bf16"
    cache_block_size: int = Field(default=16, gt=0, le=65_536)
    """Tokens of one sequence that a block of the paged cache holds; 1: nothing is rounded up."""
    windowed_pages: Literal["window", "context"] = "window"
    """Blocks of a layer with a window or chunks: those that still hold a visible key, as vLLM's hybrid KV cache
    manager keeps them, or those of all the ``context``, as engines without one."""
    context_length: int = Field(default=4096, gt=0)
    """Tokens of a sequence, prompt and answer together."""
    output_length: int | None = Field(default=None, gt=0)
    """Of these, tokens of the answer: times are then those in its middle. Absent: the prompt is as long as the context,
    and a token is added at its end."""
    chunked_prefill: bool = False
    """Whether requests come and go, so that passes that decode also read pieces of the new ones' prompts."""
    cached_prefix: int = Field(default=0, ge=0)
    """Tokens that a prompt begins with whose keys and values are there already."""
    batch_size: int = Field(default=1, gt=0)
    """Sequences at a time, over all devices."""
    tensor_parallel: int = Field(default=1, gt=0, le=1024)
    expert_parallel: int = Field(default=1, gt=0, le=65_536)
    attention_data_parallel: int = Field(default=1, gt=0, le=1024)
    pipeline_parallel: int = Field(default=1, gt=0, le=1024)
    """Stages of consecutive layers, each on devices of its own, that a pass goes through one after another: engines'
    pipeline parallelism, llama.cpp's split by layers, transformers' device map."""
    offload_layers: int = Field(default=0, ge=0)
    """The first layers, whose weights and cache lie in the host's memory."""
    speculative: str | None = None
    """A draft: ``PRESET:k=4:acceptance=0.7``, or ``ngram:…`` for one that costs nothing."""
    engine: Literal["serving", "eager", "llama.cpp"] | None = None
    """``serving``: paged cache, captured graphs and fused kernels (vLLM, SGLang, TensorRT-LLM); ``eager``: one kernel
    at a time from Python (transformers); ``llama.cpp``, and so it is where weights are in a GGUF type and no engine is
    named."""
    engine_overhead: Literal["overlapped", "between_passes"] = "overlapped"
    """Where ``serving`` schedules and samples: while the device works (vLLM since 0.8, SGLang since 0.4, and engines
    whose host is no Python: TensorRT-LLM, LMDeploy), or while it waits (vLLM until 0.7)."""
    hardware: str | None = None


class VerifyPlan(Plan):
    """Which predictions a verification measures, and at what shape."""

    batch_size: int = Field(default=1, gt=0, le=256)
    sequence_length: int = Field(default=128, gt=0, le=131_072)
    context_length: int = Field(default=128, gt=0, le=131_072)
    """Tokens in the cache when its tensors are weighed."""
    precision: Literal["fp32", "bf16_autocast"] = "bf16_autocast"


BYTE_VOCABULARY = 256
TEXT = "python-stdlib"
"""What a prototype is trained on by default."""


class PrototypePlan(Plan):
    """A small model of the same structure, trained on real text or on a task with right answers."""

    parameter_budget: int = Field(default=2_000_000, ge=50_000, le=2_000_000_000)
    """Parameters that the scaled-down model may have, embeddings included."""
    steps: int = Field(default=300, gt=0, le=1_000_000)
    batch_size: int = Field(default=8, gt=0, le=4096)
    sequence_length: int = Field(default=256, gt=7, le=131_072)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak rate; absent: by the rule for the model's width."""
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16_autocast"] = "auto"
    """``auto``: what multiplies matrices fastest where it is trained, by measurement."""
    seed: int = Field(default=0, ge=0)
    data: str = TEXT
    """``python-stdlib``: the standard library's own sources as bytes; else the path of a text file or a folder."""
    task: TaskName | None = None
    """A task of :mod:`planner.tasks` in place of text."""
    difficulty: int | None = Field(default=None, gt=0)
    """How hard the task is, in what it counts; absent: its default."""
    router_auxiliary_loss: float = Field(default=0.0, ge=0, le=100)
    """Factor on the loss that evens out the load of experts (Switch, arXiv:2101.03961, equation 4), the mean over the
    layers that route; 0: none."""
    router_z_loss: float = Field(default=0.0, ge=0, le=100)
    """Factor on the mean square of routers' log-sum-exp (ST-MoE, arXiv:2202.08906, equation 5); 0: none."""
    router_bias_update_rate: float = Field(default=0.0, ge=0, le=1)
    """By how much a step moves the biases that steer the choice of experts towards an even load (DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2: 0.001); 0: they stay."""
    evaluate_every: int = Field(default=50, gt=0)
    checkpoint_every: int = Field(default=50, gt=0)
    sample_tokens: int = Field(default=160, ge=0, le=4096)

    @model_validator(mode="after")
    def _check_task(self) -> PrototypePlan:
        if self.task is None:
            if self.difficulty is not None:
                refuse("difficulty", "Text has no difficulty.", "Name a task, or leave it out.", "no_task")
            return self
        if self.data != TEXT:
            refuse(
                "data", f"The task {self.task} makes its own sequences.", "Leave it out, or the task.", "two_sources"
            )
        task, difficulty = TASKS[self.task], self.task_difficulty
        if not task.least <= difficulty <= task.most:
            refuse(
                "difficulty",
                f"{difficulty:,} {task.difficulty} are not possible in {self.task}.",
                f"Choose from {task.least:,} to {task.most:,}.",
                "difficulty_out_of_range",
            )
        shortest = task.shortest(difficulty)
        if self.sequence_length < shortest:
            refuse(
                "sequence_length",
                f"{self.task} of difficulty {difficulty:,} needs {shortest:,} positions, not {self.sequence_length:,}.",
                f"Choose at least {shortest:,}, or a lower difficulty.",
                "task_does_not_fit",
            )
        return self

    @property
    def task_difficulty(self) -> int:
        """The difficulty as given, else the task's own default; 0 of text."""
        return 0 if self.task is None else self.difficulty or TASKS[self.task].default

    @property
    def vocab_size(self) -> int:
        """Tokens that a model of this plan reads: bytes, or the task's symbols."""
        return BYTE_VOCABULARY if self.task is None else TASKS[self.task].vocab_size(self.task_difficulty)


class BenchmarkPlan(Plan):
    """Timing of prefill, decoding and a training step on the worker's device."""

    batch_size: int = Field(default=1, gt=0, le=4096)
    sequence_length: int = Field(default=128, gt=0, le=1_048_576)
    decode_tokens: int = Field(default=16, gt=0, le=4096)
    phases: tuple[Literal["prefill", "decode", "training"], ...] = ("prefill", "decode", "training")
    parameter_budget: int | None = Field(default=2_000_000, ge=50_000)
    """The spec is scaled down to this first; absent: benchmarked as it is."""
    warmups: int = Field(default=20, ge=20, le=10_000)
    max_repetitions: int = Field(default=200, ge=10, le=100_000)
    relative_interval: float = Field(default=0.02, gt=0, lt=1)
    """Repetitions go on until the 95% interval of the median is this narrow, or ``max_repetitions`` is reached."""
    precision: Literal["auto", "fp32", "bf16_autocast"] = "auto"
    """``auto``: what multiplies matrices fastest on the worker's device, by measurement."""
    kernels: Literal["auto", "reference", "eager", "triton", "block_sparse"] = "auto"


class CalibratePlan(Plan):
    """Measuring the worker's machine, so that times on it can be predicted."""

    precisions: tuple[Literal["fp32", "bf16_autocast"], ...] = ("fp32", "bf16_autocast")
    models: tuple[str, ...] = (
        "llama-3-8b", "gpt2", "gemma-2-9b", "falcon-7b", "deepseek-v2-lite", "mixtral-8x7b", "mamba-2.8b",
        "mamba2-2.7b", "qwen3-next-80b-a3b", "recurrentgemma-2b", "lfm2-1.2b", "rwkv-4-7b",
    )  # fmt: skip
    """Known designs whose small models are predicted and then run."""
    parameter_budget: int = Field(default=2_000_000, ge=50_000, le=2_000_000_000)
    """Parameters of each of these."""
    batch_size: int = Field(default=2, gt=0, le=4096)
    sequence_length: int = Field(default=128, gt=1, le=131_072)

    @model_validator(mode="after")
    def _check(self) -> CalibratePlan:
        if not self.precisions:
            refuse("precisions", "Nothing would be measured.", "Choose fp32, bf16_autocast or both.", "no_precision")
        return self


class KernelsPlan(Plan):
    """Compilation of the kernels for the given compute capabilities."""

    architectures: tuple[Literal[80, 90, 100], ...] = (80, 90, 100)
