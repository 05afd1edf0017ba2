"""Saving and resuming a run, on all ranks together.

A save on every rank, in this order:

1. The save before it is waited for.
2. Rank 0 checks the free space and makes the staging folder; all agree that it could.
3. Every rank copies its share to the CPU. The loop waits for no more than this.
   Where a machine has no memory for the copies, and with `in_background=False`, nothing is copied: all wait until 5.
4. In a thread, every rank writes and flushes its files and leaves a report.
5. In a thread, rank 0 collects the reports, writes the manifest, renames the folder, points `latest` there, rotates.

Where a step fails on any rank, all ranks learn of it at 1 or 2 of the next save (or in `wait`), the staging folder is
removed, the checkpoints before it are untouched, and no rank is left waiting. The folder must be shared by all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.checkpoint.background import PendingSave
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.host_buffer import HostBuffer, LiveTensors
from openrlhf.checkpoint.host_memory import MemoryAsked, shortages
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.lease import other_holder_of
from openrlhf.checkpoint.manifest import FileRecord, verify
from openrlhf.checkpoint.optimizer_states import problem_of_state, size_bytes_to_save
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.shared_folder import problem_of_sharing
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.checkpoint.training_state import (
    LoadedState,
    TrainingState,
    copy_training_state,
    load_training_state,
    read_progress,
    write_training_state,
)
from openrlhf.parallel.collectives import gather_objects, gather_problems, rank_in, size_of

_SMALL_FILES_BYTES = 1 << 20  # random states, JSON and headers of one rank


@dataclass(frozen=True)
class SaveReport:
    """Outcome of the saves that have ended; the same on all ranks.

    problems: of failed saves, and of rotations, since the last report.
    num_failures_in_a_row: 0 after a good save.
    notices: what is done in another way than was asked for; each is told once.
    """

    problems: tuple[str, ...]
    num_failures_in_a_row: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundCheckpoint:
    """The checkpoint to go on from, and how far the run had come."""

    path: Path
    progress: TrainingProgress


class Checkpointer:
    """Writes a run's training state into a store and reads it back. All ranks call every method together."""

    def __init__(
        self,
        store: CheckpointStore,
        group: ProcessGroup | None = None,
        in_background: bool = True,
        timeout_seconds: float = 1800.0,
    ):
        """Args:
        group: gloo, of all ranks; None: this rank alone. Its timeout should be above `timeout_seconds`.
        in_background: let training go on while files are written. Costs the memory of the copy, on the CPU; where
            it is not there, training waits.
        timeout_seconds: for all ranks to have written their files.
        """
        self.store = store
        self._group = group
        self._rank, self._num_ranks = rank_in(group), size_of(group)
        self.in_background = in_background
        self._timeout_seconds = timeout_seconds
        self._buffer = HostBuffer()
        self._pending: PendingSave | None = None
        self._num_failures_in_a_row = 0
        self._has_told_of_memory = False
        self._has_looked_at_folder = False
        self.holds_own_run = False  # the checkpoints in the store are of the run that saves now

    @property
    def group(self) -> ProcessGroup | None:
        """All ranks that save together; None: this rank alone."""
        return self._group

    def save(
        self,
        engine: Any,
        progress: TrainingProgress,
        identity: RunIdentity,
        client_state: dict[str, Any] | None = None,
        eval_loss: float | None = None,
        scheduler: Any = None,
    ) -> SaveReport:
        """Save the state after `progress.optimizer_step`; the module's docstring says what is waited for.

        Args:
            client_state: the caller's own, of JSON values; `load` gives it back.
            eval_loss: at this step, if it was evaluated: the checkpoint with the lowest is kept.
            scheduler: the learning rate schedule, if the engine does not hold it.

        Raises nothing that the disk can cause: the report says it; UserError where there is a `problem_of_state`.
        """
        earlier = self.wait()
        size_bytes = size_bytes_to_save(engine)
        staging, problems = self._begin(size_bytes, progress.optimizer_step)
        if staging is None:
            self._num_failures_in_a_row += 1
            return SaveReport(earlier.problems + problems, self._num_failures_in_a_row)
        notices = self._ask_for_memory(size_bytes) if self.in_background else ()
        is_beside_training = self.in_background and not notices
        self._pending = PendingSave(
            self.store,
            staging,
            self._rank,
            self._num_ranks,
            write=self._copied(
                partial(copy_training_state, engine, progress, client_state=client_state, scheduler=scheduler),
                staging,
                self._buffer if is_beside_training else LiveTensors(),
            ),
            put_in_place=partial(self.store.put_in_place, identity=identity.to_dict(), eval_loss=eval_loss),
            timeout_seconds=self._timeout_seconds,
        )
        if is_beside_training:
            return earlier
        now = self.wait()
        new_notices = () if self._has_told_of_memory else notices
        self._has_told_of_memory = self._has_told_of_memory or bool(notices)
        return SaveReport(earlier.problems + now.problems, now.num_failures_in_a_row, new_notices)

    def problem_of_state(self, engine: Any) -> str | None:
        """Why no save can be made of what the optimizer keeps on any rank; None where it can, and before any update."""
        return next(filter(None, gather_objects(problem_of_state(engine), self._group)), None)

    def problem_of_folder(self) -> str | None:
        """Why no save can be made in the folder, which is there; None where it can, and where it was asked before."""
        if self._has_looked_at_folder:
            return None
        self._has_looked_at_folder = True
        return problem_of_sharing(self.store.root, self._group)

    def wait(self) -> SaveReport:
        """Wait until the last save is in place, or has failed."""
        pending = self._pending
        if pending is None:
            return SaveReport((), self._num_failures_in_a_row)
        # First the files of all ranks. If a rank has failed, rank 0 must not wait for that rank's report.
        problems = gather_problems(pending.wait_for_own_files(), self._group)
        if problems:
            pending.stop()
        # Then rank 0's part. Its own problem counts where no rank had one: it follows from theirs otherwise.
        rotation_problems, problem = pending.wait_for_end()
        if problem and not problems:
            problems = (problem,)
        if problems and self._rank == 0:
            pending.discard()  # once more: a rank may still have been writing when the folder was first removed
        self._pending = None
        problems, rotation_problems = gather_objects((problems, rotation_problems), self._group)[0]
        self._num_failures_in_a_row = self._num_failures_in_a_row + 1 if problems else 0
        return SaveReport((*problems, *rotation_problems), self._num_failures_in_a_row)

    def abandon(self) -> None:
        """Give up the save that is being written: another rank may be gone. No collective; the checkpoints stay."""
        if self._pending is not None:
            self._pending.stop()
            self._pending.wait_for_end()

    def find(self, name: str | None = None) -> tuple[FoundCheckpoint | None, list[str]]:
        """The newest whole checkpoint, every byte verified, and the problems of the newer ones.

        Args: name: of the one checkpoint that is wanted, such as global_step20; None: any.

        Leftovers of a crash are cleaned first, unless a living run holds the folder: what it is writing is none.
        The ranks divide the reading.
        """
        cleaned = self._clean_leftovers() if self._rank == 0 else []
        # The list of rank 0 counts: a shared folder may look different on another machine for a moment.
        candidates, cleaned = gather_objects((self.store.candidates(), cleaned), self._group)[0]
        candidates = [path for path in candidates if name in (None, path.name)]
        path, problems = self.store.newest_whole(candidates, self._verify_together)
        return FoundCheckpoint(path, read_progress(path)) if path else None, cleaned + problems

    def exported_steps(self, progress: TrainingProgress, wants_best: bool) -> set[int]:
        """Steps of which a model counts as that of the finished run: the last, or the best where it is wanted.

        Where the best one's checkpoint is gone, either counts: it may have been removed after the export.
        """
        last, best = progress.optimizer_step, progress.best_eval_step
        if not wants_best or best is None:
            return {last}
        is_here = any(self.store.step_of(path.name) == best for path in self.store.whole())
        return {best} if is_here else {best, last}

    def load(
        self,
        engine: Any,
        found: FoundCheckpoint,
        scheduler: Any = None,
        is_same_optimizer: bool = True,
    ) -> LoadedState:
        """Go on from a checkpoint that `find` has found: the engine, schedule and random generators are set.

        The caller compares the identities first (`identity.check_same_run`).
        """
        self.holds_own_run = True
        return load_training_state(engine, found.path, self._rank, self._num_ranks, scheduler, is_same_optimizer)

    def move_to_earlier_run(self, own_run_id: str | None = None) -> Path | None:
        """For a new run in a folder with another run's checkpoints, lest one day the wrong run is resumed.

        Args: own_run_id: those of this run stay; None: it has none here.
        Returns: the folder `earlier_run_<n>` that they were moved to; None where there were none.
        """
        self.holds_own_run = True
        moved_to = self.store.move_to_earlier_run(own_run_id) if self._rank == 0 else None
        return gather_objects(moved_to, self._group)[0]

    def _clean_leftovers(self) -> list[str]:
        if holder := other_holder_of(self.store.root):
            return [f"{self.store.root} is held by another run ({holder}): what is unfinished there is left as it is"]
        return self.store.clean_leftovers()

    # --- the steps of a save ---

    def _ask_for_memory(self, size_bytes: int) -> tuple[str, ...]:
        """A sentence, the same on all ranks, where a machine has no memory for the copies of its ranks."""
        asked = MemoryAsked.here(self._buffer.new_bytes_for(size_bytes))
        return tuple(
            f"{shortage}: saves are written while training waits (as with --ckpt.background_save false)."
            for shortage in shortages(gather_objects(asked, self._group))
        )

    def _begin(self, size_bytes: int, optimizer_step: int) -> tuple[Path | None, tuple[str, ...]]:
        """Rank 0 makes the staging folder. Returns it, or None and the problem; the same on all ranks."""
        sizes_bytes = gather_objects(size_bytes + _SMALL_FILES_BYTES, self._group)
        staging, problem = None, None
        if self._rank == 0:
            try:
                staging = self.store.begin(optimizer_step, sum(sizes_bytes))
            except OSError as error:
                problem = f"checkpoint of step {optimizer_step} not begun: {error}"
        staging, problem = gather_objects((staging, problem), self._group)[0]
        return staging, (problem,) if problem else ()

    def _copied(
        self, copy: Callable[..., TrainingState], staging: Path, buffer: HostBuffer
    ) -> Callable[[], list[FileRecord]]:
        """Copies the state of this rank. Returns a function that writes the copy into `staging`.

        Where the copy fails, that function raises OSError: the other ranks, which have a copy, hear of it as of any
        rank that cannot write, and none is left waiting.
        """
        try:
            state = copy(rank=self._rank, num_ranks=self._num_ranks, buffer=buffer)
            fault_point("save.copied")
        except (RuntimeError, MemoryError, OSError, TypeError, ValueError) as error:  # the last two are of JSON
            return partial(_fail, f"the state could not be copied: {error}")
        return partial(write_training_state, state, staging, self._rank)

    def _verify_together(self, path: Path) -> list[str]:
        """The problems of a checkpoint, the same on all ranks; each rank has read a part of the files."""
        shares = gather_objects(verify(path, self._rank, self._num_ranks), self._group)
        return list(dict.fromkeys(problem for share in shares for problem in share))


def _fail(problem: str) -> list[FileRecord]:
    raise OSError(problem)
