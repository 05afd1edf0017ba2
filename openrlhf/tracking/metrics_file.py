"""`metrics.jsonl`: a JSON object a line, in the file as soon as it is known.

The file is valid JSON, line by line. JSON has no nan and no infinity: both are written as null, so null says
that the number was not finite.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from openrlhf.atomic_file import keep_aside, replace_file
from openrlhf.errors import UserError
from openrlhf.exit_codes import Outcome

METRICS_FILE = "metrics.jsonl"
ANSWERS_FILE = "answers.jsonl"  # to prompts, while it trains
RESTARTS_FILE = "restarts.jsonl"  # a line for each time that the run went on from a checkpoint
logger = logging.getLogger(__name__)


class JsonLinesSink:
    """Appends each record to `path`.

    A line leaves the process with one write, so a killed run tears at most its last line. When the disk is
    full the lines wait in memory and go with the next record: the run goes on. A file that is removed meanwhile
    comes back whole with the next record.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None, spare_folder: str | Path | None = None):
        """Args:
            path: the file; its folder is made.
            resume_step: optimizer step that the run goes on from; later lines are removed, so that each step
                stands once. None begins a new file; older ones are kept beside it as `<name>.previous`,
                `<name>.previous_2` and so on.
            spare_folder: for the lines that still wait when the sink is closed.

        Raises:
            UserError: the file cannot be written.
        """
        self._path = Path(path)
        self._resume_step, self._spare_folder = resume_step, spare_folder
        self._answers: JsonLinesSink | None = None
        self._waiting = b""
        self._disk_is_full = False
        self._evaluated_before: set[int] = set()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._make_ready(resume_step)
            self._file = self._open()
        except OSError as problem:
            raise UserError(
                f"The metrics file {self._path} cannot be written ({problem.strerror}). "
                "Choose a folder that you may write to with --ckpt.output_dir."
            ) from problem

    def log_step(self, record: Mapping[str, Any]) -> None:
        self._append(to_line(record))

    def log_eval(self, record: Mapping[str, float]) -> None:
        """A run killed between its last evaluation and its last save evaluates again: one line stays."""
        if record["global_step"] not in self._evaluated_before:
            self._append(to_line(record))

    def log_event(self, record: Mapping[str, Any]) -> None:
        self._append(to_line(record))

    log_more = log_event

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Into a file of their own beside it, where they stand as the records do: once for each step."""
        if self._answers is None:
            self._answers = JsonLinesSink(self._path.with_name(ANSWERS_FILE), self._resume_step, self._spare_folder)
        for answer in answers:
            self._answers.log_step(answer)

    def close(self, outcome: Outcome = "finished") -> None:
        if self._answers is not None:
            self._answers.close()
        self._append("")
        if self._waiting:
            self._tell_what_waits()
        with suppress(OSError):  # of a disk that is away; the run has ended in order all the same
            os.close(self._file)

    def _tell_what_waits(self) -> None:
        """Writes it into the spare folder, if it can."""
        lines, place = self._waiting, "they are lost"
        with suppress(OSError):
            lines = os.pread(self._file, os.fstat(self._file).st_size, 0).rpartition(b"\n")[2] + lines  # one is torn
        try:
            if self._spare_folder is not None:
                rest = Path(self._spare_folder) / f"rest_of_{self._path.name}"
                rest.parent.mkdir(parents=True, exist_ok=True)
                keep_aside(rest)
                replace_file(rest, lines)
                place = f"they are in {rest}"
        except OSError as problem:
            place += f": {self._spare_folder} cannot be written either ({problem.strerror})"
        whole = filter(None, map(_record_or_none, lines.decode(errors="replace").splitlines()))
        first, num_lines = next(whole, {}).get("global_step", "?"), lines.count(b"\n")
        logger.warning("%s lacks its last %d line(s), of step %s and later; %s.", self._path, num_lines, first, place)

    def _make_ready(self, resume_step: int | None) -> None:
        if resume_step is not None:
            kept = cut_back_to_step(self._path, resume_step)
            self._evaluated_before = {record["global_step"] for record in kept if "eval_loss" in record}
        else:
            keep_aside(self._path)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def _bring_back(self) -> None:
        """Where the file has lost its name, what is in it goes, first of all, into a new one."""
        if self._path.exists() and os.path.samestat(os.stat(self._path), os.fstat(self._file)):
            return
        content = b"" if self._path.exists() else os.pread(self._file, os.fstat(self._file).st_size, 0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        old, self._file = self._file, self._open()  # where it cannot be opened, the old one stays
        with suppress(OSError):
            os.close(old)
        self._waiting = content + self._waiting
        logger.warning("%s was removed or replaced while the run wrote it; it goes on there.", self._path)

    def _append(self, line: str) -> None:
        self._waiting += line.encode()
        try:
            self._bring_back()
            while self._waiting:
                num_bytes = os.write(self._file, self._waiting)
                self._waiting = self._waiting[num_bytes:]
            self._disk_is_full = False
        except OSError as problem:
            if not self._disk_is_full:
                logger.warning("%s: %s; lines wait in memory, training goes on.", self._path, problem.strerror)
            self._disk_is_full = True


def note_restart(folder: Path, resume_step: int | None) -> None:
    """Writes down that a run goes on from that step; a new run (None) begins without restarts.

    Beside `metrics.jsonl`, whose lines are steps and evaluations, each once, whatever has stopped the run.
    """
    if resume_step is None:
        keep_aside(folder / RESTARTS_FILE)
        return
    restarts = JsonLinesSink(folder / RESTARTS_FILE, sys.maxsize)  # nothing of it is cut
    restarts.log_event({"global_step": resume_step, "time": datetime.now().astimezone().isoformat(timespec="seconds")})
    restarts.close()


def to_line(record: Mapping[str, Any]) -> str:
    """The record as one line of JSON, newline included."""
    return json.dumps({key: _finite_or_none(value) for key, value in record.items()}, allow_nan=False) + "\n"


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The file's records in order; lines that are torn (the run was killed while it wrote) are left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    records = [_record_or_none(line) for line in lines if line.strip()]
    whole = [record for record in records if record is not None]
    if len(whole) < len(records):
        logger.warning("%s: left out %d torn line(s).", path, len(records) - len(whole))
    return whole


def cut_back_to_step(path: Path, optimizer_step: int) -> list[dict[str, Any]]:
    """Removes, in one atomic move, every record after `optimizer_step` and every torn line; what is left."""
    if not path.exists():
        return []
    kept = [record for record in read_records(path) if record["global_step"] <= optimizer_step]
    replace_file(path, "".join(to_line(record) for record in kept))
    return kept


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record_or_none(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "global_step" in record else None
