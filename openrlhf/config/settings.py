"""Every setting: name, type, rule of a resume, default and help, a dataclass for each group and each command's root.

The rules, `must_match`, `kept`, `taken` and `free`, are those of `openrlhf.config.schema.setting`; what is `auto` is
free, and may be left to the run. The settings of the training data are free, since the fingerprint of the data is
compared and covers them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.config.checks import CHECKS_OF_TRAINING, COMMON_CHECKS, COMMON_NOTICES
from openrlhf.config.ckpt_settings import CkptConfig
from openrlhf.config.hub_settings import HubConfig
from openrlhf.config.kinds import (
    BelowOne,
    Count,
    EverySteps,
    FactorAboveOne,
    Fraction,
    Minutes,
    Number,
    Place,
    PositiveCount,
    PositiveNumber,
    WholeNumber,
)
from openrlhf.config.outputs import report_file
from openrlhf.config.schema import Command, Root, auto, free, kept, must_match, taken
from openrlhf.config.synonyms import COMMON_SYNONYMS

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    model_name_or_path: Place = free("", "folder of a Hugging Face model, or its name on the hub (needed)")
    gradient_checkpointing_enable: bool = auto(False, "recompute activations in the backward pass: less memory")
    gradient_checkpointing_reentrant: bool = free(False, "use torch's reentrant form of checkpointing")
    compile_layers: bool = free(False, "fuse each layer's element-wise work: faster steps, a minute more at start")
    aux_loss_coef: Number = taken(
        0.0,
        "weight of the load-balancing loss of experts, over the top-k of a softmax of each router's logits; 0 is off",
    )
    aux_loss_scope: Literal["micro_batch", "global"] = taken(
        "micro_batch", "where expert loads are counted: in each micro-batch, or over all ranks of a micro-step"
    )
    pretrain_mode_enable: bool = free(False, "continued pre-training: plain text, every token is a target")
    trust_remote_code: bool = free(False, "run Python code that comes with the model or tokenizer")
    trainable: tuple[str, ...] | None = must_match(
        None, "train only weights whose names hold one of these patterns (regular expressions); the others stay"
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data, and how rows become tokens."""

    dataset: str = free("", "files, folders or hub names, by commas; path@subfolder for a subfolder (needed)")
    dataset_probs: str | None = free(None, "share of each data set, by commas; without it all rows are used once")
    dataset_split: str = free("train", "split of a data set that has several")
    max_samples: PositiveCount | None = free(None, "use at most that many rows")
    max_len: PositiveCount = free(2048, "longest sample, in tokens")
    format: str = free("auto", "shape of the rows; auto finds it by their columns")
    input_key: str | None = free(None, "column of the input, the text or the messages; found by format if not given")
    output_key: str | None = free(None, "column of the answer; found by format if not given")
    input_template: str | None = free(None, "text around the input, which stands at {}, as in 'User: {}\\nAssistant: '")
    apply_chat_template: bool = free(False, "render rows by the tokenizer's chat template")
    tokenizer_chat_template: str | None = free(None, "chat template, or a name of the tokenizer's; chatml is built in")
    multiturn: bool = free(False, "train on every turn of the assistant, not on the last one alone")
    targets: Literal["all_turns", "last_turn", "completion", "everything", "completion_or_everything"] | None = free(
        None, "which tokens are trained on; none means all_turns with multiturn, last_turn without"
    )
    eos_token: str | None = free(None, "token of the vocabulary that ends a text, in place of the tokenizer's own")
    control_tokens: Literal["text", "refuse", "keep"] = free(
        "text", "control tokens such as <|im_start|> in the text of a row: read as text, refused, or kept as they are"
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = free(
        "first_exhausted",
        "with dataset_probs: the largest mix without a repeated row, or rows repeat until each data set is used up",
    )
    pretrain_end_token: bool = free(True, "continued pre-training: a text ends with the end token")
    overlong: Literal["drop", "truncate", "error"] = free("drop", "what happens to a sample longer than max_len")
    overlong_memory: Literal["stop", "skip"] = taken(
        "stop", "what happens to a sample for which, alone, there is not memory enough"
    )
    max_bad_rows: Count = free(0, "go on with up to that many rows left out because they cannot be read")
    cache_dir: str | None = free(
        None, "folder of prepared data; none means $OPENRLHF_CACHE, else ~/.cache/openrlhf/datasets"
    )
    num_processors: PositiveCount = free(8, "processes that tokenize")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on rows that are not trained on."""

    dataset: str | None = taken(None, "like data.dataset; evaluated at the end, and every eval.steps")
    split: str = taken("train", "split of eval.dataset (a plain file has the split train)")
    every_epoch: bool = free(False, "evaluate after every epoch, beside eval.steps")
    steps: EverySteps = free(-1, "evaluate every that many optimizer steps; -1: at the end alone")
    at_end: bool = free(True, "evaluate at the end of the run")
    prompts: str | None = free(
        None, "prompts, like data.dataset: the model answers them while it trains, and at the end"
    )
    prompts_steps: EverySteps = free(-1, "answer them every that many optimizer steps; -1: at the end alone")
    prompts_max_new_tokens: PositiveCount = free(128, "longest of these answers, in tokens")
    prompts_reward: str | None = free(
        None, "judges these answers, as of score's score.reward (file.py:function, exact, …); logged as answer_reward"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How many samples make a step, for how long, and when to stop."""

    batch_size: PositiveCount = must_match(128, "samples an optimizer step, over all ranks")
    micro_batch_size: PositiveCount = auto(8, "samples a rank computes at once")
    max_tokens_per_micro_batch: PositiveCount | None = auto(
        None, "cut micro-batches by tokens, balanced over ranks, in place of micro_batch_size"
    )
    tune_layout: bool = free(True, "where these tokens are auto: try fewer in the first steps, and keep the fastest")
    max_epochs: PositiveCount = free(2, "times that every sample is trained on")
    max_steps: PositiveCount | None = free(None, "optimizer steps at most; the schedule ends there")
    loss: str = must_match(
        "nll",
        "objective. nll: -log p of each target; dft: that times the target's own p, held constant (arXiv 2508.05629); "
        "module:Name: one of your own",
    )
    loss_reduction: Literal["token", "sample"] = must_match(
        "token", "mean over the step's target tokens, or over its samples"
    )
    seed: WholeNumber = must_match(42, "decides the order of samples and every random number")
    full_determinism_enable: bool = free(False, "deterministic kernels: slower, the same to the bit")
    early_stop_patience: PositiveCount | None = taken(
        None, "end the run after that many evaluations without a new lowest eval_loss"
    )
    callbacks: str | None = taken(None, "callbacks of your own: module:Name, several by commas")
    max_nonfinite_steps_in_a_row: PositiveCount = free(3, "stop after that many steps with a loss that is no number")
    max_grad_norm_spike: FactorAboveOne | None = taken(
        None, "skip a step whose gradient norm is that many times its recent median"
    )
    comm_timeout_minutes: Minutes = free(30.0, "end the run when ranks have waited that long for each other")
    hang_timeout_minutes: Minutes = free(
        10.0, "end the run, naming the rank, when one has been silent or stuck at one thing that long"
    )


@dataclasses.dataclass(frozen=True)
class DeepspeedConfig:
    """Precision, memory and how the work is split over ranks."""

    zero_stage: Literal[0, 1, 2, 3] = auto(2, "what ranks split: 1 optimizer, 2 and gradients, 3 and weights")
    param_dtype: Literal["bf16", "fp16", "fp32"] = must_match("bf16", "type of weights and activations")
    attn_implementation: str = free("auto", "attention back end; auto picks the best that is installed")
    packing_samples: bool = auto(False, "no padding: samples of a micro-batch stand in one row, each on its own")
    ring_attn_size: PositiveCount = free(1, "ranks that share one packed row")
    ring_head_stride: PositiveCount = auto(1, "key-value heads a ring sends at once: more is faster, and more memory")
    tensor_parallel_size: PositiveCount = free(1, "ranks that share each weight matrix")
    adam_offload: bool = free(False, "keep the optimizer in the host's memory")
    zpg: PositiveCount = free(1, "ZeRO-3: ranks of a node that hold a second copy of the weights")
    overlap_comm: bool = free(False, "send gradients during the backward pass")
    grad_accum_dtype: Literal["bf16", "fp16", "fp32"] | None = taken(None, "type in which gradients add up")
    experts_implementation: str | None = free(
        None, "how transformers computes experts: eager, batched_mm or grouped_mm; none: its own choice"
    )
    use_liger_kernel: bool = free(False, "Liger's fused kernels (GPU; extra liger)")
    load_in_4bit: bool = must_match(False, "hold the frozen base in 4 bits, for adapters (bitsandbytes)")
    use_universal_ckpt: bool = free(False, "taken for OpenRLHF's sake: every checkpoint here loads on any layout")
    deepcompile: bool = free(False, "compile forward and backward with DeepSpeed's compiler (CUDA; ZeRO 1 to 3)")
    lora: LoraConfig = LoraConfig()


AdamKernel = Literal["auto", "deepspeed", "torch"]


@dataclasses.dataclass(frozen=True)
class AdamConfig:
    """AdamW."""

    lr: PositiveNumber = kept(5e-6, "highest learning rate")
    betas: tuple[BelowOne, BelowOne] = taken((0.9, 0.95), "decay of the two moments")
    eps: PositiveNumber = taken(1e-8, "added to the root of the second moment")
    weight_decay: Number = taken(0.0, "decay of weight matrices (norms and biases have none)")
    decay_embeddings: bool = taken(False, "embeddings decay as other matrices do")
    kernel: AdamKernel = free(
        "auto",
        "code of the update: deepspeed's is compiled (a GPU needs nvcc), torch's is not; auto: the first that works",
    )


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """Muon, for weight matrices; what is left is trained by AdamW with its own settings."""

    lr: PositiveNumber = kept(0.02, "highest learning rate of weight matrices")
    momentum: BelowOne = taken(0.95, "momentum")
    ns_steps: PositiveCount = free(5, "Newton-Schulz steps; DeepSpeed's Muon takes 5")
    nesterov: bool = free(True, "Nesterov's momentum; DeepSpeed's Muon has no other")


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases. The key belongs in the environment: WANDB_API_KEY."""

    enable: bool = free(False, "log to Weights & Biases")
    project: str = free("openrlhf_train_sft", "project")
    name: str | None = free(None, "name of the run")
    group: str | None = free(None, "group of runs")
    org: str | None = free(None, "organisation or user")
    key: str | None = free(None, "taken with a warning: launchers print it; use WANDB_API_KEY instead", secret=True)


@dataclasses.dataclass(frozen=True)
class LoggerConfig:
    """Numbers that are shown while training."""

    logging_steps: PositiveCount = free(1, "console, TensorBoard and W&B every that many optimizer steps")
    tensorboard_dir: Place | None = free(None, "folder for TensorBoard; a new run sets earlier ones aside there")
    openrlhf_names: bool = free(False, "TensorBoard and W&B: names of charts and folders as OpenRLHF has them")
    trackers: tuple[Literal["mlflow", "trackio", "comet"], ...] | None = free(
        None, "further trackers, each an extra of this package; their project and name are those of logger.wandb"
    )
    entropy: bool = free(False, "log the mean entropy of the predictions at target tokens")
    wandb: WandbConfig = WandbConfig()


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Root):
    """Optimizer, schedule and clipping."""

    optim: Literal["adam", "muon"] = must_match("adam", "optimizer")
    lr_scheduler: Scheduler = taken("cosine_with_min_lr", "how the learning rate goes over the whole run")
    lr_warmup_ratio: Number = taken(
        0.03,
        "share of the steps in which the learning rate rises: the first has 0, but with cosine_warmup_with_min_lr; "
        "above 1 the run ends before it has risen",
    )
    min_lr_ratio: Fraction = taken(0.1, "lowest learning rate, as a share of the highest")
    compat: Literal["openrlhf-0.9", "openrlhf-0.11"] | None = free(
        None, "flags mean what they mean in that version of OpenRLHF; a table at the start says which differ"
    )
    max_norm: Number = taken(1.0, "clip the global gradient norm to that; 0 is off")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    train: TrainConfig = TrainConfig()
    ds: DeepspeedConfig = DeepspeedConfig()
    adam: AdamConfig = AdamConfig()
    muon: MuonConfig = MuonConfig()
    ckpt: CkptConfig = CkptConfig()
    logger: LoggerConfig = LoggerConfig()
    hub: HubConfig = HubConfig()


@dataclasses.dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Optimizer, schedule and clipping."""

    command: ClassVar[Command] = Command(
        "Supervised fine-tuning.",
        "deepspeed --module openrlhf.cli.train_sft",
        COMMON_SYNONYMS,
        CHECKS_OF_TRAINING,
        COMMON_NOTICES,
    )


@dataclasses.dataclass(frozen=True)
class Inspection(Root):
    """What a look at the data of a training has besides the flags of that training."""

    command: ClassVar[Command] = Command(
        "A look at the samples that train_sft, or the pairs that train_rm and train_dpo would train on. "
        "It takes their flags; no GPU is needed.",
        "python -m openrlhf.cli.inspect_data",
        COMMON_SYNONYMS,
        (*COMMON_CHECKS, report_file),
        COMMON_NOTICES,
    )
    html: Place | None = free(None, "file for the report as a page")
    show: Count = free(4, "samples shown in the terminal")


@dataclasses.dataclass(frozen=True)
class PrepareConfig(SFTConfig):
    """Who prepares; optimizer, schedule and clipping, as in training."""

    command: ClassVar[Command] = Command(
        "Prepares the data of a training, so that train_sft with the same flags finds them in --data.cache_dir.",
        "python -m openrlhf.cli.prepare_data",
        COMMON_SYNONYMS,
        COMMON_CHECKS,
        COMMON_NOTICES,
    )
    runner: Literal["local", "ray"] = free("local", "processes of this machine, or of a Ray cluster with a shared disk")


@dataclasses.dataclass(frozen=True)
class InspectConfig(Inspection, SFTConfig):
    """Report; optimizer, schedule and clipping, as in training."""
