"""TensorBoard's event files."""

from __future__ import annotations

from typing import Any

from openrlhf.errors import UserError
from openrlhf.tracking.records import EvalRecord, StepRecord


class TensorBoardSink:
    """Scalars `train/<name>` and `eval/<name>` over optimizer steps."""

    def __init__(self, folder: str, resume_step: int | None = None):
        """Args:
            folder: where the event files go.
            resume_step: optimizer step that the run goes on from; TensorBoard hides what was logged after it.

        Raises:
            UserError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            raise UserError(
                "--logger.tensorboard_dir needs the package tensorboard: pip install tensorboard"
            ) from problem
        self._writer = SummaryWriter(folder, purge_step=None if resume_step is None else resume_step + 1)

    def log_step(self, record: StepRecord) -> None:
        self._add("train", dict(record))

    def log_eval(self, record: EvalRecord) -> None:
        self._add("eval", dict(record))

    def close(self) -> None:
        self._writer.close()

    def _add(self, group: str, numbers: dict[str, Any]) -> None:
        step = numbers.pop("global_step")
        for name, value in numbers.items():
            self._writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, step)
        self._writer.flush()
