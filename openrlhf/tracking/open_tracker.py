"""A run's tracker from the few settings that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf.tracking.sinks import Sink
from openrlhf.tracking.sinks.console import console_sink
from openrlhf.tracking.sinks.jsonl import JsonLinesSink
from openrlhf.tracking.sinks.tensorboard import TensorBoardSink
from openrlhf.tracking.sinks.wandb import WandbSink
from openrlhf.tracking.tracker import Tracker

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class WandbSettings:
    """Where the run stands in Weights & Biases. `key` is for those who hand one over; it is shown nowhere."""

    project: str
    name: str | None = None
    group: str | None = None
    entity: str | None = None
    key: str | None = None

    def __repr__(self) -> str:
        return f"WandbSettings(project={self.project!r}, name={self.name!r})"


def open_tracker(
    output_dir: str | Path,
    *,
    num_steps: int,
    is_rank_0: bool,
    resume_step: int | None = None,
    logging_steps: int = 1,
    tensorboard_dir: str | None = None,
    wandb: WandbSettings | None = None,
    shown_config: Mapping[str, Any] | None = None,
) -> Tracker:
    """The tracker of a run; a silent one on all ranks but the first.

    Args:
        output_dir: `metrics.jsonl` and W&B's files go here.
        num_steps: optimizer steps of the whole run, for the time left.
        resume_step: optimizer step that the run goes on from; None for a new run.
        logging_steps: console, TensorBoard and W&B are told after every so many steps; `metrics.jsonl` holds all.
        shown_config: the settings that W&B shows; without secrets.

    Raises:
        UserError: a file cannot be written, a library is missing, W&B refuses.
    """
    if not is_rank_0:
        return Tracker()
    output_dir = Path(output_dir)
    metrics = JsonLinesSink(output_dir / METRICS_FILE, resume_step)
    slow: list[Sink] = [console_sink(num_steps, resume_step or 0)]
    if tensorboard_dir:
        slow.append(TensorBoardSink(tensorboard_dir, resume_step))
    if wandb:
        slow.append(_wandb_sink(output_dir, wandb, shown_config, resume_step is not None))
    return Tracker([metrics], slow, logging_steps)


def _wandb_sink(
    output_dir: Path, settings: WandbSettings, shown_config: Mapping[str, Any] | None, resume: bool
) -> WandbSink:
    return WandbSink(
        output_dir,
        settings.project,
        name=settings.name,
        group=settings.group,
        entity=settings.entity,
        key=settings.key,
        config=shown_config,
        resume=resume,
    )
