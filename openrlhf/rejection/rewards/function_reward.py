"""A function as a reward: as many processes as threads ask at once."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import xxhash

from openrlhf.config.disk import local_path
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.environment import VERIFIERS, module_file
from openrlhf.rejection.rewards.functions import MATH
from openrlhf.rejection.rewards.process import RewardProcess
from openrlhf.rejection.rewards.reward import Reward, RewardVerdict, judge_apart


class FunctionReward(Reward):
    """A function of the user's, math-verify, or a task set of verifiers."""

    def __init__(self, name: str, timeout_seconds: float, rows_a_call: int):
        self.rows_a_call = rows_a_call
        self.needs_label = name == MATH
        self.name = name if name == MATH else name.rpartition(":")[2]
        self._full_name, self._timeout_seconds = name, timeout_seconds
        self._all: list[RewardProcess] = []
        self._idle: queue.SimpleQueue[RewardProcess] = queue.SimpleQueue()
        self._is_closed = False
        file = module_file(name) if name.startswith(VERIFIERS) else local_path(name.rpartition(":")[0])
        if file.is_file():
            self.content = xxhash.xxh3_128(file.read_bytes()).hexdigest()

    def start(self) -> None:
        """A first process. Raises UserError where the function cannot be loaded."""
        process = self._new()
        process.start()
        self._idle.put(process)

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._new()
        try:
            return judge_apart(process.call, rows)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        self._is_closed = True
        for process in self._all:
            process.end()

    def _new(self) -> RewardProcess:
        process = RewardProcess(self._full_name, self._timeout_seconds)
        self._all.append(process)
        if self._is_closed:  # by another thread, which may have ended all before this one came
            process.end()
        return process
