"""Named points of a save or an export at which a test can break the process.

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

SAVE_POINTS = (
    "save.begun",
    "save.copied",
    "save.half_of_tensors_written",
    "save.tensors_written",
    "save.tensors_flushed",
    "save.random_states_written",
    "save.rank_done",
    "save.all_ranks_done",
    "save.before_manifest",
    "save.manifest_written",
    "save.folder_flushed",
    "save.old_namesake_moved",
    "save.renamed",
    "save.latest_aside",
    "save.latest_renamed",
    "save.best_renamed",
    "save.before_rotation",
    "save.moved_for_removal",
    "save.removed",
)
EXPORT_POINTS = (
    "export.begun",
    "export.half_of_shard_written",
    "export.shard_written",
    "export.written",
    "export.read_back",
    "export.old_config_removed",
    "export.half_in_place",
    "export.before_config",
    "export.in_place",
)
POINTS = SAVE_POINTS + EXPORT_POINTS

_times_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Break here if the environment asks for it; otherwise cost one look at the environment."""
    wish = os.environ.get(ENVIRONMENT_VARIABLE)
    if not wish:
        return
    assert name in POINTS, f"{name} is not in the list of fault points"
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
