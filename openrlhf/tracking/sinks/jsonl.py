"""`metrics.jsonl`: a JSON object a line, in the file as soon as it is known."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from openrlhf.errors import UserError
from openrlhf.tracking.metrics_file import cut_back_to_step, to_line
from openrlhf.tracking.records import EvalRecord, StepRecord

logger = logging.getLogger(__name__)


class JsonLinesSink:
    """Appends each record to `path`.

    A line leaves the process with one write, so a killed run tears at most its last line. When the disk is
    full the lines wait in memory and go with the next record: the run goes on.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        """Args:
            path: the file; its folder is made.
            resume_step: optimizer step that the run goes on from; later lines are removed, so that each step
                stands once. None begins a new file; an older one is kept beside it as `<name>.previous`.

        Raises:
            UserError: the file cannot be written.
        """
        self._path = Path(path)
        self._waiting = b""
        self._disk_is_full = False
        self._evaluated_before: set[int] = set()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._make_ready(resume_step)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as problem:
            raise UserError(
                f"The metrics file {self._path} cannot be written ({problem.strerror}). "
                "Choose a folder that you may write to with --ckpt.output_dir."
            ) from problem

    def log_step(self, record: StepRecord) -> None:
        self._append(to_line(record))

    def log_eval(self, record: EvalRecord) -> None:
        """A run killed between its last evaluation and its last save evaluates again: one line stays."""
        if record["global_step"] not in self._evaluated_before:
            self._append(to_line(record))

    def close(self) -> None:
        self._append("")
        os.close(self._file)

    def _make_ready(self, resume_step: int | None) -> None:
        if resume_step is not None:
            kept = cut_back_to_step(self._path, resume_step)
            self._evaluated_before = {record["global_step"] for record in kept if "eval_loss" in record}
        elif self._path.exists():
            self._path.replace(self._path.with_name(f"{self._path.name}.previous"))

    def _append(self, line: str) -> None:
        self._waiting += line.encode()
        try:
            while self._waiting:
                num_bytes = os.write(self._file, self._waiting)
                self._waiting = self._waiting[num_bytes:]
            self._disk_is_full = False
        except OSError as problem:
            self._warn_once(problem)

    def _warn_once(self, problem: OSError) -> None:
        if not self._disk_is_full:
            logger.warning("%s: %s; lines wait in memory, training goes on.", self._path, problem.strerror)
        self._disk_is_full = True
