"""How a process of a run ends, for whoever started it: the exit codes, in one place.

    0    the run is complete (or was, before it was started again)
    2    the user's error, told in words: a flag, a file, a row
    3    the run stopped itself, told in words: numbers that are not finite, a sample that the memory does not hold,
         saves that fail, a callback that raises
    69   another rank died, failed or hung; it is named on stderr (EX_UNAVAILABLE of sysexits.h)
    75   asked to leave by a signal, and has saved: start it again (EX_TEMPFAIL)
    130  Ctrl-C in a command that has nothing to save (128 and the signal's number, as a shell says it)
    1    a defect: a traceback says where

After 69 and 75 the run goes on where it was with `--ckpt.load_enable`.
"""

import signal
from typing import Literal

EXIT_CODE_USER_ERROR = 2
EXIT_CODE_STOPPED = 3
EXIT_CODE_RANK_LOST = 69
EXIT_CODE_PREEMPTED = 75
EXIT_CODE_INTERRUPTED = 130

Outcome = Literal["finished", "failed", "preempted"]  # of a run, for who shows runs

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

# The longest wait for a lock in a main thread. Python's handlers run between its instructions: a signal that comes when
# the thread is on its way into a wait does not wake it.
SECONDS_BETWEEN_SIGNALS = 1.0


class RankLost(RuntimeError):
    """Another rank is gone before the watchdog could know of it. Commands print it and end with 69."""


class StoppedAlone(RankLost):
    """The run stops itself as by RunStopped, on this rank alone: the others are in a collective that cannot be left.
    Nothing that ranks do together can follow. Commands print it and end with 3, the other ranks with 69."""


class RunStopped(RuntimeError):
    """The run stops itself, on all ranks alike. Says why and what is left; commands print it without a traceback."""
