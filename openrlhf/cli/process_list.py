"""Keys in the argument list of a process, which `ps` shows to everybody on the machine."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from contextlib import suppress

from openrlhf.processes import stat_of

_ARG_START, _ARG_END = 45, 46  # of the fields behind the name in /proc/<pid>/stat


def hide_from_process_list(secrets: Iterable[str]) -> None:
    """Overwrites them where Linux keeps this process's arguments; processes that fork from it have none either."""
    with suppress(OSError, IndexError):
        fields = stat_of(os.getpid())
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        words = ctypes.string_at(start, end - start)
        for secret in secrets:
            for found in re.finditer(rb"(?<=[\0=])" + re.escape(os.fsencode(secret)) + rb"(?=\0)", words):
                ctypes.memset(start + found.start(), ord("x"), len(found[0]))
