"""Checkpoints as scripts ask for them: one checkpointer for each folder, saving by name, loading the newest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf.checkpoint.checkpointer import Checkpointer, FoundCheckpoint
from openrlhf.checkpoint.identity import RunIdentity, check_same_run, evaluates_otherwise, read_identity, same_setting
from openrlhf.checkpoint.lease import owning_together
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.config import CkptConfig
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import rank_in
from openrlhf.parallel.groups import ProcessGroups

if TYPE_CHECKING:
    from openrlhf.strategy import DeepspeedStrategy

_BYTES_PER_GIB = 2**30


class Checkpointers:
    """The checkpointer of each folder; every rank asks for the same ones in the same order."""

    def __init__(self, groups: ProcessGroups, timeout_seconds: float):
        self._groups = groups
        self._timeout_seconds = timeout_seconds
        self._of_folders: dict[Path, Checkpointer] = {}

    def of(
        self, folder: str | Path, max_num: int = 3, max_gib: float | None = None, in_background: bool = True
    ) -> Checkpointer:
        """The checkpointer of `folder`; from now on it keeps these limits."""
        place = Path(folder).resolve()  # a script may name one folder in two ways
        if place not in self._of_folders:
            self._of_folders[place] = Checkpointer(
                CheckpointStore(folder), self._groups.control, timeout_seconds=0.9 * self._timeout_seconds
            )
        checkpointer = self._of_folders[place]
        checkpointer.store.set_limits(max_num, max_bytes_of(max_gib))
        checkpointer.in_background = in_background
        return checkpointer

    @contextmanager
    def owning_folders(
        self, ckpt: CkptConfig, say: Callable[[str], None], writes: bool = True, must_save: bool | None = None
    ) -> Iterator[None]:
        """While it lasts, no other run may write into the folders of this one.

        Args:
            writes: it saves checkpoints.
            must_save: it does so before its end; None: as the settings say.

        Raises UserError, on every rank, where another run holds them, and where ranks do not share that of the saves.
        """
        with owning_together(ckpt.folders(), self._groups.control, say):
            if writes and not ckpt.disable_ds and (problem := self.of(ckpt.path).problem_of_folder()):
                if ckpt.saves_along_the_way if must_save is None else must_save:
                    raise UserError(problem)
                say(f"warning: where a save is asked for, by a callback or a signal, it will fail: {problem}")
            yield


def max_bytes_of(max_gib: float | None) -> int | None:
    """A store limit as the settings say it."""
    return None if max_gib is None else int(max_gib * _BYTES_PER_GIB)


def set_earlier_run_aside(
    checkpointer: Checkpointer, say: Callable[[str], None], own_run_id: str | None = None
) -> None:
    """A new run among the checkpoints of another would one day resume from the wrong one.

    Args: own_run_id: of the new run, which may have checkpoints there: a script may train several times in turn.
    """
    if moved_to := checkpointer.move_to_earlier_run(own_run_id):
        say(
            f"{checkpointer.store.root} holds checkpoints of an earlier run: they are in {moved_to} now. "
            "(--ckpt.load_enable, in a script strategy.load_ckpt, goes on with a run.)"
        )


def save_by_name(
    checkpointer: Checkpointer,
    trained: TrainedModel,
    identity: RunIdentity,
    tag: str,
    client_state: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """A save by a script of the user's own: on disk, or an OSError, when this returns."""
    optimizer_step = checkpointer.store.step_of(tag)
    if optimizer_step is None:
        raise UserError(f"a checkpoint is named global_step<N>, as in global_step20; save_ckpt was given tag={tag!r}.")
    progress = TrainingProgress(
        optimizer_step=optimizer_step, consumed_samples=int(client_state.get("consumed_samples", 0))
    )
    states = {"script": client_state}
    if problem := checkpointer.problem_of_state(trained.engine):
        raise UserError(problem)
    with owning_together([checkpointer.store.root], checkpointer.group):
        if problem := checkpointer.problem_of_folder():
            raise UserError(problem)
        if not checkpointer.holds_own_run:
            set_earlier_run_aside(checkpointer, say, trained.run_id)
        report = checkpointer.save(trained.engine, progress, identity, states, scheduler=trained.scheduler)
        report = checkpointer.wait() if not report.problems else report
    if report.problems:
        raise OSError("\n".join(report.problems))


