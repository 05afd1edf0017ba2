"""A folder of checkpoints: putting one in place, finding, rotating; at every instant a whole one is there.

On disk, below `root`:

    global_step<N>/            a checkpoint, with its manifest.json
    latest                     the name of the newest, for people and scripts; nothing here relies on it
    best.json                  which checkpoint had the lowest evaluation loss, and that loss
    .writing-global_step<N>/   being written, or left by a crash
    .replaced-global_step<N>/  an older checkpoint of the same name, until the new one is in place
    .removing-global_step<N>/  on its way out

A store with `suffix="_hf"` keeps `global_step<N>_hf` beside them, counted and rotated apart.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf.checkpoint.durable import aside_of, flush_folder, replace_text
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.manifest import FileRecord, looks_whole, size_bytes_of, verify, write_manifest

EXPORT_SUFFIX = "_hf"
_WRITING, _REPLACED, _REMOVING = ".writing-", ".replaced-", ".removing-"
_SPARE_SPACE = 1.05  # file systems need a little more than the bytes they are given


@dataclass(frozen=True)
class BestCheckpoint:
    """The checkpoint with the lowest evaluation loss."""

    name: str
    eval_loss: float


class CheckpointStore:
    """The checkpoints below `root`. One process (rank 0) changes it; any process may look."""

    def __init__(self, root: Path | str, max_num: int = 3, max_bytes: int | None = None, suffix: str = ""):
        """Args:
        max_num: the newest so many are kept, and the best.
        max_bytes: fewer are kept while they take more; the newest and the best always stay.
        suffix: what follows the step in a folder's name.
        """
        assert max_num >= 1, "a store keeps at least the newest checkpoint"
        self.root = Path(root)
        self.max_num = max_num
        self.max_bytes = max_bytes
        self.suffix = suffix
        self._damaged: set[str] = set()

    # --- looking ---

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
        named = [path for path in self.root.iterdir() if path.is_dir() and self.step_of(path.name) is not None]
        return sorted(named, key=lambda path: self.step_of(path.name) or 0, reverse=True)

    def whole(self) -> list[Path]:
        """Checkpoints that look whole (nothing is read but manifests), newest first."""
        return [path for path in self.candidates() if path.name not in self._damaged and looks_whole(path)]

    def records(self) -> list[Path]:
        """The small files that speak of the checkpoints here: the newest, the best."""
        return [path for path in (self._latest_path, self._best_path) if path.is_file()]

    def newest_whole(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint of which every byte is right, and what is wrong with newer ones."""
        problems: list[str] = []
        for path in self.candidates():
            found = verify(path)
            if not found:
                return path, problems
            self.mark_damaged(path.name)
            problems += found
        return None, problems

    def mark_damaged(self, name: str) -> None:
        """Remember that a checkpoint is damaged though it may look whole: rotation does not count it."""
        self._damaged.add(name)

    def best(self) -> BestCheckpoint | None:
        """The best checkpoint by evaluation loss, as long as it is there."""
        try:
            values = json.loads(self._best_path.read_text(encoding="utf-8"))
            best = BestCheckpoint(values["name"], values["eval_loss"])
        except (OSError, ValueError, KeyError):
            return None
        return best if (self.root / best.name).is_dir() else None

    # --- putting in place ---

    def begin(self, optimizer_step: int, size_bytes: int) -> Path:
        """An empty folder aside to write a checkpoint into.

        Args: size_bytes: an estimate of what will be written.

        Raises OSError (ENOSPC) if the disk has no room for it, before anything is written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        aside = self.root / f"{_WRITING}{self.name_of(optimizer_step)}"
        if aside.exists():
            shutil.rmtree(aside)
        self._check_space(size_bytes)
        aside.mkdir()
        fault_point("save.begun")
        return aside

    def put_in_place(
        self,
        aside: Path,
        records: Iterable[FileRecord] | None = None,
        identity: dict[str, Any] | None = None,
        eval_loss: float | None = None,
    ) -> tuple[Path, list[str]]:
        """Make what was written and flushed into `aside` the newest checkpoint, then remove what is too much.

        Args:
            records: of the files in `aside`, where their checksums are known; None reads them.
            eval_loss: at this step, if it was evaluated.

        Returns: the checkpoint, and problems of the rotation (the checkpoint is in place all the same).
        """
        target = self.root / aside.name.removeprefix(_WRITING)
        fault_point("save.before_manifest")
        write_manifest(aside, records, identity)
        fault_point("save.manifest_written")
        flush_folder(aside)
        fault_point("save.folder_flushed")
        self._rename_into_place(aside, target)
        self._damaged.discard(target.name)
        self._write_latest(target.name)
        self._note_if_best(target.name, eval_loss)
        return target, self._rotate(newest=target)

    def discard(self, aside: Path) -> None:
        """Remove what a failed save has left."""
        shutil.rmtree(aside, ignore_errors=True)

    def clean_leftovers(self) -> list[str]:
        """Remove what crashes have left, bring back what was moved but not replaced; say what was done."""
        if not self.root.is_dir():
            return []
        done = []
        for path in sorted(self.root.iterdir()):
            prefix = next((p for p in (_WRITING, _REPLACED, _REMOVING) if path.name.startswith(p)), None)
            name = path.name.removeprefix(prefix or "")
            if prefix is None or not path.is_dir() or self.step_of(name) is None:
                continue
            if prefix == _REPLACED and not (self.root / name).exists():
                os.replace(path, self.root / name)
                done.append(f"brought back {self.root / name}, which was about to be replaced")
            else:
                shutil.rmtree(path)
                done.append(f"removed {path}, left by an interrupted run")
        for path in (self._latest_path, self._best_path):
            aside_of(path).unlink(missing_ok=True)
        return done

    @property
    def _latest_path(self) -> Path:
        return self.root / f"latest{self.suffix}"

    @property
    def _best_path(self) -> Path:
        return self.root / f"best{self.suffix}.json"

    def _check_space(self, size_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < size_bytes * _SPARE_SPACE:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs about {size_bytes / 2**30:.2f} GiB, {free_bytes / 2**30:.2f} GiB are free",
                str(self.root),
            )

    def _rename_into_place(self, aside: Path, target: Path) -> None:
        replaced = self.root / f"{_REPLACED}{target.name}"
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(target, replaced)
            fault_point("save.old_namesake_moved")
        os.replace(aside, target)
        flush_folder(self.root)
        fault_point("save.renamed")
        shutil.rmtree(replaced, ignore_errors=True)

    def _write_latest(self, name: str) -> None:
        fault_point("save.latest_aside")
        replace_text(self._latest_path, name)
        fault_point("save.latest_renamed")

    def _note_if_best(self, name: str, eval_loss: float | None) -> None:
        best = self.best()
        if eval_loss is None or not math.isfinite(eval_loss):
            return
        if best and best.name != name and best.eval_loss <= eval_loss:
            return
        replace_text(self._best_path, json.dumps(asdict(BestCheckpoint(name, eval_loss))) + "\n")
        fault_point("save.best_renamed")

    # --- rotation ---

    def _rotate(self, newest: Path) -> list[str]:
        """Remove what is beyond the limits; an error is only told: the new checkpoint is in place."""
        fault_point("save.before_rotation")
        try:
            surplus = self._surplus(newest)
            for path in surplus:
                self._remove(path)
        except OSError as error:
            return [f"an old checkpoint could not be removed: {error}"]
        return []

    def _surplus(self, newest: Path) -> list[Path]:
        """What rotation removes, oldest first: damaged ones before the newest, what exceeds the limits."""
        whole = self.whole()
        newest_step = self.step_of(newest.name) or 0
        damaged = [p for p in self.candidates() if p not in whole and (self.step_of(p.name) or 0) < newest_step]
        best = self.best()
        keep_always = {newest.name, best.name if best else newest.name}
        # The one just written counts first even where a checkpoint of a higher step is still about.
        ordered = [newest, *(path for path in whole if path != newest)]
        surplus = [path for path in ordered[self.max_num :] if path.name not in keep_always]
        if self.max_bytes is not None:
            surplus += self._beyond_bytes([path for path in ordered if path not in surplus], keep_always)
        return sorted(damaged + surplus, key=lambda path: self.step_of(path.name) or 0)

    def _beyond_bytes(self, kept: list[Path], keep_always: set[str]) -> list[Path]:
        assert self.max_bytes is not None
        sizes = {path: size_bytes_of(path) for path in kept}
        total_bytes, surplus = sum(sizes.values()), []
        for path in reversed(kept):
            if total_bytes > self.max_bytes and path.name not in keep_always:
                surplus.append(path)
                total_bytes -= sizes[path]
        return surplus

    def _remove(self, path: Path) -> None:
        """Take the name away first: a checkpoint half removed must not look like one."""
        doomed = self.root / f"{_REMOVING}{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        flush_folder(self.root)
        fault_point("save.moved_for_removal")
        shutil.rmtree(doomed)
        fault_point("save.removed")
