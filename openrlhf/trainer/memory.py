"""The memory of a run: where it runs out, the step is computed again in smaller pieces. The result is the same.

Each time micro-batches are halved, and from the first time on activations are recomputed in the backward pass. After
enough steps in a row one halving is taken back. What this decides rests on what all ranks know alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from openrlhf.atomic_file import replace_file
from openrlhf.batching import StepWindow, StepWindowLoader
from openrlhf.errors import UserError
from openrlhf.exit_codes import RankLost, RunStopped
from openrlhf.models import PreparedModel
from openrlhf.trainer.shortage import Apart, OutOfMemory, Shortage

NOTE_FILE, EVAL_NOTE_FILE = "memory.json", "memory_of_evaluation.json"
STEPS_BEFORE_GROWTH = 64
OverlongMemory = Literal["stop", "skip"]
Result = TypeVar("Result")


class MemoryBudget:
    """How small micro-batches must be, for training or for an evaluation.

    Args:
        loader: whose windows are cut; the next ones are built so at once.
        model: recomputes its activations when memory is short; None: there are none, in an evaluation.
        overlong: what becomes of a unit that does not fit alone: the run stops, or goes on without it. None: it stops
            in any case.
        tell: is given each event: words for people, facts for the record.
        folder: holds the note that the next start reads where the ranks cannot go on; None: there is none.
        note_file: its name.
    """

    def __init__(
        self,
        loader: Any,
        model: PreparedModel | None = None,
        overlong: OverlongMemory | None = "stop",
        tell: Callable[[str, dict[str, Any]], None] = lambda words, facts: None,
        folder: Path | None = None,
        note_file: str = NOTE_FILE,
    ):
        self._loader, self._model, self._overlong, self._tell = loader, model, overlong, tell
        self._note = None if folder is None else folder / note_file
        self._halvings = 0
        self._recomputes = False  # for the memory's sake: the user has not asked for it
        self._steps_since, self._patience, self._has_grown = 0, STEPS_BEFORE_GROWTH, False

    @property
    def halvings(self) -> int:
        """How often micro-batches are halved at present."""
        return self._halvings

    def compute(self, window: StepWindow, work: Callable[[StepWindow], Result]) -> Result:
        """The result of `work` for the window, or for the same window cut smaller.

        Raises:
            RunStopped: a unit does not fit alone.
            RankLost: the ranks cannot go on, and start again with a smaller budget.
        """
        without: frozenset[str] = frozenset()
        halvings_before = self._halvings
        while True:
            if window.halvings != self._halvings or without:
                assert window.relaid is not None, "a loader's window can be cut anew"
                window = window.relaid(self._halvings, without)
            try:
                result = work(window)
            except Apart as error:
                shortages = error.shortages
                break
            except OutOfMemory as error:
                shortages = error.shortages
            else:
                self._grow()
                return result
            if names := self._shrink(shortages):
                without |= names
                self._set(halvings_before)  # the others have done nothing
        raise RankLost(self._start_again_smaller(shortages))

    def read_note(self) -> None:
        """Begins with the budget that the run had when its ranks could not go on; see `RankLost` of `compute`."""
        with suppress(OSError, ValueError, KeyError):
            if self._note is not None:
                self._set(int(json.loads(self._note.read_text())["halvings"]))
        if self._halvings:
            self._tell(f"{self._note}: {self._in_words()}.", self._facts())

    def restore(self, why: str) -> None:
        """Micro-batches as they were before memory ran out: the layout for which it did is given up."""
        self._set(0)
        self._tell(f"{why}: {self._in_words()}.", self._facts())

    # -------------------------------------------------------------------------------------------------------------

    def _shrink(self, shortages: tuple[Shortage, ...]) -> frozenset[str]:
        """Returns the names of units that are left out from now on, where that is all that helps."""
        alone = [one for one in shortages if len(one.unit_names) < 2]
        if alone and not self._can_recompute():
            return self._leave_out(alone)
        if self._has_grown:
            self._patience, self._has_grown = 2 * self._patience, False
        self._set(self._halvings + 1)
        self._say(shortages, f"{self._in_words()}, and the step is computed again")
        return frozenset()

    def _leave_out(self, alone: list[Shortage]) -> frozenset[str]:
        names = frozenset(name for one in alone for name in one.unit_names)
        if self._overlong != "skip" or not names:
            longest = max(alone, key=lambda one: one.num_tokens)
            recomputed = ", with activations recomputed" if self._model is not None else ""
            skip = "--data.overlong_memory skip, which leaves such samples out; " if self._overlong else ""
            raise RunStopped(
                f"memory ran out for one sample alone ({longest}){recomputed}. What helps: --data.max_len below "
                f"{longest.num_tokens}; {skip}with --ds.packing_samples a ring (--ds.ring_attn_size); --ds.zero_stage "
                "3; --ds.adam_offload."
            )
        what_is_done = "it does not fit alone, and is left out (--data.overlong_memory skip)"
        self._say(tuple(alone), what_is_done, left_out=sorted(names))
        return names

    def _grow(self) -> None:
        self._steps_since += 1
        if not self._halvings or self._steps_since < self._patience:
            return
        self._has_grown = True
        self._set(self._halvings - 1)
        self._tell(f"{self._patience} steps had memory enough: {self._in_words()}.", self._facts())
        if not self._halvings and self._note is not None:
            self._note.unlink(missing_ok=True)

    def _set(self, halvings: int) -> None:
        self._halvings, self._steps_since = halvings, 0
        if isinstance(self._loader, StepWindowLoader):
            self._loader.halvings = halvings
        if self._model is not None:
            self._recompute(self._model, halvings > 0)

    def _can_recompute(self) -> bool:
        """More than now."""
        return self._model is not None and not self._halvings and not self._model.is_checkpointing

    def _recompute(self, model: PreparedModel, is_wanted: bool) -> None:
        if is_wanted and not model.is_checkpointing:
            with suppress(UserError):  # not every model can
                model.gradient_checkpointing_enable()
                self._recomputes = True
        elif not is_wanted and self._recomputes:
            model.gradient_checkpointing_disable()
            self._recomputes = False

    def _start_again_smaller(self, shortages: tuple[Shortage, ...]) -> str:
        """Writes the note. Returns the words that the ranks leave with."""
        words = "; ".join(map(str, shortages))
        if self._note is not None:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._note, json.dumps({"halvings": self._halvings + 1, "shortages": words}) + "\n")
        return (
            f"memory ran out ({words}) while the other ranks were in a collective that cannot be left. Nothing of the "
            "step is kept. Start again: --ckpt.load_enable goes on from the last checkpoint with micro-batches halved "
            f"({self._note})."
        )

    def _in_words(self) -> str:
        if not self._halvings:
            return "micro-batches are as they were asked for again"
        recomputed = ", activations are recomputed" if self._recomputes else ""
        return f"micro-batches are cut to 1/{2**self._halvings}{recomputed}"

    def _say(self, shortages: tuple[Shortage, ...], what_is_done: str, **facts: Any) -> None:
        words = "; ".join(map(str, shortages))
        self._tell(f"out of memory ({words}): {what_is_done}.", {"out_of_memory": words} | self._facts() | facts)

    def _facts(self) -> dict[str, Any]:
        return {"micro_batches_cut_to": 2.0**-self._halvings, "recomputes_activations": self._recomputes}
