"""Python's garbage collector at a start and at an end: it would search what cannot be garbage.

Loading DeepSpeed and transformers makes millions of objects that live as long as the process. While they are made the
collector goes through them over and over, and once more when the process ends: two seconds of every run and rank.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keeping_all() -> Iterator[None]:
    """While it lasts nothing is collected; what was made stays, and is never searched again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def end_without_search() -> None:
    """At the process's end the system takes the memory back: no search for garbage before it does."""
    atexit.register(gc.freeze)
