"""A folder with a tiny model and rows, in which a case runs commands."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tests.faults.jobs import Job
from tests.helpers.workbench import flags, save_model, save_rows
from tests.hostile.case import SECONDS_TO_END, Came, Case, Judged

NUM_ROWS = 16
TRAIN, INSPECT = "openrlhf.cli.train_sft", "openrlhf.cli.inspect_data"


class Originals:
    """The model and the rows that every workspace begins with a copy of."""

    def __init__(self, folder: Path):
        self.folder = folder
        save_model(folder / "model")
        save_rows(folder / "rows.jsonl", NUM_ROWS)

    def judge(self, group: str, case: Case) -> Judged:
        """Runs a case in a workspace of its own, which is removed afterwards."""
        place = self.folder / "workspace"
        place.mkdir()
        workspace = Workspace(place, self.folder)
        try:
            came = case.do(workspace)
            return Judged(group, case, came, tuple(case.problems(workspace, came)))
        finally:
            workspace.end()
            shutil.rmtree(place)


class Workspace:
    """`folder` holds all that a case reads and writes: `model`, `rows`, and `out`, where a run puts its model."""

    def __init__(self, folder: Path, originals: Path):
        self.folder, self._originals = folder, originals
        self.out = folder / "out"
        self._remembered: list[tuple[Path, str]] = []
        self._jobs: list[Job] = []

    @cached_property
    def model(self) -> Path:
        """A folder of a model, to be spoilt as one likes."""
        return Path(shutil.copytree(self._originals / "model", self.folder / "model"))

    @cached_property
    def rows(self) -> Path:
        """Sixteen good rows: four steps."""
        return Path(shutil.copy(self._originals / "rows.jsonl", self.folder / "good_rows.jsonl"))

    def write(self, name: str, content: str | bytes | Iterable[Any]) -> Path:
        """A file with that content: a text, bytes, or rows, which become lines of JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def remember(self, path: Path) -> None:
        """Takes note of a file, or of all files of a folder, for `changed` and `lost`."""
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        self._remembered += [(one, _content(one)) for one in files]

    def changed(self) -> list[str]:
        """The remembered files that are not as they were, or not at their place, in words."""
        return [
            f"{path.relative_to(self.folder)} is not as it was"
            for path, content in self._remembered
            if not path.is_file() or _content(path) != content
        ]

    def lost(self) -> list[str]:
        """The remembered files whose content stands nowhere in the workspace any more, in words."""
        there = {_content(path) for path in self.folder.rglob("*") if path.is_file()}
        return [
            f"{path.relative_to(self.folder)} is lost" for path, content in self._remembered if content not in there
        ]

    def words(self, **changes: Any) -> list[str]:
        """The flags of a run of four steps; `changes` have `__` for `.`, and None for left out."""
        return flags(self.model, self.rows, self.out, **changes)

    def start(
        self,
        *more: str,
        command: str = TRAIN,
        num_ranks: int = 1,
        env: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
        **changes: Any,
    ) -> Job:
        """A command that runs from now on.

        Args:
            more: further words of its command line.
            env: of all its ranks.
            before: called in each rank before the command; a function of a module.
        """
        words = [*self.words(**changes), *more]
        settings = partial(_before, self.folder, env or {}, before)
        job = Job(words, num_ranks, self.folder / f"log{len(self._jobs)}", module=command, before=settings)
        self._jobs.append(job)
        return job

    def wait(self, job: Job, seconds: float = SECONDS_TO_END) -> Came:
        """Until it has ended, or is killed after that long."""
        began_at = time.monotonic()
        codes = job.wait(seconds)
        came = Came(None if codes is None else codes[0], job.words_said(), time.monotonic() - began_at)
        job.__exit__()
        return came

    def run(self, *more: str, **how: Any) -> Came:
        """`start`, and `wait` for the end."""
        return self.wait(self.start(*more, **how))

    def end(self) -> None:
        """No process of this workspace outlives it."""
        for job in self._jobs:
            job.__exit__()


def _content(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest()


def _before(folder: Path, env: dict[str, str], more: Callable[[], None] | None) -> None:
    """A rank's working directory is the workspace: what is written by a relative path lies there, and nowhere else."""
    os.chdir(folder)
    os.environ.update(env)
    if more is not None:
        more()
