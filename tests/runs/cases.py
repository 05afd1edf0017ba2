"""Whole runs of the command line inside a rank of a pool: what launching would do, without its ten seconds."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any


def _main(command: str) -> Any:
    return importlib.import_module(f"openrlhf.cli.{command}").main


def run(argv: list[str], env: dict[str, str] | None = None, command: str = "train_sft") -> None:
    """`python -m openrlhf.cli.<command> argv`."""
    os.environ.update(env or {})
    _main(command)(argv)


def num_models_as_built(argv: list[str]) -> list[int]:
    """How many models that are trained are in memory whenever a run begins to build."""
    import gc

    from openrlhf.models import Actor
    from openrlhf.run.training_run import TrainingRun

    build, found = TrainingRun.build, []

    def build_and_count(self: TrainingRun) -> None:
        found.append(sum(isinstance(thing, Actor) and thing.trained is not None for thing in gc.get_objects()))
        build(self)

    TrainingRun.build = build_and_count  # type: ignore[method-assign]
    try:
        _main("train_sft")(argv)
    finally:
        TrainingRun.build = build  # type: ignore[method-assign]
    return found


def activities_while_judging(argv: list[str]) -> list[tuple[str, bool]]:
    """Where the ranks wait for the judge: the work that the watchdog knows of, and whether it may take long."""
    from openrlhf.run import answering
    from openrlhf.run.answering import Answering

    begin, agree, trainers, found = Answering.on_run_begin, answering.gather_problems, [], []

    def begin_noted(self: Answering, trainer: Any) -> None:
        trainers.append(trainer)
        begin(self, trainer)

    def agree_noted(*args: Any) -> tuple[str, ...]:
        activity = trainers[0].strategy.watchdog._activity
        found.append((activity.what, activity.is_long))
        return agree(*args)

    Answering.on_run_begin, answering.gather_problems = begin_noted, agree_noted  # type: ignore[method-assign]
    try:
        _main("train_sft")(argv)
    finally:
        Answering.on_run_begin, answering.gather_problems = begin, agree  # type: ignore[method-assign]
    return found


def run_with_an_answer_that_fails(argv: list[str]) -> tuple[int, str]:
    """As `run_as_command`, where rank 1 fails before it answers a prompt."""
    from openrlhf.run.answering import Answering

    answers_of = Answering._answers_of

    def failing(self: Answering, model: Any, groups: Any) -> Any:
        if groups.data_rank == 1:
            raise KeyError("no kernel")
        return answers_of(self, model, groups)

    Answering._answers_of = failing  # type: ignore[method-assign]
    try:
        return run_as_command(argv)
    finally:
        Answering._answers_of = answers_of  # type: ignore[method-assign]


def run_until_asked_to_leave(argv: list[str], optimizer_step: int, rank: int, command: str = "train_sft") -> int:
    """The same, with SIGUSR1 sent to `rank` after `optimizer_step`; the exit code."""
    from openrlhf.trainer.trainer import Trainer

    advance = Trainer._advance

    def advance_and_signal(self: Trainer, *args: Any) -> None:
        advance(self, *args)
        if self.progress.optimizer_step == optimizer_step and self.strategy.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    Trainer._advance = advance_and_signal  # type: ignore[method-assign]
    try:
        _main(command)(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        Trainer._advance = advance  # type: ignore[method-assign]
    return 0


def tuned(work: Callable[..., Any], *args: Any) -> Any:
    """The same, where a run may choose of two layouts, and the second computes its steps in half the time."""
    from openrlhf.batching import StepLayout
    from openrlhf.trainer import CommandTrainer
    from openrlhf.trainer.layout_tuner import LayoutTuner

    layouts, told = (StepLayout(128), StepLayout(256, recomputes=True)), LayoutTuner.after_step

    def after_step(self: LayoutTuner, seconds: float, num_tokens: int) -> None:
        is_second = self._steps is not None and self._layout == layouts[1]
        told(self, (0.5 if is_second else 1.0) * num_tokens, num_tokens)

    asked = property(lambda trainer: layouts, lambda trainer, chosen: None)  # whatever the run would choose
    CommandTrainer.step_layouts, LayoutTuner.after_step = asked, after_step  # type: ignore[assignment,method-assign]
    try:
        return work(*args)
    finally:
        CommandTrainer.step_layouts, LayoutTuner.after_step = (), told  # type: ignore[method-assign]


def run_as_command(argv: list[str], command: str = "train_sft") -> tuple[int, str]:
    """What a user sees of a command that fails: the exit code and standard error."""
    import contextlib
    import io
    import sys

    from openrlhf.cli.entry import run_command

    errors = io.StringIO()
    sys.argv = [command, *argv]
    try:
        with contextlib.redirect_stderr(errors):
            run_command(_main(command))
    except SystemExit as leaving:
        return int(leaving.code or 0), errors.getvalue()
    return 0, errors.getvalue()


def run_with_more_flags_on_rank_1(argv: list[str], more: list[str]) -> tuple[int, str]:
    """As `run_as_command`; the ranks are not started alike."""
    import torch.distributed as dist

    return run_as_command([*argv, *more] if dist.get_rank() == 1 else argv)


def run_with_a_pair_of_nan(argv: list[str], name: str, command: str) -> tuple[int, str]:
    """The exit code and all that is said of a run in which the model has no number for a pair's chosen answer."""
    import contextlib
    import io
    import math

    from openrlhf.objectives import Scorer

    says = "sequence_sums" if command == "train_dpo" else "sequence_values"
    of_sequences, words = getattr(Scorer, says), io.StringIO()

    def spoilt(self: Scorer, *args: Any) -> Any:
        values = of_sequences(self, *args)
        factors = values.new_ones(len(values))
        if name in self.batch.unit_names:
            factors[2 * self.batch.unit_names.index(name)] = math.nan
        return values * factors

    setattr(Scorer, says, spoilt)
    try:
        with contextlib.redirect_stdout(words):
            code, errors = run_as_command(argv, command)
    finally:
        setattr(Scorer, says, of_sequences)
    return code, words.getvalue() + errors


