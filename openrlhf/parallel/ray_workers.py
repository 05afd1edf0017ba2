"""Work on a Ray cluster: pure functions from a range of the input to a finished shard, on a disk that all nodes share.

Ray hands out ranges, and nothing else: what is finished is on the disk. So a lost node costs the shards that it was at,
a lost driver no more than that, and any number of workers leaves the same shards.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from openrlhf.errors import UserError, how_to_install

Range = TypeVar("Range")
Result = TypeVar("Result")
MakeWork = Callable[[], Callable[[Range], Result]]

LEAST_RANGES = 256  # where there is enough to do
_SECONDS_BETWEEN_LOOKS = 1.0  # at the size of the cluster
_SECONDS_TO_SHOW_UP = 60.0  # file systems of many machines keep names for a while
_DEATHS_A_WORKER = 5  # without a result in between
_LOST = object()


def check_ray(flag: str) -> None:
    """Raises UserError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UserError(f"{flag} ray needs a package that is not installed: {how_to_install('ray')}.")


def range_size(total: int, least: int, most: int) -> int:
    """How much a range holds. It depends on the work alone, so that any cluster cuts the same ranges."""
    return min(max(least, total // LEAST_RANGES), most)


def check_is_here(shard: Path) -> None:
    """Waits for a file that a worker has written. Raises UserError where it does not show up."""
    until = time.monotonic() + _SECONDS_TO_SHOW_UP
    while not shard.exists():
        if time.monotonic() > until:
            raise UserError(f"{shard} was written by a worker, and is not here: all nodes must share the disk.")
        time.sleep(0.5)


def on_ray(
    make_work: MakeWork[Range, Result], ranges: Iterable[Range], takes_gpu: bool = False
) -> Iterator[tuple[int, Result]]:
    """The number of each range and its result, as they come. Ranges are taken as workers become free.

    Args:
        make_work: called once in each worker; it gives the function that finishes a range. Both are pickled.
        takes_gpu: a worker has a GPU of its own, where the cluster has any, else a processor.

    Raises UserError where a range or a worker does, or where workers die again and again.
    """
    import ray

    numbered = enumerate(ranges)
    if (first := next(numbered, None)) is None:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    pool = _WorkerPool(ray, make_work, "GPU" if takes_gpu and ray.cluster_resources().get("GPU") else "CPU")
    print(f"Ray: {len(ray.nodes())} nodes, {pool.room()} workers", file=sys.stderr, flush=True)
    try:
        yield from pool.results(chain([first], numbered))
    finally:
        pool.close()


class _Worker:
    """A process of the cluster that keeps what its work needs: an engine, a tokenizer, rewards."""

    def __init__(self, make_work: MakeWork[Any, Any]):
        self._make_work = make_work

    def begin(self, folder: str) -> None:
        """Args: folder: the driver's, where relative paths begin, and the user's modules may lie."""
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(f"A node has no folder {folder}: all nodes must share the disk.") from error
        sys.path.insert(0, folder)
        self._work = self._make_work()

    def finish(self, given: Any) -> Any:
        return self._work(given)


class _WorkerPool:
    """As many workers as the cluster has room for at the time: nodes may come and go."""

    def __init__(self, ray: Any, make_work: MakeWork[Any, Any], resource: str):
        self._ray, self._make_work, self._resource = ray, make_work, resource
        one = {"num_gpus": 1} if resource == "GPU" else {"num_cpus": 1}
        self._actor = ray.remote(**one)(_Worker)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, tuple[int, Any] | None]] = {}  # by call: worker, and the range it is at
        self._num_deaths = 0  # since the last result

    def room(self) -> int:
        return int(self._ray.cluster_resources().get(self._resource, 0))

    def results(self, left: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        again, under_way = deque[tuple[int, Any]](), 0
        while True:
            self._fill()
            while self._idle and (taken := again.popleft() if again else next(left, None)) is not None:
                worker = self._idle.pop()
                self._busy[worker.finish.remote(taken[1])] = worker, taken
                under_way += 1
            if self._idle and not under_way:
                return
            ready, _ = self._ray.wait(list(self._busy), timeout=_SECONDS_BETWEEN_LOOKS)
            for call in ready:
                worker, given = self._busy.pop(call)
                under_way -= given is not None
                if (result := self._result(call, worker)) is _LOST:
                    again.extend([] if given is None else [given])
                elif given is not None:
                    self._num_deaths = 0
                    yield given[0], result

    def close(self) -> None:
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            self._ray.kill(worker)

    def _fill(self) -> None:
        """Starts workers where there is room; one that has begun is given ranges."""
        for _ in range(max(self.room(), 1) - len(self._idle) - len(self._busy)):
            worker = self._actor.remote(self._make_work)
            self._busy[worker.begin.remote(os.getcwd())] = worker, None

    def _result(self, call: Any, worker: Any) -> Any:
        """What a call gives; `_LOST` where its worker is gone."""
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(call)
        except exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError | OSError) else error from None
        except exceptions.RayError as error:
            self._ray.kill(worker)  # it may be out of reach only
            self._num_deaths += 1
            if self._num_deaths > _DEATHS_A_WORKER * (self.room() + 1):
                raise UserError(
                    f"Workers on Ray die again and again, at last with: {error}. Finished shards are kept: mend it, "
                    "and start the same command again."
                ) from error
            return _LOST
        self._idle.append(worker)
        return result
