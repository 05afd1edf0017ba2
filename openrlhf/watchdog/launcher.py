"""A rank ends with its launcher: orphans of one that was killed would train on beside the run that is started next."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from openrlhf.exit_codes import EXIT_CODE_RANK_LOST
from openrlhf.processes import parent_of

SECONDS_BETWEEN_LOOKS = 1.0
_SET_BY_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # by torchrun, by deepspeed


def end_with_launcher() -> None:
    """From now on this rank ends, saving nothing, within two seconds of its launcher's end, however that came about.

    The `deepspeed` command starts ranks through a process of its own: if only the command is gone, the rank is asked to
    leave, as by SIGTERM. A process without a launcher (no RANK) may outlive its parent; so may a rank that was started
    by hand under nohup.
    """
    by_launcher = any(name in os.environ for name in _SET_BY_LAUNCHERS)
    is_meant_to_stay = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not by_launcher
    if "RANK" in os.environ and not is_meant_to_stay:
        threading.Thread(target=_watch, args=(os.getppid(),), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    command = parent_of(launcher)
    is_command_there = "deepspeed" in _words_of(command)
    while os.getppid() == launcher:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if is_command_there and os.getppid() == launcher and parent_of(launcher) != command:
            is_command_there = False
            os.kill(os.getpid(), signal.SIGTERM)
    print(
        f"error: the launcher of rank {os.environ['RANK']} (process {launcher}) is gone: the rank ends and saves "
        "nothing. Start again; --ckpt.load_enable goes on from the last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_CODE_RANK_LOST)


def _words_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