def newest(checkpointer: Checkpointer, say: Callable[[str], None], name: str | None = None) -> FoundCheckpoint | None:
    """The newest whole checkpoint, or the one of that name; None where there is no checkpoint at all.

    Raises UserError where there are checkpoints but none is whole, or none has the name.
    """
    found, problems = checkpointer.find(name)
    if found is None and checkpointer.store.candidates():
        if name and not (checkpointer.store.root / name).is_dir():
            there = ", ".join(path.name for path in checkpointer.store.candidates())
            raise UserError(f"{checkpointer.store.root} has no checkpoint {name}. It has {there}.")
        if theirs := [path for path in checkpointer.store.candidates() if any(path.glob("*model_states.pt"))]:
            raise UserError(_of_deepspeed(theirs[0]))
        raise UserError(
            f"no whole checkpoint is left in {checkpointer.store.root}. Give another --ckpt.path to start anew.",
            *problems,
        )
    for problem in problems:
        say(f"warning: {problem}")
    return found


def starts_anew(folder: str, base: str | None) -> str:
    """The sentence for a run that was to go on, and has no checkpoint to go on from. Args: base: the model's name."""
    return f"no checkpoint in {folder}: the run starts from {base or 'the model as it is'}."


def _of_deepspeed(path: Path) -> str:
    exported = path.with_name(f"{path.name}_hf")
    where = str(exported) if exported.is_dir() else f"{exported.name}, which OpenRLHF writes with --save_hf_ckpt"
    return (
        f"{path} is a checkpoint of DeepSpeed's, as OpenRLHF writes them, which is not read here. Start from the model "
        f"of that step: --model.model_name_or_path {where}. Give another --ckpt.path, or leave --ckpt.load_enable out."
    )


def load_found(
    checkpointer: Checkpointer,
    trained: TrainedModel,
    found: FoundCheckpoint,
    identity: RunIdentity | None,
    allow_mismatch: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Sets engine, schedule and guard to a checkpoint that is known to be whole; the states it holds for scripts.

    Args: identity: of the run that goes on; None: a script does not say what it is.
    Raises UserError where the checkpoint is of another run, and `allow_mismatch` does not say to go on.
    """
    saved = read_identity(found.path)
    if identity is not None:
        for sentence in check_same_run(saved, identity, str(found.path), allow_mismatch):
            say(f"warning: {sentence}")
    is_same_optimizer = identity is None or same_setting("optim", saved, identity)
    if not is_same_optimizer:
        say("the optimizer begins anew: its state and its learning rates are none of the checkpoint's.")
    loaded = checkpointer.load(trained.engine, found, trained.scheduler, is_same_optimizer)
    progress = loaded.progress
    if identity is not None and progress.last_eval_step is not None and evaluates_otherwise(saved, identity):
        progress = progress.without_evaluations()
        if rank_in(checkpointer.group) == 0:
            checkpointer.store.set_best_aside()
        say("the evaluation has other rows from here on: the best loss before counts no more, best.json is set aside.")
    trained.restored_progress, trained.run_id = progress, saved.run_id
    trained.restored_layout = loaded.client_state.get("layout")
    if "guard" in loaded.client_state:
        trained.guard.load_state_dict(loaded.client_state["guard"])
    return asdict(progress) | loaded.client_state.get("script", {})


def load_best_if_wished(
    strategy: DeepspeedStrategy, trained: TrainedModel, progress: TrainingProgress, ckpt: CkptConfig
) -> None:
    """The weights of the lowest eval_loss, where a checkpoint holds them: by `ckpt.export_best`; all ranks call."""
    if not ckpt.export_best:
        return
    step, checkpointer = progress.best_eval_step, strategy.checkpointers.of(ckpt.path)
    name = checkpointer.store.name_of(step or 0)
    found, problems = checkpointer.find(name)
    if found is None:
        said = "".join(f" ({problem})" for problem in problems)
        strategy.print(f"the best step, {step}, is not saved{said}: the model stays the last one.")
        return
    checkpointer.load(trained.engine, found, trained.scheduler, is_same_optimizer=False)  # the weights alone
    trained.went_back_to_step = step
    strategy.print(f"the model is the best one, that after step {step}.")
