"""The short table before the first step: what is about to be trained, how it is laid out, and the memory it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openrlhf.batching import StepWindowLoader
from openrlhf.config import TrainConfig, TrainingConfig
from openrlhf.engine.fragments import base_optimizer
from openrlhf.engine.model_internals import attention_name
from openrlhf.engine.optimizers import adam_in_words
from openrlhf.engine.parameters import whole_numel
from openrlhf.engine.patches.float32_products import multiply_in_float32
from openrlhf.engine.processor import faster_in_float32
from openrlhf.run.layout_choice import ChosenLayout
from openrlhf.run.memory_estimate import Memory, RunMemory, Way, longest_tokens, size_text, way_of
from openrlhf.trainer import CommandTrainer

_FIRST_WITH_BF16 = 8  # compute capability: Ampere


def print_start_table(
    config: TrainingConfig,
    trainer: CommandTrainer,
    train_data: Any,
    eval_data: Any | None,
    consumed_samples: int = 0,
    console: Console | None = None,
    layout: ChosenLayout | None = None,
    more_rows: Mapping[str, str] | None = None,
) -> None:
    """Prints the table on `console` (standard output when not given). Counts are over all ranks.

    Args: layout: None: its line is left out, and that of the memory. more_rows: text by name, at the end.
    """
    table = Table(title="This run", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(config, trainer, train_data, eval_data, consumed_samples, layout):
        table.add_row(name, escape(text))
    for name, text in (more_rows or {}).items():
        table.add_row(name, escape(text))
    (console or Console()).print(table)


def _rows(
    config: TrainingConfig,
    trainer: CommandTrainer,
    train_data: Any,
    eval_data: Any | None,
    consumed_samples: int,
    layout: ChosenLayout | None,
) -> Iterator[tuple[str, str]]:
    loader, strategy = cast(StepWindowLoader, trainer.train_dataloader), trainer.strategy
    yield "samples", _samples(train_data)
    yield "tokens", _tokens(train_data)
    if details := train_data.report.details():
        yield "data", "\n".join(details)
    if eval_data is not None:
        yield "evaluation", f"{len(eval_data):,} samples{_left_out(eval_data)}"
    ranks = f"{strategy.world_size} × {strategy.device.type}, ZeRO stage {config.ds.zero_stage}"
    yield "ranks", f"{ranks}; host threads of each: {torch.get_num_threads()}"
    if layout is not None:
        yield "layout", layout.in_words()
    num_micro_batches = loader.num_micro_batches(window_number=0)
    yield "a step", f"{config.train.batch_size:,} samples; micro-batches on each rank: {num_micro_batches:,.3g}"
    yield "steps", _steps(loader, config.train, consumed_samples)
    sizes = [(whole_numel(p), p.requires_grad) for p in trainer.model.trainable_module.parameters()]
    num_parameters, num_trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    yield "parameters", f"{num_parameters:,}; {num_trained:,} of them trained ({num_trained / num_parameters:.2%})"
    if layout is not None:
        saves_beside = config.ckpt.background_save and not config.ckpt.disable_ds
        num_tokens = longest_tokens(config, train_data)
        yield "memory a rank", _memory(layout.memory, way_of(config), num_tokens, saves_beside)
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
    yield "precision", _precision(config.ds.param_dtype, strategy.device.type)
    note = trainer.model.attention.note
    yield "attention", attention_name(trainer.model.config) + (f"; {note}" if note else "")


def _precision(param_dtype: str, device_type: str) -> str:
    if (param_dtype, device_type) == ("bf16", "cuda") and torch.cuda.get_device_capability()[0] < _FIRST_WITH_BF16:
        return "bf16; this GPU has none and emulates it, slowly: --ds.param_dtype fp16 is the faster one here"
    if (param_dtype, device_type) != ("bf16", "cpu"):
        return param_dtype
    notes = ["products are made in float32, as this processor has none of bf16"] if multiply_in_float32() else []
    notes += [note] if (note := faster_in_float32()) else []
    return "; ".join([param_dtype, *notes])


def _samples(data: Any) -> str:
    return f"{len(data):,} kept{_left_out(data) or ', none left out'}"


def _left_out(data: Any) -> str:
    reasons = {**data.report.left_out, "unusable": data.report.num_bad_rows}
    left_out = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"; left out: {left_out}" if left_out else ""


def _tokens(data: Any) -> str:
    num_tokens, num_targets = data.report.num_tokens, data.report.num_target_tokens
    share = num_targets / num_tokens if num_tokens else 0.0
    return f"{num_tokens:,} an epoch, {num_targets:,} of them targets ({share:.1%})"


def _steps(loader: StepWindowLoader, train: TrainConfig, consumed_samples: int) -> str:
    num_steps = loader.schedule.num_steps(train.max_epochs, train.max_steps)
    behind = loader.num_steps_before(consumed_samples)
    text = f"{loader.steps_per_epoch:,} an epoch, {num_steps:,} in all"
    return f"{text}; going on after step {behind:,}" if behind else text


def _memory(run: RunMemory, way: Way, num_tokens: int, saves_beside: bool) -> str:
    needed, free = run.of(way, num_tokens), Memory.free_here(run.on_cpu)
    if needed is None:
        return "not known: this model does not run without its numbers"
    states = needed.states
    parts = [
        f"weights {size_text(states.weights_bytes)}",
        f"gradients {size_text(states.gradients_bytes)}",
        f"optimizer {size_text(states.optimizer_bytes)}",
        f"activations {size_text(needed.activation_bytes)}",
    ]
    host = f"; in the host's memory {size_text(states.host_bytes)}" if states.host_bytes else ""
    host += f"; a save beside the training {size_text(states.save_bytes)} of the host's" if saves_beside else ""
    left = f"; still free: {size_text(free.device_bytes)}" if free else ""
    return f"about {size_text(needed.device_bytes)} at the most ({' + '.join(parts)}){host}{left}"
