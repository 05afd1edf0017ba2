"""A folder of checkpoints: putting one in place, finding, rotating; at every instant a whole one is there.

On disk, below `root`:

    global_step<N>/            a checkpoint, with its manifest.json
    latest                     the name of the newest, for people and scripts; nothing here relies on it
    best.json                  the name of the checkpoint with the lowest evaluation loss, and that loss
    .writing-global_step<N>/   staging folder: being written, or left by a crash
    .replaced-global_step<N>/  an older checkpoint of the same name, until the new one is in place
    .removing-global_step<N>/  an old checkpoint that is being removed
    earlier_run_<n>/           checkpoints of another run, moved away by a new one
    kept_from_<name>_<n>/      files that somebody else put into a checkpoint that was removed

Only checkpoints whose manifest names this run are removed or replaced, and of them the files that the manifest lists.

A store with `suffix="_hf"` keeps `global_step<N>_hf` beside them, counted and rotated apart.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from openrlhf.atomic_file import flush_to_disk, keep_aside, remove_leftovers, replace_file
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.lease import confirm
from openrlhf.checkpoint.manifest import (
    FileRecord,
    is_of_run,
    looks_whole,
    remove_listed,
    saved_identity,
    size_bytes_of,
    verify,
    write_manifest,
)
from openrlhf.errors import UserError

EXPORT_SUFFIX = "_hf"
_WRITING, _REPLACED, _REMOVING = ".writing-", ".replaced-", ".removing-"
_STEP = "optimizer_step"  # in the identity that a manifest holds
SPACE_FACTOR = 1.05  # file systems need a little more than the bytes they are given


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint with the lowest evaluation loss."""

    name: str
    eval_loss: float


