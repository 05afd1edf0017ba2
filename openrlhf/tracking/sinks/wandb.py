"""Weights & Biases; `WANDB_MODE=offline` keeps everything on this disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf.errors import UserError
from openrlhf.tracking.records import EvalRecord, StepRecord

RUN_ID_FILE = "wandb_run_id.txt"


class WandbSink:
    """Charts `train/<name>` and `eval/<name>` over `global_step`.

    The key comes from the environment's `WANDB_API_KEY`. A key handed over is put there and nowhere else: W&B
    would copy it from the command line into its own files, so W&B is shown the command line without it.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str,
        *,
        name: str | None = None,
        group: str | None = None,
        entity: str | None = None,
        config: Mapping[str, Any] | None = None,
        key: str | None = None,
        resume: bool = False,
    ):
        """Args:
            folder: W&B's own files go to `<folder>/wandb`, the run's id to `<folder>/wandb_run_id.txt`.
            config: what the run's page shows as its settings; without secrets.
            resume: go on with the run whose id stands in the folder.

        Raises:
            UserError: W&B is not installed, or does not let the run start (no key, no network).
        """
        if key:
            os.environ["WANDB_API_KEY"] = key
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        wandb = _wandb()
        with _hidden_from_command_line(key):
            try:
                self._run = wandb.init(
                    dir=self._folder,
                    project=project,
                    name=name,
                    group=group,
                    entity=entity,
                    config=dict(config or {}),
                    id=self._known_run_id() if resume else None,
                    resume="allow",
                )
            except wandb.Error as problem:
                raise UserError(
                    f"Weights & Biases did not start the run: {problem}. Set WANDB_API_KEY in the "
                    "environment, or WANDB_MODE=offline, or leave --logger.wandb.enable out."
                ) from None
        (self._folder / RUN_ID_FILE).write_text(self._run.id, encoding="utf-8")
        self._run.define_metric("*", step_metric="global_step")

    def log_step(self, record: StepRecord) -> None:
        self._log("train", dict(record))

    def log_eval(self, record: EvalRecord) -> None:
        self._log("eval", dict(record))

    def close(self) -> None:
        self._run.finish()

    def _log(self, group: str, numbers: dict[str, Any]) -> None:
        step = numbers.pop("global_step")
        named = {f"{group}/{name.removeprefix('eval_')}": value for name, value in numbers.items()}
        self._run.log({"global_step": step, **named})

    def _known_run_id(self) -> str | None:
        file = self._folder / RUN_ID_FILE
        return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as problem:
        raise UserError("--logger.wandb.enable needs the package wandb: pip install wandb") from problem
    return wandb


@contextmanager
def _hidden_from_command_line(key: str | None) -> Iterator[None]:
    whole = list(sys.argv)
    if key:
        sys.argv[:] = [argument.replace(key, "[hidden]") for argument in whole]
    try:
        yield
    finally:
        sys.argv[:] = whole
