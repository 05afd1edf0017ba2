"""TensorBoard and Weights & Biases: a chart `train/<name>` or `eval/<name>` for each number, over optimizer steps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf.config import WandbConfig
from openrlhf.errors import UserError

RUN_ID_FILE = "wandb_run_id.txt"
KEY_VARIABLE = "WANDB_API_KEY"


class TensorBoardSink:
    """TensorBoard's event files."""

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

    def log_step(self, record: Mapping[str, float]) -> None:
        self._add("train", record)

    def log_eval(self, record: Mapping[str, float]) -> None:
        self._add("eval", record)

    def close(self) -> None:
        self._writer.close()

    def _add(self, group: str, record: Mapping[str, float]) -> None:
        for chart, number in _charts(group, record).items():
            self._writer.add_scalar(chart, number, record["global_step"])
        self._writer.flush()


class WandbSink:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps everything on this disk.

    The key comes from the environment's `WANDB_API_KEY`. A key among the settings is put there and nowhere else.
    W&B would copy the command line into its own files, so it is shown the command line without the key.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: WandbConfig,
        shown_config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
    ):
        """Args:
            folder: W&B's own files go to `<folder>/wandb`, the run's id to `<folder>/wandb_run_id.txt`.
            shown_config: what the run's page shows as its settings; without secrets.
            resume: go on with the run whose id stands in the folder.

        Raises:
            UserError: W&B is not installed, or does not let the run start (no key, no network).
        """
        if settings.key:
            os.environ[KEY_VARIABLE] = settings.key
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run_id_file = folder / RUN_ID_FILE
        wandb = _wandb()
        with _key_hidden_from_command_line():
            try:
                self._run = wandb.init(
                    dir=folder,
                    project=settings.project,
                    name=settings.name,
                    group=settings.group,
                    entity=settings.org,
                    config=dict(shown_config or {}),
                    id=run_id_file.read_text(encoding="utf-8").strip() if resume and run_id_file.exists() else None,
                    resume="allow",
                )
            except wandb.Error as problem:
                raise UserError(
                    f"Weights & Biases did not start the run: {problem}. Set {KEY_VARIABLE} in the "
                    "environment, or WANDB_MODE=offline, or leave --logger.wandb.enable out."
                ) from None
        run_id_file.write_text(self._run.id, encoding="utf-8")
        self._run.define_metric("*", step_metric="global_step")

    def log_step(self, record: Mapping[str, float]) -> None:
        self._log("train", record)

    def log_eval(self, record: Mapping[str, float]) -> None:
        self._log("eval", record)

    def close(self) -> None:
        self._run.finish()

    def _log(self, group: str, record: Mapping[str, float]) -> None:
        self._run.log({"global_step": record["global_step"], **_charts(group, record)})


def _charts(group: str, record: Mapping[str, float]) -> dict[str, float]:
    """The record's numbers by the name of their chart."""
    numbers = {name: number for name, number in record.items() if name != "global_step"}
    return {f"{group}/{name.removeprefix('eval_')}": number for name, number in numbers.items()}


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as problem:
        raise UserError("--logger.wandb.enable needs the package wandb: pip install wandb") from problem
    return wandb


@contextmanager
def _key_hidden_from_command_line() -> Iterator[None]:
    """The key of the environment is no word of `sys.argv`, nor a part of one, while this lasts."""
    whole, key = list(sys.argv), os.environ.get(KEY_VARIABLE)
    if key:
        sys.argv[:] = [word.replace(key, "[hidden]") for word in whole]
    try:
        yield
    finally:
        sys.argv[:] = whole
