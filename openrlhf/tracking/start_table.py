"""The short table before the first step: what is about to be trained, and how it is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from openrlhf.tracking.memory_estimate import MemoryEstimate

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class RunSummary:
    """What the table says. Counts are of the training set, over all ranks, unless the name says otherwise."""

    num_samples: int
    num_tokens: int
    num_target_tokens: int
    num_ranks: int
    zero_stage: int
    batch_size: int
    micro_batches_per_step: float  # of one rank; the mean where steps differ
    num_steps_per_epoch: int
    num_steps: int
    num_parameters: int
    num_trainable_parameters: int
    memory: MemoryEstimate  # of one rank
    param_dtype: str
    attention: str
    device: str
    num_samples_left_out: Mapping[str, int] = field(default_factory=dict)  # reason → samples
    num_eval_samples: int | None = None
    resume_step: int | None = None


def print_start_table(summary: RunSummary, console: Console | None = None) -> None:
    """Prints the table on `console` (standard output when not given)."""
    table = Table(title="This run", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(summary):
        table.add_row(name, text)
    (console or Console()).print(table)


def _lines(summary: RunSummary) -> Iterator[tuple[str, str]]:
    yield "samples", _samples(summary)
    yield "tokens", _tokens(summary)
    if summary.num_eval_samples is not None:
        yield "evaluation", f"{summary.num_eval_samples:,} samples"
    yield "ranks", f"{summary.num_ranks} × {summary.device}, ZeRO stage {summary.zero_stage}"
    yield "a step", _step(summary)
    yield "steps", _steps(summary)
    yield "parameters", _parameters(summary)
    yield "memory a rank", _memory(summary.memory)
    yield "precision", summary.param_dtype
    yield "attention", summary.attention


def _samples(summary: RunSummary) -> str:
    reasons = summary.num_samples_left_out.items()
    left_out = "; ".join(f"{count:,} {reason}" for reason, count in reasons if count)
    return f"{summary.num_samples:,} kept" + (f"; left out: {left_out}" if left_out else ", none left out")


def _tokens(summary: RunSummary) -> str:
    share = summary.num_target_tokens / summary.num_tokens if summary.num_tokens else 0.0
    return f"{summary.num_tokens:,} an epoch, {summary.num_target_tokens:,} of them targets ({share:.1%})"


def _step(summary: RunSummary) -> str:
    return f"{summary.batch_size:,} samples; micro-batches on each rank: {summary.micro_batches_per_step:,.3g}"


def _steps(summary: RunSummary) -> str:
    text = f"{summary.num_steps_per_epoch:,} an epoch, {summary.num_steps:,} in all"
    return text if summary.resume_step is None else f"{text}; going on after step {summary.resume_step:,}"


def _parameters(summary: RunSummary) -> str:
    share = summary.num_trainable_parameters / summary.num_parameters
    return f"{summary.num_parameters:,}; {summary.num_trainable_parameters:,} of them trained ({share:.2%})"


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
