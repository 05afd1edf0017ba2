"""What ranks run of an elastic resume: the state that one run leaves and another begins with, told as bits."""

from __future__ import annotations

import hashlib
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from openrlhf.checkpoint.training_state import RandomStates, capture_random_states
from openrlhf.engine.engine_state import counters_of, learning_rates_of
from openrlhf.run import training_run
from openrlhf.trainer.step import WindowStep
from openrlhf.trainer.trainer import Trainer
from tests.checkpoint.engines import whole_state
from tests.runs.cases import run

State = dict[str, Any]
"""By name: digests of whole tensors, and values that JSON could hold."""


@dataclass(frozen=True)
class Resumed:
    """What one rank has before its first step: the state, its generators, and the seed of its first forward pass."""

    state: State
    generators: State
    seed: int


def stopped_after(argv: list[str], optimizer_step: int, command: str) -> State:
    """Trains until it is asked to leave after that step, and saves; the state at that moment."""
    found: list[State] = []
    advance = Trainer._advance

    def advance_and_signal(self: Trainer, *args: Any) -> None:
        advance(self, *args)
        if self.progress.optimizer_step == optimizer_step:
            found.append(state_of(self))
            os.kill(os.getpid(), signal.SIGUSR1)

    with patch.object(Trainer, "_advance", advance_and_signal), suppress(SystemExit):
        run(argv, command=command)
    return found[0]


def resumed(argv: list[str], command: str, trains: bool) -> Resumed:
    """Goes on from the newest checkpoint, to the end or, without `trains`, to the first forward pass."""
    found: list[tuple[State, State]] = []
    seeds: list[int] = []
    emit, compute = Trainer.emit, WindowStep._forward_and_backward

    def look_and_emit(self: Trainer, event: str, *facts: Any) -> None:
        if event == "on_run_begin":
            found.append((state_of(self), bits_of_generators(capture_random_states())))
        emit(self, event, *facts)

    def note_and_compute(self: WindowStep, *args: Any) -> Tensor:
        seeds.append(torch.initial_seed())
        if not trains:
            raise SystemExit
        return compute(self, *args)

    with (
        patch.object(Trainer, "emit", look_and_emit),
        patch.object(WindowStep, "_forward_and_backward", note_and_compute),
        patch.object(training_run, "write_report"),  # a third of the seconds
        suppress(SystemExit),
    ):
        run(argv, command=command)
    return Resumed(*found[0], seeds[0])


def die_in_pass(rank: int, nth: int) -> None:
    """SIGKILL to that rank when its nth backward pass is behind it: the step has more, and no update yet."""
    if os.environ["RANK"] != str(rank):
        return
    compute, passes = WindowStep._forward_and_backward, iter(range(1, 10**6))

    def compute_and_die(self: WindowStep, *args: Any) -> Tensor:
        loss = compute(self, *args)
        if next(passes) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    WindowStep._forward_and_backward = compute_and_die  # type: ignore[method-assign]


def state_of(trainer: Trainer) -> State:
    """All that a checkpoint is to give back on any layout. Collective."""
    trained = trainer.trained
    schedule = trained.scheduler.state_dict()
    tensors = whole_state(trained.engine)
    lacking = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.isnan().any()]
    assert not lacking, f"elements that no rank holds: {lacking}"
    return {name: bits_of(tensor) for name, tensor in tensors.items()} | {
        # that it left early is said by the checkpoint alone
        "progress": asdict(replace(trainer.progress, left_early=False, evaluation_wished=False, save_wished=False)),
        "schedule": {name: schedule[name] for name in ("last_epoch", "_last_lr", "base_lrs")},
        "learning rates": learning_rates_of(trained.engine),
        "gradient norms of the guard": trained.guard.state_dict(),
        "counters": counters_of(trained.engine),
    }


def bits_of_generators(states: RandomStates) -> State:
    tensors, rest = states
    return {name: bits_of(tensor) for name, tensor in tensors.items()} | {f"{name}, rest": rest[name] for name in rest}


def bits_of(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
