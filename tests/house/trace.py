"""One real optimizer step, traced: the files of the package that it runs through."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.house.source import PACKAGE
from tests.house.way import ENTRIES


def files_of_one_step(folder: Path) -> set[str]:
    """The files, as `trainer/loop.py`, of a run of a tiny model on the CPU; runs inside a rank."""
    from openrlhf.cli.train_sft import main
    from tests.helpers.workbench import flags, save_model, save_rows

    argv = flags(save_model(folder / "model"), save_rows(folder / "rows.jsonl", 8), folder / "out")
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        main(argv)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    missing = ENTRIES.keys() - tracer.entered
    assert not missing, f"ENTRIES in tests/house/way.py is out of date: the run did not call that of {missing}"
    return tracer.files


class Tracer:
    """A profile function: notes the files that the entries run through, in every thread, and those that lead there."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.entered: set[str] = set()
        self._of_thread = threading.local()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        file = _file_of(frame.f_code)
        is_entry = file is not None and ENTRIES.get(file) == frame.f_code.co_name
        depth = getattr(self._of_thread, "depth", 0)
        if event == "return":
            self._of_thread.depth = depth - is_entry
            return
        self._of_thread.depth = depth + is_entry
        if file is not None and (is_entry or depth):
            self.files.add(file)
        if file is not None and is_entry and file not in self.entered:
            self.entered.add(file)
            self._note_callers(frame)

    def _note_callers(self, frame: FrameType | None) -> None:
        while frame is not None:
            if (file := _file_of(frame.f_code)) is not None:
                self.files.add(file)
            frame = frame.f_back


def _file_of(code: CodeType) -> str | None:
    """The package's file of a function; None for others, and for a module's own lines, which an import runs."""
    path = Path(code.co_filename)
    is_ours = path.is_relative_to(PACKAGE) and code.co_name != "<module>"
    return path.relative_to(PACKAGE).as_posix() if is_ours else None
