"""Requests for rewards wait here; one thread computes all that wait, together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future


class QueueFull(Exception):
    """More items would wait than may."""


class RewardQueue:
    """Any thread may ask; `compute` runs in a thread of its own, which ends with the process.

    Args:
        compute: results of items, one each, in their order.
        max_waiting: items that may wait, beside those that are being computed.
        most_at_once: items of a call, unless a single request has more.
    """

    def __init__(self, compute: Callable[[Sequence], list], max_waiting: int, most_at_once: int = 512):
        self._compute = compute
        self.max_waiting, self._most_at_once = max_waiting, most_at_once
        self._requests: deque[tuple[Sequence, Future[list]]] = deque()
        self._has_changed = threading.Condition()
        self.num_waiting = 0
        threading.Thread(target=self._run, name="rewards", daemon=True).start()

    def ask(self, items: Sequence) -> Future[list]:
        """The results to come. Raises QueueFull where the items may not wait."""
        with self._has_changed:
            if self.num_waiting + len(items) > self.max_waiting:
                raise QueueFull
            self.num_waiting += len(items)
            self._requests.append((items, Future()))
            self._has_changed.notify()
            return self._requests[-1][1]

    def _run(self) -> None:
        while True:
            if requests := self._next():
                self._answer(requests)

    def _answer(self, requests: list[tuple[Sequence, Future[list]]]) -> None:
        """By one call; where that fails, by one for each request: only whose own call fails hears of it."""
        try:
            results = iter(self._compute([item for items, _ in requests for item in items]))
            answers = [[next(results) for _ in items] for items, _ in requests]
        except Exception as error:  # of any kind, and the next request is tried
            if len(requests) == 1:
                requests[0][1].set_exception(error)
                return
        else:
            for (_, future), answer in zip(requests, answers, strict=True):
                future.set_result(answer)
            return
        for request in requests:  # behind the handler: the error's traceback may hold memory
            self._answer([request])

    def _next(self) -> list[tuple[Sequence, Future[list]]]:
        """What waits, the earliest first, without requests that have been given up."""
        with self._has_changed:
            self._has_changed.wait_for(lambda: self._requests)
            taken: list[tuple[Sequence, Future[list]]] = []
            size = 0
            while self._requests and (not taken or size + len(self._requests[0][0]) <= self._most_at_once):
                items, future = self._requests.popleft()
                self.num_waiting -= len(items)
                if future.set_running_or_notify_cancel():
                    taken.append((items, future))
                    size += len(items)
            return taken