def said_by_run(argv: list[str], command: str = "train_sft") -> str:
    """What a run prints."""
    import contextlib
    import io

    words = io.StringIO()
    with contextlib.redirect_stdout(words):
        _main(command)(argv)
    return words.getvalue()


def reference_lives_in_training(argv: list[str]) -> bool:
    """Of train_dpo: whether the reference that it has loaded is in memory when the model that is trained is built."""
    import weakref

    from openrlhf.run import dpo_run

    load, build = dpo_run.load_reference, dpo_run.DPORun.build_model
    loaded: list[weakref.ref] = []
    lives: list[bool] = []

    def load_and_remember(*args: Any) -> Any:
        model = load(*args)
        loaded.append(weakref.ref(model.model))
        return model

    def look_and_build(self: dpo_run.DPORun) -> Any:
        lives.extend(one() is not None for one in loaded)
        return build(self)

    dpo_run.load_reference, dpo_run.DPORun.build_model = load_and_remember, look_and_build  # type: ignore[method-assign]
    try:
        _main("train_dpo")(argv)
    finally:
        dpo_run.load_reference, dpo_run.DPORun.build_model = load, build  # type: ignore[method-assign]
    (found,) = lives
    return found


def moments_of_writing(argv: list[str]) -> list[tuple[str, str, bool]]:
    """Each point of a save or an export that the main thread of a run passes: its name, what the rank says that it
    does, and whether that is announced as work that may take long."""
    import threading

    from openrlhf.checkpoint import checkpointer, export, store, tensor_file, training_state
    from openrlhf.cli.train_sft import main
    from openrlhf.watchdog.watchdog import Watchdog

    moments: list[tuple[str, str, bool]] = []
    watching: list[Watchdog] = []
    make = Watchdog.__init__

    def note(name: str) -> None:
        if threading.current_thread() is threading.main_thread():
            activity = watching[-1]._activity
            moments.append((name, activity.what, activity.is_long))

    def make_and_remember(self: Watchdog, *args: Any, **kwargs: Any) -> None:
        watching.append(self)
        make(self, *args, **kwargs)

    modules: list[Any] = [checkpointer, export, store, tensor_file, training_state]
    real = checkpointer.fault_point
    Watchdog.__init__ = make_and_remember  # type: ignore[method-assign]
    try:
        for module in modules:
            module.fault_point = note
        main(argv)
    finally:
        Watchdog.__init__ = make  # type: ignore[method-assign]
        for module in modules:
            module.fault_point = real
    return moments


