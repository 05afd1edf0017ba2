"""A planted bug: one small wrong change, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Bug:
    """`old`, which stands exactly once in `file`, becomes `new`."""

    name: str
    breaks: str  # what a user would suffer
    file: str  # below openrlhf/
    old: str
    new: str
    tests: tuple[str, ...]  # node ids of pytest

    def planted_in(self, root: Path) -> str:
        """The file's text with the bug. Raises ValueError where `old` is not there exactly once."""
        path = root / "openrlhf" / self.file
        text = path.read_text(encoding="utf-8")
        times = text.count(self.old)
        if times != 1:
            raise ValueError(f"{self.name}: openrlhf/{self.file} holds the text to change {times} times:\n{self.old}")
        planted = text.replace(self.old, self.new)
        if path.suffix == ".py":
            compile(planted, str(path), "exec")  # a bug that only breaks the syntax would prove nothing
        return planted
