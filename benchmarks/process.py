"""A contestant's process: started, watched step by step, and its memory read when it has ended.

Both contestants write a line of JSON to a file after each optimizer step (ours: `metrics.jsonl`), one write a line. The
file is looked at every 4 ms: a step's time is right to that, and looking takes well under 1% of a core.

This module and those that import it load no torch: a child's peak memory begins with what its parent held.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.004


class ContestantFailed(RuntimeError):
    """A process ended with an error, or was too slow."""


@dataclass
class ProcessRun:
    """What was seen of a process.

    step_seconds: when each step's line came, in seconds after the launch.
    cpu_seconds: processor time of the process, all its threads, at each step: hardly depends on what else runs.
    steps: the lines of steps.
    losses: of lines that hold nothing else (TRL logs them apart).
    peak_bytes: largest resident size of the process or of any one of its ended children, loading included
        (`ru_maxrss`, as /usr/bin/time reports it).
    """

    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    was_stopped: bool = False


def run_process(
    words: Sequence[str],
    step_file: Path,
    log_file: Path,
    env: Mapping[str, str],
    stop_after_steps: int | None = None,
    timeout_seconds: float = 1800,
) -> ProcessRun:
    """Runs `words` to its end, or until it has taken `stop_after_steps` steps (then it is killed).

    Args:
        env: added to this process's environment.
        log_file: what the process prints.

    Raises:
        ContestantFailed: it ended with an error, or took longer than `timeout_seconds`.
    """
    step_file.unlink(missing_ok=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    run = ProcessRun()
    with log_file.open("wb") as log:
        launched_at = time.perf_counter()
        process = subprocess.Popen(
            list(words), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
        reader = _StepReader(step_file, process.pid, launched_at, run)
        status, usage = 0, None
        while usage is None:
            ended, status, found = os.wait4(process.pid, os.WNOHANG)
            reader.look()
            if ended:
                usage = found
            elif stop_after_steps is not None and len(run.steps) >= stop_after_steps:
                usage, run.was_stopped = _kill(process), True
            elif time.perf_counter() - launched_at > timeout_seconds:
                _kill(process)
                raise ContestantFailed(f"longer than {timeout_seconds:.0f} s: {_told(words, log_file)}")
            else:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    process.returncode = 0  # it has been waited for
    run.seconds = time.perf_counter() - launched_at
    run.peak_bytes = usage.ru_maxrss * 1024
    if status and not run.was_stopped:
        raise ContestantFailed(f"exit code {os.waitstatus_to_exitcode(status)}: {_told(words, log_file)}")
    return run


class _StepReader:
    """Notes each whole line of a growing file, and when it came."""

    def __init__(self, path: Path, pid: int, launched_at: float, run: ProcessRun):
        self._path, self._pid, self._launched_at, self._run = path, pid, launched_at, run
        self._size_bytes, self._num_lines = 0, 0

    def look(self) -> None:
        try:
            size_bytes = os.stat(self._path).st_size
        except FileNotFoundError:
            return
        if size_bytes == self._size_bytes:
            return
        now, self._size_bytes = time.perf_counter() - self._launched_at, size_bytes
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        for line in lines[self._num_lines :]:
            record = json.loads(line)
            if "num_tokens" in record:
                self._run.steps.append(record)
                self._run.step_seconds.append(now)
                self._run.cpu_seconds.append(_cpu_seconds(self._pid))
            elif "loss" in record:
                self._run.losses.append(record["loss"])
        self._num_lines = len(lines)


def _cpu_seconds(pid: int) -> float:
    """nan where the process has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return math.nan
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _kill(process: subprocess.Popen) -> object:
    os.killpg(process.pid, signal.SIGKILL)  # its own session: its children with it
    return os.wait4(process.pid, 0)[2]


def _told(words: Sequence[str], log_file: Path) -> str:
    tail = log_file.read_text(encoding="utf-8", errors="replace")[-3000:]
    return f"{' '.join(words)}\nthe end of {log_file}:\n{tail}"