class CheckpointStore:
    """The checkpoints below `root`. One process (rank 0) changes it; any process may read it."""

    def __init__(self, root: Path | str, max_num: int = 3, max_bytes: int | None = None, suffix: str = ""):
        """Args:
        max_num, max_bytes: see `set_limits`.
        suffix: follows the step in a folder's name.
        """
        self.root = Path(root)
        self.suffix = suffix
        self._latest_path = self.root / f"latest{suffix}"
        self._best_path = self.root / f"best{suffix}.json"
        self._damaged: set[str] = set()  # names of checkpoints that look whole, but have other bytes than were written
        self._run_id: str | None = None  # of the run that saves
        self.set_limits(max_num, max_bytes)

    def set_limits(self, max_num: int, max_bytes: int | None = None) -> None:
        """Limits of what is kept, from the next rotation on.

        Args:
            max_num: the newest so many are kept, and the best.
            max_bytes: fewer are kept while they take more; the newest and the best always stay.
        """
        if max_num < 1:
            raise UserError(f"max_num {max_num}: a store keeps at least the newest checkpoint; give 1 or more.")
        self.max_num = max_num
        self.max_bytes = max_bytes

    # --- reading ---

    def name_of(self, optimizer_step: int) -> str:
        """Folder name of the checkpoint after an optimizer step."""
        return f"global_step{optimizer_step}{self.suffix}"

    def step_of(self, name: str) -> int | None:
        """Inverse of `name_of`; None for a name that is no checkpoint of this store."""
        match = re.fullmatch(rf"global_step(\d+){re.escape(self.suffix)}", name)
        return int(match.group(1)) if match else None

    def candidates(self) -> list[Path]:
        """Folders named like checkpoints, newest first, whole or not."""
        if not self.root.is_dir():
            return []
        steps = {path: self.step_of(path.name) for path in self.root.iterdir() if path.is_dir()}
        by_step = sorted((step, path) for path, step in steps.items() if step is not None)
        return [path for _, path in reversed(by_step)]

    def whole(self) -> list[Path]:
        """Checkpoints that look whole (nothing is read but manifests), newest first."""
        seeming = (path for path in self.candidates() if path.name not in self._damaged and looks_whole(path))
        return [path for path in seeming if not self._of_another_step(path)]

    def newest_whole(
        self, candidates: list[Path] | None = None, problems_of: Callable[[Path], list[str]] = verify
    ) -> tuple[Path | None, list[str]]:
        """The newest checkpoint of which every byte is right, and the problems of newer ones.

        Newer ones are remembered as damaged: rotation does not count them.

        Args:
            candidates: newest first; None: all that are here.
            problems_of: verifies a checkpoint.
        """
        problems: list[str] = []
        for path in self.candidates() if candidates is None else candidates:
            found = problems_of(path) or self._of_another_step(path)
            if not found:
                return path, problems
            self._damaged.add(path.name)
            problems += found
        return None, problems

    def _of_another_step(self, path: Path) -> list[str]:
        """A sentence where a whole checkpoint has another's name; older ones do not note the step."""
        step = saved_identity(path).get(_STEP)
        if step in (None, self.step_of(path.name)):
            return []
        return [f"{path} holds the checkpoint of step {step}: it was copied there, or renamed"]

    def best(self) -> BestCheckpoint | None:
        """The best checkpoint by evaluation loss, as long as it is there."""
        try:
            values = json.loads(self._best_path.read_text(encoding="utf-8"))
            best = BestCheckpoint(values["name"], values["eval_loss"])
        except (OSError, ValueError, KeyError):
            return None
        return best if (self.root / best.name).is_dir() else None

    def set_best_aside(self) -> None:
        """No checkpoint and no exported model is the best from here on, until one is evaluated again."""
        for store in (self, CheckpointStore(self.root, suffix=EXPORT_SUFFIX)):
            keep_aside(store._best_path)

    # --- putting in place ---

    def begin(self, optimizer_step: int, size_bytes: int) -> Path:
        """An empty staging folder to write a checkpoint into.

        Args: size_bytes: an estimate of the bytes that will be written.

        Raises OSError (ENOSPC) if the disk has no room for it, before anything is written; LeaseLost where another run
            has taken the folder.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        confirm(self.root)
        staging = self.root / f"{_WRITING}{self.name_of(optimizer_step)}"
        if staging.exists():
            shutil.rmtree(staging)
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < size_bytes * SPACE_FACTOR:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs about {size_bytes / 2**30:.2f} GiB, {free_bytes / 2**30:.2f} GiB are free",
                str(self.root),
            )
        staging.mkdir()
        fault_point("save.begun")
        return staging

    def put_in_place(
        self,
        staging: Path,
        records: Iterable[FileRecord] | None = None,
        identity: dict[str, Any] | None = None,
        eval_loss: float | None = None,
    ) -> tuple[Path, list[str]]:
        """Make the newest checkpoint of the flushed files in `staging`, then remove what exceeds the limits.

        Args:
            records: of the files in `staging`, where their checksums are known; None reads them.
            identity: of the run; its `run_id` decides which older checkpoints may go.
            eval_loss: at this step, if it was evaluated.

        Returns: the checkpoint, and problems of the rotation (the checkpoint is in place all the same).
        """
        target = self.root / staging.name.removeprefix(_WRITING)
        # A folder with a manifest is whole, so the manifest comes last, and all names are on the disk before the
        # folder gets the name under which a resume looks for it.
        self._run_id = (identity or {}).get("run_id")
        fault_point("save.before_manifest")
        write_manifest(staging, records, {**(identity or {}), _STEP: self.step_of(target.name)})
        fault_point("save.manifest_written")
        flush_to_disk(staging)
        fault_point("save.folder_flushed")
        confirm(self.root)
        self._rename_into_place(staging, target)
        self._damaged.discard(target.name)
        # Only a checkpoint that is in place is named as the latest or the best, and only then may older ones go.
        self._write_latest(target.name)
        self._write_if_best(target.name, eval_loss)
        return target, self._rotate(newest=target)

    def discard(self, staging: Path) -> None:
        """Remove the staging folder of a failed save."""
        shutil.rmtree(staging, ignore_errors=True)

    def _rename_into_place(self, staging: Path, target: Path) -> None:
        # A folder cannot be renamed over another. One of the same name is moved away first; after a crash between the
        # two renames `clean_leftovers` brings it back.
        replaced = self.root / f"{_REPLACED}{target.name}"
        if target.exists() and not is_of_run(target, self._run_id):
            os.replace(target, self._new_folder("earlier_run") / target.name)
        elif target.exists():
            self._empty(replaced)
            os.replace(target, replaced)
            fault_point("save.old_namesake_moved")
        os.replace(staging, target)
        flush_to_disk(self.root)
        fault_point("save.renamed")
        self._empty(replaced)

    def _write_latest(self, name: str) -> None:
        fault_point("save.latest_aside")
        replace_file(self._latest_path, name)
        fault_point("save.latest_renamed")

    def _write_if_best(self, name: str, eval_loss: float | None) -> None:
        best = self.best()
        if eval_loss is None or not math.isfinite(eval_loss):
            return
        if best and best.name != name and best.eval_loss <= eval_loss:
            return
        replace_file(self._best_path, json.dumps(asdict(BestCheckpoint(name, eval_loss))) + "\n")
        fault_point("save.best_renamed")

    # --- leftovers, and other runs ---

    def clean_leftovers(self) -> list[str]:
        """Remove leftovers of crashes, bring back a checkpoint that was moved but not replaced; says what was done."""
        done = []
        for path in sorted(self.root.glob(".*-*")):
            prefix = next((p for p in (_WRITING, _REPLACED, _REMOVING) if path.name.startswith(p)), "")
            name = path.name.removeprefix(prefix)
            if not path.is_dir() or self.step_of(name) is None:
                continue
            if prefix == _REPLACED and not (self.root / name).exists():
                os.replace(path, self.root / name)
                done.append(f"brought back {self.root / name}, which was about to be replaced")
            else:
                shutil.rmtree(path) if prefix == _WRITING else self._empty(path)
                done.append(f"removed {path}, left by an interrupted run")
        for path in (self._latest_path, self._best_path):
            remove_leftovers(path)
        return done

    def move_to_earlier_run(self, own_run_id: str | None = None) -> Path | None:
        """Move all checkpoints, exported models and what speaks of them into a new folder `earlier_run_<n>`.

        Args: own_run_id: those of this run stay; None: it has none here.
        Returns: the folder; None where there is nothing to move."""
        moving: list[Path] = []
        for store in (self, CheckpointStore(self.root, suffix=EXPORT_SUFFIX)):
            store.clean_leftovers()
            moving += store._of_other_runs(own_run_id)
        if not moving:
            return None
        folder = self._new_folder("earlier_run")
        for path in moving:
            os.replace(path, folder / path.name)
        flush_to_disk(self.root)
        return folder

    def _of_other_runs(self, own_run_id: str | None) -> list[Path]:
        """Their checkpoints; `latest` and `best.json` too, unless the run with that id has a checkpoint here."""
        candidates = self.candidates()
        others = [path for path in candidates if own_run_id is None or not is_of_run(path, own_run_id)]
        if len(others) < len(candidates):
            return others
        return [*others, *filter(os.path.lexists, (self._latest_path, self._best_path))]

    # --- rotation ---

    def _rotate(self, newest: Path) -> list[str]:
        """Remove what exceeds the limits. An error is only reported: the new checkpoint is in place."""
        fault_point("save.before_rotation")
        try:
            for path in self._surplus(newest):
                self._remove(path)
        except OSError as error:
            return [f"an old checkpoint could not be removed: {error}"]
        return []

    def _surplus(self, newest: Path) -> list[Path]:
        """The checkpoints that rotation removes, oldest first."""
        # Whole checkpoints alone count against the limits: a damaged one must not push out one that can be resumed
        # from. The one just written counts first, even where one of a higher step is there (of an earlier attempt).
        whole = [path for path in self.whole() if is_of_run(path, self._run_id)]
        ordered = [newest, *(path for path in whole if path != newest)]
        best = self.best()
        keep_always = {newest.name, best.name if best else newest.name}
        kept = [path for index, path in enumerate(ordered) if index < self.max_num or path.name in keep_always]
        # By bytes, the oldest goes first.
        if self.max_bytes is not None:
            sizes_bytes = {path: size_bytes_of(path) for path in kept}
            for path in reversed(kept.copy()):
                total_bytes = sum(sizes_bytes[other] for other in kept)
                if total_bytes > self.max_bytes and path.name not in keep_always:
                    kept.remove(path)
        # A damaged checkpoint goes once there is a newer whole one; one of a higher step is left alone.
        older = [path for path in self.candidates() if self._step(path) < self._step(newest)]
        damaged = [path for path in older if path not in whole]
        surplus = [*damaged, *(path for path in ordered if path not in kept)]
        return sorted((path for path in surplus if is_of_run(path, self._run_id)), key=self._step)

    def _step(self, path: Path) -> int:
        return self.step_of(path.name) or 0

    def _remove(self, path: Path) -> None:
        """Take the name away first: a checkpoint that is half removed must not look like one."""
        removing = self.root / f"{_REMOVING}{path.name}"
        self._empty(removing)
        os.replace(path, removing)
        flush_to_disk(self.root)
        fault_point("save.moved_for_removal")
        self._empty(removing)
        fault_point("save.removed")

    def _empty(self, folder: Path) -> None:
        """Remove a checkpoint that has lost its name; what somebody else has put into it stays, in a folder to find."""
        if folder.exists() and not remove_listed(folder):
            name = next(folder.name.removeprefix(p) for p in (_REPLACED, _REMOVING) if folder.name.startswith(p))
            os.replace(folder, self._new_folder(f"kept_from_{name}"))

    def _new_folder(self, name: str) -> Path:
        """An empty folder `<name>_<n>`."""
        folder = next(path for n in count(1) if not (path := self.root / f"{name}_{n}").exists())
        folder.mkdir()
        return folder
