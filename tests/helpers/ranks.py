"""Ranks on a laptop: processes that are started once and then run many cases.

    with RankPool(world_size=2) as ranks:
        results = ranks.run(case, 1, 2)     # case(1, 2) on every rank; a list of results by rank

`case` is a function of a module (the ranks import it). torch.distributed (gloo) is initialised, and every rank
computes with one thread, so that sums do not depend on how many cores the machine has.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

from tests.helpers.fork_server import fork_server

SECONDS_TO_ANSWER = 400  # less than a test's own limit (pyproject.toml): the ranks that hang are killed by then
# Every group that a case makes leaves threads of gloo that keep waking up: hundreds of them slow down later tests.
MOST_THREADS = 40


class RankError(AssertionError):
    """A case raised on at least one rank; holds every rank's traceback."""


class RankPool:
    """`world_size` processes joined in one gloo group; each runs the functions that `run` hands it.

    Args: imports_itself: each process is a new interpreter, in place of one that is forked with all imports done.
    """

    def __init__(self, world_size: int, imports_itself: bool = False):
        self.world_size = world_size
        self._context = multiprocessing.get_context("spawn") if imports_itself else fork_server()
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        self._num_threads = 0  # of the busiest rank, after the last case
        self._start()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """`function(*args, **kwargs)` on every rank; the results by rank. Raises RankError if any rank raised.

        Ranks that hang or die fail this test alone: the next one gets new ranks.
        """
        if not self._processes:  # lost by the test before
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        answers = [self._answer(rank, deadline) for rank in range(self.world_size)]
        if any(is_lost for _, _, is_lost in answers):
            self.close()
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text, _) in enumerate(answers) if not ok]
        if failures:
            raise RankError("\n".join(failures))
        return [value for _, value, _ in answers]

    def _start(self) -> None:
        port, environment = _free_port(), dict(os.environ)
        for rank in range(self.world_size):
            here, there = self._context.Pipe()
            arguments = (there, rank, self.world_size, port, environment)
            process = self._context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def _answer(self, rank: int, deadline: float) -> tuple[bool, Any, bool]:
        """Whether the case returned; its result, or what went wrong; whether the rank is lost."""
        if not self._pipes[rank].poll(max(0.0, deadline - time.monotonic())):
            return False, f"no answer within {SECONDS_TO_ANSWER} s", True
        try:
            ok, value, num_threads = self._pipes[rank].recv()
            self._num_threads = max(self._num_threads, num_threads)
            return ok, value, False
        except EOFError:
            self._processes[rank].join()
            return False, f"the process ended with exit code {self._processes[rank].exitcode}", True

    def end_if_crowded(self) -> None:
        """Ends ranks with more than MOST_THREADS threads; the next case gets new ones. For the end of a module."""
        if self._num_threads > MOST_THREADS:
            self.close()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes, self._num_threads = [], [], 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _serve(pipe: Any, rank: int, world_size: int, port: int, environment: dict[str, str]) -> None:
    os.environ.clear()  # the fork server's
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import psutil
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args, **kwargs))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send((*answer, psutil.Process().num_threads()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
