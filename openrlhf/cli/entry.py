"""How every command begins and ends: what the user can mend is told in words, once; exit codes as documented."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from openrlhf.cli.process_list import hide_from_process_list
from openrlhf.cli.standard_streams import make_standard_streams_last
from openrlhf.config.sources import secrets_in
from openrlhf.engine.launchers import adopt_launcher, prepare_cuda
from openrlhf.errors import UserError, first_line_of, is_out_of_memory
from openrlhf.exit_codes import (
    EXIT_CODE_INTERRUPTED,
    EXIT_CODE_PREEMPTED,
    EXIT_CODE_RANK_LOST,
    EXIT_CODE_STOPPED,
    EXIT_CODE_USER_ERROR,
    PREEMPTION_SIGNALS,
    RankLost,
    RunStopped,
    StoppedAlone,
)
from openrlhf.processes import start_of
from openrlhf.watchdog.launcher import end_with_launcher

_TOLD = "openrlhf-told-"
_SECONDS_TOLD = 60.0
_PACKAGE = Path(__file__).resolve().parents[1]
_MORE_MEMORY = (
    "What helps: other processes' memory given back; a higher `ulimit -v` where one is set, and `ulimit -u` where a "
    "thread cannot start; a smaller model or a smaller batch; in a training a higher --ds.zero_stage, "
    "--ds.adam_offload, --ds.lora.rank. `python -m openrlhf.cli.estimate_memory` says what a training takes. "
    "Checkpoints are intact."
)


def run_command(command: Callable[[Sequence[str]], None]) -> None:
    """Runs `command` with the words of the command line. Ends with 2 for a UserError, 3 for a RunStopped and for memory
    that runs out where nothing smaller can be tried, 69 for a RankLost, 130 for Ctrl-C that the command does not take
    itself."""
    hide_from_process_list(secrets_in(sys.argv))
    make_standard_streams_last()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        adopt_launcher()
        prepare_cuda()
        command(sys.argv[1:])
    except UserError as error:
        _tell(error.problems)
        sys.exit(EXIT_CODE_USER_ERROR)
    except (RunStopped, StoppedAlone) as error:
        _tell(str(error).splitlines())
        sys.exit(EXIT_CODE_STOPPED)
    except RankLost as error:
        _tell(str(error).splitlines())
        sys.exit(EXIT_CODE_RANK_LOST)
    except KeyboardInterrupt:
        print("ended by Ctrl-C", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE_INTERRUPTED)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _tell([f"memory ran out {_place_of(error)}: {first_line_of(error)}", _MORE_MEMORY])
        sys.exit(EXIT_CODE_STOPPED)


def run_training(command: Callable[[Sequence[str]], None]) -> None:
    """`run_command` for a command that trains, as all that a process does."""
    leave_when_asked()
    run_command(command)
    from openrlhf.engine.launch import leave_ranks

    leave_ranks()  # here and not where a run ends: DeepSpeed keeps its groups for the next run of a process


@contextmanager
def loading() -> Iterator[None]:
    """While a command loads its modules: what they make lives as long as the process, and is never garbage.

    Python would search the growing heap six times meanwhile, and all of it again in each later search: 0.7 s of a start
    (`python -m benchmarks.start`). It searches again when this ends, and leaves out what was made until then.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def leave_when_asked() -> None:
    """Until training begins, and after it, there is nothing to save: a signal that asks to leave ends the process.

    A signal that the process was started to ignore, as SIGHUP under nohup, stays ignored. So does the end of a launcher
    end the process; see `end_with_launcher`.
    """
    for number in PREEMPTION_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(EXIT_CODE_PREEMPTED))
    end_with_launcher()


def _place_of(error: Exception) -> str:
    """The innermost function of ours that was at work."""
    frames = [(Path(frame.filename).resolve(), frame) for frame in traceback.extract_tb(error.__traceback__)]
    path, frame = [(path, frame) for path, frame in frames if _PACKAGE in path.parents][-1]
    return f"in {frame.name} ({path.relative_to(_PACKAGE.parent)}:{frame.lineno})"


def _tell(problems: Sequence[str]) -> None:
    """A problem that several ranks of a machine have met is told by the first of them alone."""
    text = "\n".join(f"  {problem}" for problem in problems)
    if not _is_told_already(text):
        rank = os.environ.get("RANK", "0")
        head = "error:" if rank == "0" else f"error (told by rank {rank}):"
        print(f"{head}\n{text}", file=sys.stderr, flush=True)


def _is_told_already(text: str) -> bool:
    """By another rank of this launch, on this machine. Ranks may not have met yet: a small folder stands for the word.

    A launch is known by its launcher, the parent of all its ranks, and by the port and number of its start. A shell may
    be the parent of several launches: a rank that finds its own number there begins the next one, and what is older
    than a minute is of an earlier one.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    launch = [os.getppid(), start_of(os.getppid())]
    launch += [
        os.environ.get(name, "") for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    ]
    digest = hashlib.blake2b(f"{launch} {text}".encode(), digest_size=16).hexdigest()
    told = Path(tempfile.gettempdir()) / f"{_TOLD}{digest}"
    mine = told / os.environ.get("RANK", "0")
    with suppress(OSError):
        for note in told.parent.glob(f"{_TOLD}*"):
            if (note == told and mine.exists()) or time.time() - note.stat().st_mtime > _SECONDS_TOLD:
                shutil.rmtree(note, ignore_errors=True)
    is_told = False
    try:
        told.mkdir()
    except FileExistsError:
        is_told = True
    except OSError:
        return False  # rather twice than never
    with suppress(OSError):
        mine.touch()
    return is_told