def run_where_samples_fit(argv: list[str], num_tokens: int) -> tuple[int, str]:
    """`run_as_command` on a machine that has memory for micro-batches of so many tokens."""
    from unittest.mock import patch

    import torch

    from openrlhf.trainer.step import WindowStep

    compute = WindowStep._forward_and_backward

    def limited(self: WindowStep, scorer: Any, *more: Any) -> Any:
        if scorer.batch.num_tokens > num_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(self, scorer, *more)

    with patch.object(WindowStep, "_forward_and_backward", limited):
        return run_as_command(argv)


def run_of_which_a_rank_is_short(argv: list[str], rank: int, num_passes: int) -> tuple[int, str]:
    """`run_as_command` where one rank, after so many passes, runs out of memory before it has sent anything."""
    from unittest.mock import patch

    import torch
    import torch.distributed as dist

    from openrlhf.trainer import shortage
    from openrlhf.trainer.step import WindowStep

    compute, passes = WindowStep._forward_and_backward, iter(range(1, 10**6))

    def short(self: WindowStep, *args: Any) -> Any:
        if dist.get_rank() == rank and next(passes) == num_passes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(self, *args)

    with (
        patch.object(WindowStep, "_forward_and_backward", short),
        patch.object(shortage, "SECONDS_TO_FAIL_TOGETHER", 1.0),  # nobody else will fail
    ):
        return run_as_command(argv)


def run_whose_update_fails(argv: list[str], optimizer_step: int) -> tuple[int, str]:
    """`run_as_command` where memory runs out in an update, once its weights are changed."""
    from unittest.mock import patch

    import torch

    from openrlhf.engine.trained_model import TrainedModel

    update, updates = TrainedModel.step, iter(range(1, 10**6))

    def failing(self: TrainedModel) -> Any:
        outcome = update(self)
        if next(updates) == optimizer_step:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return outcome

    with patch.object(TrainedModel, "step", failing):
        return run_as_command(argv)


def run_beside_free_memory(
    argv: list[str], device_bytes: int, host_bytes: int | None = None, device: str = "cpu", num_ranks: int = 0
) -> tuple[int, str]:
    """`run_as_command` on machines that say to have so much memory left for each rank, of which there may be more."""
    from unittest.mock import patch

    from openrlhf.run import layout_choice
    from openrlhf.run.memory_estimate import Memory

    with (
        patch.object(Memory, "free_here", lambda on_cpu: Memory(on_cpu, device_bytes, host_bytes)),
        patch.object(layout_choice, "usable_device_type", lambda: device),
        patch.dict(os.environ, {"WORLD_SIZE": str(num_ranks)} if num_ranks else {}),
    ):
        return run_as_command(argv)


def run_in_less_address_space(
    in_pieces: list[str], whole: list[str], limited: list[str]
) -> tuple[int, int, tuple[int, str]]:
    """Two runs, and a third that, once its model stands, may grow half way between what the two have grown by then.

    Returns the address space that the first two have grown by, in MiB, and the end of the third.
    """
    import gc
    import resource
    from pathlib import Path
    from unittest.mock import patch

    from openrlhf.trainer.trainer import Trainer

    train, grown = Trainer.run, []

    def now(name: str) -> int:
        (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
        return int(line.split()[1]) // 1024

    def train_and_measure(self: Trainer, *args: Any) -> None:
        gc.collect()
        before = now("VmSize")
        train(self, *args)
        grown.append(now("VmPeak") - before)

    def train_in_less(self: Trainer, *args: Any) -> None:
        gc.collect()
        usual, limit = resource.getrlimit(resource.RLIMIT_AS), (now("VmSize") + sum(grown) // 2) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, usual[1]))
        try:
            train(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, usual)

    with patch.object(Trainer, "run", train_and_measure):
        run(in_pieces)
        run(whole)
    with patch.object(Trainer, "run", train_in_less):
        ended = run_as_command(limited)
    return *grown, ended
