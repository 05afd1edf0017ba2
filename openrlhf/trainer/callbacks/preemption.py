"""Preemption: SIGTERM, SIGUSR1, SIGHUP and Ctrl-C ask the run to save and leave; asking again means now.

The signals that arrive depend on the launcher:

- torchrun: SIGTERM to torchrun goes on to every rank, which then has 30 s (`--shutdown-timeout`) until SIGKILL.
  torchrun itself ends with its own code, not with 75; SIGUSR1 kills it unless TORCHELASTIC_SIGNALS_TO_HANDLE names it.
- deepspeed: its `launch` process sends SIGTERM to one rank after another, each with 30 s until SIGKILL, and ends
  with 1; the `deepspeed` command itself passes nothing on, but its end asks the ranks to leave
  (`openrlhf/watchdog/launcher.py`). A signal to any rank is enough here, since all ranks agree.
- srun: every rank gets the signal, and srun ends with 75.

A launcher and a scheduler often both pass on the same signal: within two seconds it counts as one. A terminal sends
Ctrl-C to every rank, and a launcher may pass it on at once: a second Ctrl-C counts after half a second.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from torch.distributed import ProcessGroup

from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, PREEMPTION_SIGNALS
from openrlhf.parallel.collectives import any_rank
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.saving import SavesFailed, Saving

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

SECONDS_OF_ONE_REQUEST = 2.0
SECONDS_OF_ONE_CTRL_C = 0.5
_listening: list[LeaveRequests] = []  # those of this process that have begun, and not ended


class Preempted(SystemExit):
    """The run was asked to leave, and has saved; a scheduler can start it again with `--ckpt.load_enable`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_PREEMPTED)


class LeaveRequests:
    """While it lasts (`with`), notes the first signal that asks this process to leave; a second one ends it at once.

    A request that has come to the one around it counts here too.

    Args: done_first: what is done before the process leaves; told on rank 0 when it is asked.
    """

    def __init__(self, done_first: str):
        self._done_first = done_first
        self._first: tuple[int, float] | None = None  # the signal, and when it came
        self._previous_handlers: dict[int, Any] = {}

    @property
    def has_come(self) -> bool:
        return self._first is not None

    def __enter__(self) -> LeaveRequests:
        _listening.append(self)
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python lets no other one listen
        for number in PREEMPTION_SIGNALS if is_main_thread else ():
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # as SIGHUP under nohup
                self._previous_handlers[number] = signal.signal(number, self._note)
                outer = getattr(before, "__self__", None)
                self._first = outer._first if isinstance(outer, LeaveRequests) else self._first
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self in _listening:  # a loop may end before it has begun
            _listening.remove(self)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
            if os.environ.get("RANK", "0") == "0":  # written past Python's buffer, which may be in use right now
                words = f"{signal.Signals(number).name}: {self._done_first}, then the run leaves; once more: at once.\n"
                with suppress(OSError):
                    os.write(2, words.encode())
            return
        are_both_ctrl_c = number == self._first[0] == signal.SIGINT
        if now - self._first[1] > (SECONDS_OF_ONE_CTRL_C if are_both_ctrl_c else SECONDS_OF_ONE_REQUEST):
            os._exit(EXIT_CODE_PREEMPTED)


def is_asked_to_leave(group: ProcessGroup | None) -> bool:
    """Whether any rank of a run has been asked, in its loop; all ranks ask together. Once it is so, it stays so."""
    return any_rank(any(requests.has_come for requests in _listening), group)


class Preemption(Callback):
    """During the loop, remembers that this process was asked to leave; then all ranks save and leave together.

    It comes before evaluations, which may take longer than the time until SIGKILL: what is due is done first of all
    when the run goes on (`TrainingProgress.left_early`).
    """

    def __init__(self, saving: Saving):
        self._saving = saving
        self._requests = LeaveRequests("this step is finished and saved")

    def on_run_begin(self, trainer: Trainer) -> None:
        self._requests.__enter__()

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.leave_if_asked(trainer, is_early=True)

    def leave_if_asked(self, trainer: Trainer, is_early: bool) -> None:
        """All ranks call. Args: is_early: what is due after this step may not be done yet."""
        if not is_asked_to_leave(trainer.strategy.groups.control):
            return
        step = trainer.progress.optimizer_step
        trainer.progress = replace(
            trainer.progress,
            left_early=is_early,
            evaluation_wished=trainer.wishes.evaluation,
            save_wished=trainer.wishes.save,
            stop_reason=trainer.wishes.stop_reason,
            finished=trainer.wishes.stop_reason is not None and not is_early,  # it would have been the last one
        )
        self._saving.save(trainer)
        if self._saving.wait(trainer):
            raise SavesFailed(f"asked to leave after step {step}, which could not be saved: see the warning above.")
        done = "saved" if self._saving.writes_checkpoints else "no training checkpoint is written (--ckpt.disable_ds)"
        trainer.strategy.print(f"asked to leave after step {step}: {done}.")
        raise Preempted

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        self._requests.__exit__()


class PreemptionAfterEvaluating(Callback):
    """Looks again where this step has been evaluated: the request may have come meanwhile, and a step takes long."""

    def __init__(self, preemption: Preemption):
        self._preemption = preemption

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.progress.last_eval_step == trainer.progress.optimizer_step:
            self._preemption.leave_if_asked(trainer, is_early=False)
