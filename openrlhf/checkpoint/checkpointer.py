"""Saving and resuming a run, on all ranks together.

A save on every rank, in this order:

1. the save before it is waited for;
2. rank 0 checks the free space and makes the folder aside; all agree that it could;
3. every rank copies its share to the CPU — the loop waits for no more than this;
4. in a thread, every rank writes and flushes its files and leaves a report;
5. in a thread, rank 0 collects the reports, writes the manifest, renames, points `latest` there, rotates.

Where a step fails on any rank, all ranks learn of it at 1 or 2 of the next save (or in `wait`), the folder
aside is removed, the checkpoints before it are untouched, and nobody is left waiting. The folder must be
shared by all ranks.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from openrlhf.checkpoint.agreement import from_all_ranks, num_ranks, problems_of_all_ranks, this_rank
from openrlhf.checkpoint.background import BackgroundJob, RankReport, collect_reports
from openrlhf.checkpoint.copy_room import CopyRoom
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.identity import RunIdentity, check_same_run
from openrlhf.checkpoint.manifest import saved_identity, verify
from openrlhf.checkpoint.optimizer_states import size_bytes_to_save
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.checkpoint.training_state import (
    LoadedState,
    TrainingState,
    copy_training_state,
    load_training_state,
    read_progress,
    write_training_state,
)

_SMALL_FILES_BYTES = 1 << 20  # randomness, JSON and headers of one rank


@dataclass(frozen=True)
class SaveReport:
    """How the saves that have ended went; the same on all ranks.

    problems: of failed saves, and of rotations, since the last report.
    num_failures_in_a_row: 0 after a good save.
    """

    problems: tuple[str, ...]
    num_failures_in_a_row: int


@dataclass(frozen=True)
class FoundCheckpoint:
    """The checkpoint to go on from, and how far it is."""

    path: Path
    progress: TrainingProgress


class Checkpointer:
    """Writes a run's training state into a store and reads it back. All ranks call every method together."""

    def __init__(
        self,
        store: CheckpointStore,
        group: dist.ProcessGroup | None = None,
        in_background: bool = True,
        timeout_seconds: float = 1800.0,
    ):
        """Args:
        group: gloo, of all ranks (None: the default group, which must be gloo). Its timeout should be above
            `timeout_seconds`.
        in_background: let training go on while files are written. Costs the memory of the copy, on the CPU.
        timeout_seconds: for all ranks to have written their files.
        """
        self.store = store
        self._group = group
        self._in_background = in_background
        self._timeout_seconds = timeout_seconds
        self._writing: BackgroundJob[None] | None = None
        self._finishing: BackgroundJob[list[str]] | None = None
        self._room = CopyRoom()
        self._must_stop = threading.Event()
        self._num_failures_in_a_row = 0
        self._aside: Path | None = None  # the folder of the save that is being written

    def save(
        self,
        engine: Any,
        progress: TrainingProgress,
        identity: RunIdentity,
        client_state: dict[str, Any] | None = None,
        eval_loss: float | None = None,
        scheduler: Any = None,
    ) -> SaveReport:
        """Save the state after `progress.optimizer_step`; see the module's text for what is waited for.

        Args:
            client_state: the caller's own, of JSON values; `load` gives it back.
            eval_loss: at this step, if it was evaluated: the checkpoint with the lowest is kept.
            scheduler: the learning rate schedule, if the engine does not hold it.

        Raises nothing that the disk can cause: the report says it.
        """
        earlier = self.wait()
        aside, problems = self._begin(engine, progress.optimizer_step)
        if aside is None:
            self._num_failures_in_a_row += 1
            return SaveReport(earlier.problems + problems, self._num_failures_in_a_row)
        state, problem = self._copy(engine, progress, client_state, scheduler)
        self._start(aside, state, problem, identity, eval_loss)
        if self._in_background:
            return earlier
        now = self.wait()
        return SaveReport(earlier.problems + now.problems, now.num_failures_in_a_row)

    def wait(self) -> SaveReport:
        """Wait until the last save is in place, or has failed."""
        if self._writing is None:
            return SaveReport((), self._num_failures_in_a_row)
        _, problem = self._writing.wait()
        problems = problems_of_all_ranks(problem, self._group)
        rotation_problems: list[str] = []
        if problems:
            self._must_stop.set()
        if self._finishing is not None:
            found, finishing_problem = self._finishing.wait()
            rotation_problems = found or []
            problems = problems or ((finishing_problem,) if finishing_problem else ())
            if problems and self._aside is not None:
                self.store.discard(self._aside)  # again: a rank may still have been writing when it was first removed
        self._writing = self._finishing = None
        problems, rotation_problems = from_all_ranks((problems, rotation_problems), self._group)[0]
        self._num_failures_in_a_row = self._num_failures_in_a_row + 1 if problems else 0
        return SaveReport((*problems, *rotation_problems), self._num_failures_in_a_row)

    def abandon(self) -> None:
        """Give up the save that is being written: another rank may be gone. No collective; the checkpoints stay."""
        self._must_stop.set()
        if self._finishing is not None:
            self._finishing.wait()

    def find(self) -> tuple[FoundCheckpoint | None, list[str]]:
        """The newest whole checkpoint, every byte verified, and what is wrong with the newer ones.

        Leftovers of a crash are cleaned first. The ranks divide the reading.
        """
        rank, count = this_rank(self._group), num_ranks(self._group)
        cleaned = self.store.clean_leftovers() if rank == 0 else []
        candidates, notes = from_all_ranks((self.store.candidates(), cleaned), self._group)[0]
        for path in candidates:
            shares = from_all_ranks(verify(path, rank, count), self._group)
            problems = list(dict.fromkeys(problem for share in shares for problem in share))
            if not problems:
                return FoundCheckpoint(path, read_progress(path)), notes
            self.store.mark_damaged(path.name)
            notes = notes + problems
        return None, notes

    def load(
        self,
        engine: Any,
        found: FoundCheckpoint,
        identity: RunIdentity,
        allow_mismatch: bool = False,
        scheduler: Any = None,
    ) -> LoadedState:
        """Go on from a checkpoint that `find` has found: the engine, schedule and random generators are set.

        Raises UserError, naming `--ckpt.allow_mismatch`, if the checkpoint is of another run.
        """
        saved = RunIdentity.from_dict(saved_identity(found.path))
        check_same_run(saved, identity, str(found.path), allow_mismatch)
        rank, count = this_rank(self._group), num_ranks(self._group)
        return load_training_state(engine, found.path, rank, count, scheduler)

    # --- the steps of a save ---

    def _begin(self, engine: Any, optimizer_step: int) -> tuple[Path | None, tuple[str, ...]]:
        """Rank 0 makes the folder aside; None, and why, if it cannot."""
        sizes_bytes = from_all_ranks(size_bytes_to_save(engine) + _SMALL_FILES_BYTES, self._group)
        aside, problem = None, None
        if this_rank(self._group) == 0:
            try:
                aside = self.store.begin(optimizer_step, sum(sizes_bytes))
            except OSError as error:
                problem = f"checkpoint of step {optimizer_step} not begun: {error}"
        aside, problem = from_all_ranks((aside, problem), self._group)[0]
        return aside, (problem,) if problem else ()

    def _copy(
        self, engine: Any, progress: TrainingProgress, client_state: dict[str, Any] | None, scheduler: Any
    ) -> tuple[TrainingState | None, str | None]:
        rank, count = this_rank(self._group), num_ranks(self._group)
        try:
            state = copy_training_state(engine, progress, rank, count, self._room, client_state, scheduler)
            fault_point("save.copied")
            return state, None
        except (RuntimeError, MemoryError, OSError) as error:  # the other ranks must not be left waiting
            return None, f"the state could not be copied: {error}"

    def _start(
        self,
        aside: Path,
        state: TrainingState | None,
        problem: str | None,
        identity: RunIdentity,
        eval_loss: float | None,
    ) -> None:
        rank, count = this_rank(self._group), num_ranks(self._group)
        self._must_stop = must_stop = threading.Event()
        self._aside = aside
        self._writing = BackgroundJob(lambda: _write(aside, state, problem, rank), "checkpoint writer")
        if rank == 0:
            self._finishing = BackgroundJob(
                lambda: _finish(self.store, aside, count, must_stop, self._timeout_seconds, identity, eval_loss),
                "checkpoint finisher",
            )


def _write(aside: Path, state: TrainingState | None, problem: str | None, rank: int) -> None:
    """This rank's files and its report; runs in a thread."""
    try:
        if state is None:
            raise OSError(problem)
        records = write_training_state(state, aside, rank)
    except Exception as error:
        RankReport([], str(error)).leave(aside, rank)
        raise
    RankReport(records).leave(aside, rank)
    fault_point("save.rank_done")


def _finish(
    store: CheckpointStore,
    aside: Path,
    count: int,
    must_stop: threading.Event,
    timeout_seconds: float,
    identity: RunIdentity,
    eval_loss: float | None,
) -> list[str]:
    """Put in place what all ranks have written, in a thread of rank 0; returns problems of the rotation."""
    try:
        records = collect_reports(aside, count, must_stop.is_set, timeout_seconds)
        fault_point("save.all_ranks_done")
        _, problems = store.put_in_place(aside, records, identity.to_dict(), eval_loss)
        return problems
    except Exception:
        store.discard(aside)
        raise
