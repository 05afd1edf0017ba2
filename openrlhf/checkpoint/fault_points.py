"""Named points of a save or an export at which a test can break the process.

The points of a save begin with `save.`, those of an export with `export.`; `tests/helpers/fault_points.py` lists them.
Nothing happens unless the environment asks: `OPENRLHF_FAULT_POINT=<name>[:nth[:what]]`, where nth counts how
often the point is passed in this process (1 by default) and what is `kill` (SIGKILL to itself, the default),
`disk_full` (an OSError as the disk gives it) or `hang` (sleeps for an hour).
"""

import errno
import os
import signal
import time
from collections import Counter

ENVIRONMENT_VARIABLE = "OPENRLHF_FAULT_POINT"

_times_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Break here if the environment asks for it; otherwise cost one look at the environment."""
    wish = os.environ.get(ENVIRONMENT_VARIABLE)
    if not wish:
        return
    wanted, _, rest = wish.partition(":")
    nth, _, what = rest.partition(":")
    if wanted != name:
        return
    _times_passed[name] += 1
    if _times_passed[name] == int(nth or 1):
        _break(name, what or "kill")


def _break(name: str, what: str) -> None:
    if what == "disk_full":
        raise OSError(errno.ENOSPC, f"No space left on device (asked for at {name})")
    if what == "hang":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)
