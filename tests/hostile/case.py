"""A case: what is done, what the user must see, what must be on the disk after; and the judgement of what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.hostile.workspace import Workspace

SECONDS_TO_END = 30.0
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Came:
    """The end of a command.

    exit_code: of rank 0; negative: the signal that ended it; None: it was still running after 30 s.
    said: standard output and error of all ranks.
    """

    exit_code: int | None
    said: str
    seconds: float


@dataclass(frozen=True)
class Problem:
    """What is wrong with what came: kind is `hang`, `traceback`, `silent`, `exit code` or `disk`."""

    kind: str
    words: str


def nothing_more(workspace: Workspace) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Case:
    """One bad day.

    Args:
        name: what is done, in words.
        do: does it, in a workspace of its own, and gives the end of the last command.
        must_see: words that must stand in what it said, each of them.
        exit_code: 2 is the user's error.
        must_not_see: words that may stand nowhere in it.
        then: the problems on the disk afterwards, in words: a loss, a leftover, a file that was changed.
        in_suite: runs in the test command too (together at most 90 s).
    """

    name: str
    do: Callable[[Workspace], Came]
    must_see: tuple[str, ...] = ()
    exit_code: int = 2
    must_not_see: tuple[str, ...] = ()
    then: Callable[[Workspace], Iterable[str]] = nothing_more
    in_suite: bool = False

    def problems(self, workspace: Workspace, came: Came) -> Iterator[Problem]:
        if came.exit_code is None:
            yield Problem("hang", f"it was still running after {SECONDS_TO_END:.0f} s")
        elif came.exit_code != self.exit_code:
            kind = "silent" if came.exit_code == 0 else "exit code"
            yield Problem(kind, f"exit code {came.exit_code} instead of {self.exit_code}")
        if TRACEBACK in came.said:
            yield Problem("traceback", "a traceback where words belong")
        for words in self.must_see:
            if words not in came.said:
                yield Problem("silent", f"it did not say: {words}")
        for words in self.must_not_see:
            if words in came.said:
                yield Problem("silent", f"it said: {words}")
        for words in self.then(workspace):
            yield Problem("disk", words)


@dataclass(frozen=True)
class Judged:
    """A case, with what came and what is wrong with it."""

    group: str
    case: Case
    came: Came
    problems: tuple[Problem, ...]
