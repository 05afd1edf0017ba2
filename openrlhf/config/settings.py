"""Every setting of a training: name, type, default, help and rule of a resume, a dataclass for each group.

No setting of the data needs to match on a resume: the data's fingerprint is compared instead, and knows them all.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from openrlhf.config.kinds import (
    BelowOne,
    Count,
    EverySteps,
    FactorAboveOne,
    Fraction,
    Number,
    PositiveCount,
    PositiveNumber,
    Size,
    WholeNumber,
)
from openrlhf.config.schema import Root, setting

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

    model_name_or_path: str = setting(
        "", "folder of a Hugging Face model, or its name on the hub (needed)", resume="free"
    )
    gradient_checkpointing_enable: bool = setting(
        False, "recompute activations in the backward pass: less memory", resume="free"
    )
    gradient_checkpointing_reentrant: bool = setting(
        False, "use torch's reentrant form of checkpointing", resume="free"
    )
    compile_layers: bool = setting(
        False, "fuse each layer's element-wise work: faster steps, a minute more at start", resume="free"
    )
    aux_loss_coef: Number = setting(
        0.0, "weight of the load-balancing loss of a mixture of experts; 0 is off", resume="taken"
    )
    aux_loss_scope: Literal["micro_batch", "global"] = setting(
        "micro_batch",
        "where expert loads are counted: in each micro-batch, or over all ranks of a micro-step",
        resume="taken",
    )
    pretrain_mode_enable: bool = setting(
        False, "continued pre-training: plain text, every token is a target", resume="free"
    )
    trust_remote_code: bool = setting(False, "run Python code that comes with the model or tokenizer", resume="free")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how rows become tokens."""

    dataset: str = setting(
        "", "files, folders or hub names, by commas; path@subfolder for a subfolder (needed)", resume="free"
    )
    dataset_probs: str | None = setting(
        None, "share of each data set, by commas; without it all rows are used once", resume="free"
    )
    dataset_split: str = setting("train", "split of a data set that has several", resume="free")
    max_samples: PositiveCount | None = setting(None, "use at most that many rows", resume="free")
    max_len: PositiveCount = setting(2048, "longest sample, in tokens", resume="free")
    format: str = setting("auto", "shape of the rows; auto finds it by their columns", resume="free")
    input_key: str | None = setting(
        None, "column of the input, the text or the messages; found by format if not given", resume="free"
    )
    output_key: str | None = setting(None, "column of the answer; found by format if not given", resume="free")
    input_template: str | None = setting(
        None, "text around the input, which stands at {}, as in 'User: {}\\nAssistant: '", resume="free"
    )
    apply_chat_template: bool = setting(False, "render rows by the tokenizer's chat template", resume="free")
    tokenizer_chat_template: str | None = setting(
        None, "chat template in place of the tokenizer's; chatml is built in", resume="free"
    )
    multiturn: bool = setting(False, "train on every turn of the assistant, not on the last one alone", resume="free")
    targets: Literal["all_turns", "last_turn", "completion", "everything"] | None = setting(
        None, "which tokens are trained on; none means all_turns with multiturn, last_turn without", resume="free"
    )
    overlong: Literal["drop", "truncate", "error"] = setting(
        "drop", "what happens to a sample longer than max_len", resume="free"
    )
    max_bad_rows: Count = setting(
        0, "go on with up to that many rows left out because they cannot be read", resume="free"
    )
    cache_dir: str | None = setting(
        None, "folder of prepared data; none means $OPENRLHF_CACHE, else ~/.cache/openrlhf/datasets", resume="free"
    )
    num_processors: PositiveCount = setting(8, "processes that tokenize", resume="free")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on rows that are not trained on."""

    dataset: str | None = setting(None, "like data.dataset; evaluated at the end, and every eval.steps", resume="taken")
    split: str = setting("train", "split of eval.dataset (a plain file has the split train)", resume="taken")
    steps: EverySteps = setting(-1, "evaluate every that many optimizer steps; -1: at the end alone", resume="free")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How many samples make a step, for how long, and when to stop."""

    batch_size: PositiveCount = setting(128, "samples an optimizer step, over all ranks", resume="must_match")
    micro_batch_size: PositiveCount = setting(8, "samples a rank computes at once", resume="free")
    max_tokens_per_micro_batch: PositiveCount | None = setting(
        None, "cut micro-batches by tokens, balanced over ranks, in place of micro_batch_size", resume="free"
    )
    max_epochs: PositiveCount = setting(2, "times that every sample is trained on", resume="free")
    max_steps: PositiveCount | None = setting(None, "optimizer steps at most; the schedule ends there", resume="free")
    loss: Literal["nll", "dft"] = setting(
        "nll",
        "nll: -log p of each target; dft: that times the target's own p, held constant (arXiv 2508.05629)",
        resume="must_match",
    )
    loss_reduction: Literal["token", "sample"] = setting(
        "token", "mean over the step's target tokens, or over its samples", resume="must_match"
    )
    seed: WholeNumber = setting(42, "decides the order of samples and every random number", resume="must_match")
    full_determinism_enable: bool = setting(False, "deterministic kernels: slower, the same to the bit", resume="free")
    early_stop_patience: PositiveCount | None = setting(
        None, "end the run after that many evaluations without a new lowest eval_loss", resume="taken"
    )
    callbacks: str | None = setting(None, "callbacks of your own: module:Name, several by commas", resume="taken")
    max_nonfinite_steps_in_a_row: PositiveCount = setting(
        3, "stop after that many steps with a loss that is no number", resume="free"
    )
    max_grad_norm_spike: FactorAboveOne | None = setting(
        None, "skip a step whose gradient norm is that many times its recent median", resume="taken"
    )
    comm_timeout_minutes: PositiveNumber = setting(
        30.0, "end the run when ranks have waited that long for each other", resume="free"
    )
    hang_timeout_minutes: PositiveNumber = setting(
        10.0, "end the run, naming the rank, when one has been silent or stuck at one thing that long", resume="free"
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters."""

    rank: Count = setting(0, "rank of the adapters; 0 trains the whole model", resume="must_match")
    alpha: PositiveCount = setting(16, "scale of the adapters", resume="must_match")
    dropout: BelowOne = setting(0.0, "dropout before the adapters", resume="must_match")
    target_modules: tuple[str, ...] = setting(
        ("all-linear",), "names of the modules that get an adapter", resume="free"
    )


@dataclasses.dataclass(frozen=True)
class DeepspeedConfig:
    """Precision, memory and how the work is split over ranks."""

    zero_stage: Literal[0, 1, 2, 3] = setting(
        2, "what ranks split: 1 optimizer, 2 and gradients, 3 and weights", resume="free"
    )
    param_dtype: Literal["bf16", "fp16", "fp32"] = setting(
        "bf16", "type of weights and activations", resume="must_match"
    )
    attn_implementation: str = setting(
        "auto", "attention back end; auto picks the best that is installed", resume="free"
    )
    packing_samples: bool = setting(
        False, "no padding: samples of a micro-batch stand in one row, each on its own", resume="free"
    )
    ring_attn_size: PositiveCount = setting(1, "ranks that share one packed row", resume="free")
    ring_head_stride: PositiveCount = setting(
        1, "key-value heads a ring sends at once: more is faster, and more memory", resume="free"
    )
    tensor_parallel_size: PositiveCount = setting(1, "ranks that share each weight matrix", resume="free")
    adam_offload: bool = setting(False, "keep the optimizer in the host's memory", resume="free")
    zpg: PositiveCount = setting(1, "ZeRO-3: ranks of a node that hold a second copy of the weights", resume="free")
    overlap_comm: bool = setting(False, "send gradients during the backward pass", resume="free")
    grad_accum_dtype: Literal["bf16", "fp16", "fp32"] | None = setting(
        None, "type in which gradients add up", resume="taken"
    )
    use_liger_kernel: bool = setting(False, "Liger's fused kernels (GPU; extra liger)", resume="free")
    load_in_4bit: bool = setting(
        False, "hold the frozen base in 4 bits, for adapters (GPU; bitsandbytes)", resume="must_match"
    )
    use_universal_ckpt: bool = setting(
        False, "taken for OpenRLHF's sake: every checkpoint here loads on any layout", resume="free"
    )
    deepcompile: bool = setting(
        False, "compile forward and backward with DeepSpeed's compiler (CUDA; ZeRO 1 to 3)", resume="free"
    )
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class AdamConfig:
    """AdamW."""

    lr: PositiveNumber = setting(5e-6, "highest learning rate", resume="kept")
    betas: tuple[BelowOne, BelowOne] = setting((0.9, 0.95), "decay of the two moments", resume="taken")
    eps: PositiveNumber = setting(1e-8, "added to the root of the second moment", resume="taken")
    weight_decay: Number = setting(0.0, "decay of weight matrices (norms and biases have none)", resume="taken")


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """Muon, for weight matrices; what is left is trained by AdamW with its own settings."""

    lr: PositiveNumber = setting(0.02, "highest learning rate of weight matrices", resume="kept")
    momentum: BelowOne = setting(0.95, "momentum", resume="taken")


@dataclasses.dataclass(frozen=True)
class CkptConfig:
    """What is saved, where, how often; and going on with a run."""

    output_dir: str = setting(
        "./ckpt", "folder of the trained model, metrics.jsonl and the resolved configuration", resume="free"
    )
    path: str = setting("./ckpt/checkpoints_sft", "folder of training checkpoints, to go on from", resume="free")
    save_steps: EverySteps = setting(-1, "save every that many optimizer steps; -1: not by steps", resume="free")
    save_minutes: PositiveNumber | None = setting(
        None, "save every that many minutes, beside save_steps", resume="free"
    )
    save_hf: bool = setting(False, "at each save export the model in Hugging Face form too", resume="free")
    disable_ds: bool = setting(False, "save no training checkpoints", resume="free")
    max_num: PositiveCount = setting(3, "training checkpoints kept", resume="free")
    max_mem: PositiveNumber = setting(1e8, "size of the kept checkpoints, in GiB", resume="free")
    load_enable: bool = setting(False, "go on from the newest whole checkpoint in ckpt.path", resume="free")
    allow_mismatch: bool = setting(
        False,
        "go on although data, seed, batch size, loss, model, tokenizer, optimizer or dtype are not the checkpoint's",
        resume="free",
    )
    export_shard_size: Size = setting("5GB", "largest file of the exported model", resume="free")
    background_save: bool = setting(True, "write checkpoints beside the training", resume="free")
    max_failed_saves_in_a_row: PositiveCount = setting(
        3, "stop when that many saves have failed one after another", resume="free"
    )


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases. The key belongs in the environment: WANDB_API_KEY."""

    enable: bool = setting(False, "log to Weights & Biases", resume="free")
    project: str = setting("openrlhf_train_sft", "project", resume="free")
    name: str | None = setting(None, "name of the run", resume="free")
    group: str | None = setting(None, "group of runs", resume="free")
    org: str | None = setting(None, "organisation or user", resume="free")
    key: str | None = setting(
        None, "taken with a warning, never written; use WANDB_API_KEY instead", resume="free", secret=True
    )


@dataclasses.dataclass(frozen=True)
class LoggerConfig:
    """What is shown while training."""

    logging_steps: PositiveCount = setting(
        1, "console, TensorBoard and W&B every that many optimizer steps", resume="free"
    )
    tensorboard_dir: str | None = setting(None, "folder for TensorBoard", resume="free")
    entropy: bool = setting(False, "log the mean entropy of the predictions at target tokens", resume="free")
    wandb: WandbConfig = WandbConfig()


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Root):
    """Optimizer, schedule and clipping."""

    optim: Literal["adam", "muon"] = setting("adam", "optimizer", resume="must_match")
    lr_scheduler: Scheduler = setting(
        "cosine_with_min_lr", "how the learning rate goes over the whole run", resume="taken"
    )
    lr_warmup_ratio: Fraction = setting(0.03, "share of the steps in which the learning rate rises", resume="taken")
    min_lr_ratio: Fraction = setting(0.1, "lowest learning rate, as a share of the highest", resume="taken")
    max_norm: Number = setting(1.0, "clip the global gradient norm to that; 0 is off", resume="taken")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    eval: EvalConfig = EvalConfig()
    train: TrainConfig = TrainConfig()
    ds: DeepspeedConfig = DeepspeedConfig()
    adam: AdamConfig = AdamConfig()
    muon: MuonConfig = MuonConfig()
    ckpt: CkptConfig = CkptConfig()
    logger: LoggerConfig = LoggerConfig()
