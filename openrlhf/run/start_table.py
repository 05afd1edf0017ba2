"""The short table before the first step: what is about to be trained, how it is laid out, and the memory it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from openrlhf.batching import StepWindowLoader
from openrlhf.config import TrainConfig, TrainingConfig
from openrlhf.engine.engine_config import gradient_dtype
from openrlhf.engine.fragments import base_optimizer
from openrlhf.engine.model_internals import attention_name
from openrlhf.engine.optimizers import adam_in_words
from openrlhf.engine.parameters import whole_numel
from openrlhf.trainer import CommandTrainer

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
ADAM_NUMBERS_A_WEIGHT = 2
BYTES_OF_DTYPE = {"fp32": 4, "bf16": 2, "fp16": 2}


def print_start_table(
    config: TrainingConfig,
    trainer: CommandTrainer,
    train_data: Any,
    eval_data: Any | None,
    consumed_samples: int = 0,
    console: Console | None = None,
    more_rows: Mapping[str, str] | None = None,
) -> None:
    """Prints the table on `console` (standard output when not given). Counts are over all ranks.

    Args: more_rows: text by name, at the end.
    """
    table = Table(title="This run", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(config, trainer, train_data, eval_data, consumed_samples):
        table.add_row(name, text)
    for name, text in (more_rows or {}).items():
        table.add_row(name, text)
    (console or Console()).print(table)


def _rows(
    config: TrainingConfig,
    trainer: CommandTrainer,
    train_data: Any,
    eval_data: Any | None,
    consumed_samples: int,
) -> Iterator[tuple[str, str]]:
    loader, strategy = cast(StepWindowLoader, trainer.train_dataloader), trainer.strategy
    yield "samples", _samples(train_data)
    yield "tokens", _tokens(train_data)
    if eval_data is not None:
        yield "evaluation", f"{len(eval_data):,} samples"
    ranks = f"{strategy.world_size} × {strategy.device.type}, ZeRO stage {config.ds.zero_stage}"
    yield "ranks", f"{ranks}; host threads of each: {torch.get_num_threads()}"
    num_micro_batches = loader.num_micro_batches(window_number=0)
    yield "a step", f"{config.train.batch_size:,} samples; micro-batches on each rank: {num_micro_batches:,.3g}"
    yield "steps", _steps(loader, config.train, consumed_samples)
    sizes = [(whole_numel(p), p.requires_grad) for p in trainer.model.trainable_module.parameters()]
    num_parameters, num_trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    yield "parameters", f"{num_parameters:,}; {num_trained:,} of them trained ({num_trained / num_parameters:.2%})"
    memory = estimate_memory(
        num_parameters,
        num_trained,
        num_ranks=strategy.world_size,
        zero_stage=config.ds.zero_stage,
        param_dtype=config.ds.param_dtype,
        gradient_dtype=gradient_dtype(strategy.ds),
        optimizer_numbers_per_weight=ADAM_NUMBERS_A_WEIGHT,
        optimizer_offload=config.ds.adam_offload,
    )
    yield "memory a rank", _memory(memory)
    yield (
        "out of memory",
        "the step again, micro-batches halved, activations recomputed; "
        + (
            "samples that do not fit alone are left out"
            if config.data.overlong_memory == "skip"
            else "a sample that does not fit alone ends the run"
        ),
    )
    yield "optimizer", adam_in_words(base_optimizer(trainer.trained.engine))
    yield "precision", config.ds.param_dtype
    note = trainer.model.attention.note
    yield "attention", attention_name(trainer.model.config) + (f"; {note}" if note else "")


def _samples(data: Any) -> str:
    reasons = {**data.report.left_out, "unusable": data.report.num_bad_rows}
    left_out = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"{len(data):,} kept" + (f"; left out: {left_out}" if left_out else ", none left out")


def _tokens(data: Any) -> str:
    num_tokens, num_targets = data.report.num_tokens, data.report.num_target_tokens
    share = num_targets / num_tokens if num_tokens else 0.0
    return f"{num_tokens:,} an epoch, {num_targets:,} of them targets ({share:.1%})"


def _steps(loader: StepWindowLoader, train: TrainConfig, consumed_samples: int) -> str:
    num_steps = loader.schedule.num_steps(train.max_epochs, train.max_steps)
    behind = loader.num_steps_before(consumed_samples)
    text = f"{loader.steps_per_epoch:,} an epoch, {num_steps:,} in all"
    return f"{text}; going on after step {behind:,}" if behind else text


def _memory(memory: MemoryEstimate) -> str:
    parts = [
        f"weights {size_text(memory.weights_bytes)}",
        f"gradients {size_text(memory.gradients_bytes)}",
        f"optimizer {size_text(memory.optimizer_bytes)}",
    ]
    host = f"; in the host's memory {size_text(memory.host_bytes)}" if memory.host_bytes else ""
    return f"about {size_text(memory.device_bytes)} and activations ({' + '.join(parts)}){host}"


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 512 B, 3.4 MiB, 17.0 GiB."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min(size_bytes.bit_length() - 1, 49) // 10
    return f"{size_bytes / 1024**power:.1f} {UNITS[power]}"


# --- memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a rank holds through the run."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    host_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """Bytes that the accelerator (or, without one, the process) holds."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


def estimate_memory(
    num_parameters: int,
    num_trainable_parameters: int,
    *,
    num_ranks: int,
    zero_stage: int,
    param_dtype: str,
    gradient_dtype: str | None = None,
    optimizer_numbers_per_weight: int = 2,
    optimizer_offload: bool = False,
) -> MemoryEstimate:
    """The memory that a rank needs for what lasts through the run: weights, gradients, optimizer state.

    With A parameters of which T are trained, N ranks, w bytes a weight and g bytes a gradient (4 for fp32, 2 for
    bf16 and fp16), ZeRO stage z:

        weights          = w·A           divided by N from z = 3 on
        gradients        = g·T           divided by N from z = 2 on
        optimizer state  = (m + 4·k)·T   divided by N from z = 1 on
                           m = 4 for the fp32 master copy; 0 where the weights themselves are it (fp32, z = 0)
                           k = fp32 numbers the optimizer keeps for a weight: 2 for Adam, 1 for Muon's matrices

    An offloaded optimizer keeps its state in the host's memory, with a fp32 gradient (4·T, divided by N from
    z = 1 on) beside it. Activations, log-prob chunks, communication buckets and the allocator's slack come on
    top: they depend on the batch, not on the model alone.

    Dtypes are "fp32", "bf16", "fp16"; `gradient_dtype` is `param_dtype` when not given.
    """
    weight_bytes = BYTES_OF_DTYPE[param_dtype]
    gradient_bytes = BYTES_OF_DTYPE[gradient_dtype or param_dtype]
    weights_are_master = param_dtype == "fp32" and zero_stage == 0
    state_bytes = (0 if weights_are_master else 4) + 4 * optimizer_numbers_per_weight

    def share(num_bytes: int, from_stage: int) -> int:
        return -(-num_bytes // num_ranks) if zero_stage >= from_stage else num_bytes

    optimizer_bytes = share(state_bytes * num_trainable_parameters, from_stage=1)
    offloaded_gradient_bytes = share(4 * num_trainable_parameters, from_stage=1)
    return MemoryEstimate(
        weights_bytes=share(weight_bytes * num_parameters, from_stage=3),
        gradients_bytes=share(gradient_bytes * num_trainable_parameters, from_stage=2),
        optimizer_bytes=0 if optimizer_offload else optimizer_bytes,
        host_bytes=optimizer_bytes + offloaded_gradient_bytes if optimizer_offload else 0,
    )
