"""Preemption: SIGTERM and SIGUSR1 ask the run to save and leave; asking again means now.

The signals that arrive depend on the launcher:

- torchrun: SIGTERM to torchrun goes on to every rank, which then has 30 s (`--shutdown-timeout`) until SIGKILL.
  torchrun itself ends with its own code, not with 75; SIGUSR1 kills it unless TORCHELASTIC_SIGNALS_TO_HANDLE names it.
- deepspeed: its `launch` process sends SIGTERM to one rank after another, each with 30 s until SIGKILL, and ends
  with 1; the `deepspeed` command itself passes nothing on. A signal to any rank is enough here, since all ranks agree.
- srun: every rank gets the signal, and srun ends with 75.

A launcher and a scheduler often both pass on the same signal: within two seconds it counts as one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, PREEMPTION_SIGNALS
from openrlhf.parallel.collectives import any_rank
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.saving import Saving

if TYPE_CHECKING:
    from openrlhf.trainer.trainer import Trainer

SECONDS_OF_ONE_REQUEST = 2.0


class Preempted(SystemExit):
    """The run was asked to leave, and has saved; a scheduler can start it again with `--ckpt.load_enable`."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_PREEMPTED)


class Preemption(Callback):
    """During the loop, remembers that this process was asked to leave; then all ranks save and leave together."""

    def __init__(self, saving: Saving):
        self._saving = saving
        self._asked_at: float | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_run_begin(self, trainer: Trainer) -> None:
        is_main_thread = threading.current_thread() is threading.main_thread()  # Python lets no other one listen
        for number in PREEMPTION_SIGNALS if is_main_thread else ():
            self._previous_handlers[number] = signal.signal(number, self._note)

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if not any_rank(self._asked_at is not None, trainer.strategy.groups.control):
            return
        self._saving.save(trainer)
        self._saving.wait(trainer)
        done = "saved" if self._saving.writes_checkpoints else "no training checkpoint is written (--ckpt.disable_ds)"
        trainer.strategy.print(f"asked to leave after step {trainer.progress.optimizer_step}: {done}.")
        raise Preempted

    def on_exit(self, trainer: Trainer, error: BaseException | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        elif time.monotonic() - self._asked_at > SECONDS_OF_ONE_REQUEST:
            os._exit(EXIT_CODE_PREEMPTED)
