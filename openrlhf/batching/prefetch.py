"""Builds the next items of an iterator in a thread, beside the work on the current one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterator[Item], num_ahead: int) -> Iterator[Item]:
    """The same items in the same order, at most `num_ahead` of them ready. An error in the thread is raised here."""
    ready: queue.Queue = queue.Queue(maxsize=num_ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stop), daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stop.set()


class _Raised:
    def __init__(self, error: BaseException):
        self.error = error


def _fill(items: Iterator[Item], ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, ready, stop):
                return
        _put(_END, ready, stop)
    except BaseException as error:
        _put(_Raised(error), ready, stop)


def _put(item: object, ready: queue.Queue, stop: threading.Event) -> bool:
    """False where the reader is gone: a thread must not wait for ever for one that left its loop."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.2)
            return True
        except queue.Full:
            continue
    return False
