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

from torch.distributed import ProcessGroup

from openrlhf.atomic_file import replace_file
from openrlhf.batching import StepWindow, StepWindowLoader
from openrlhf.engine.devices import give_back_at_once
from openrlhf.errors import UserError
from openrlhf.exit_codes import RankLost, RunStopped, StoppedAlone
from openrlhf.models import PreparedModel
from openrlhf.parallel.collectives import gather_objects
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
        counts_micro_batches: the loss depends on what stands in a micro-batch together (the load-balancing loss).
    """

    def __init__(
        self,
        loader: Any,
        model: PreparedModel | None = None,
        overlong: OverlongMemory | None = "stop",
        tell: Callable[[str, dict[str, Any]], None] = lambda words, facts: None,
        folder: Path | None = None,
        note_file: str = NOTE_FILE,
        counts_micro_batches: bool = False,
    ):
        self._loader, self._model, self._overlong, self._tell = loader, model, overlong, tell
        self._note = None if folder is None else folder / note_file
        self._counts_micro_batches = counts_micro_batches
        self._halvings = 0
        self._recomputes = False  # for the memory's sake: the user has not asked for it
        self._without: frozenset[str] = frozenset()  # units that are left out wherever they come
        self._steps_since, self._patience, self._has_grown = 0, STEPS_BEFORE_GROWTH, False

    @property
    def halvings(self) -> int:
        """How often micro-batches are halved at present."""
        return self._halvings

    def compute(self, window: StepWindow, work: Callable[[StepWindow], Result]) -> Result:
        """The result of `work` for the window, or for the same window cut smaller.

        Raises:
            RunStopped: a unit does not fit alone.
            StoppedAlone: likewise, and the other ranks are in a collective.
            RankLost: the ranks cannot go on, and start again with a smaller budget.
        """
        without = self._without
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

    def read_note(self, group: ProcessGroup | None = None) -> None:
        """Begins with the budget that the run had when its ranks could not go on; see `RankLost` of `compute`.

        Args: group: of all ranks. They take the smallest budget that any of them reads, maybe on a disk of its own.
        """
        notes = [note for note in gather_objects(self._read(), group) if note is not None]
        self._set(max((halvings for halvings, _, _ in notes), default=0))
        self._patience = max((patience for _, patience, _ in notes), default=STEPS_BEFORE_GROWTH)
        if self._halvings:
            self._tell(f"{self._note}: {self._in_words()}.", self._facts())
        names = frozenset(name for _, _, without in notes for name in without)
        if names and self._overlong == "skip":
            self._without = names
            words = f"{self._note}: {', '.join(sorted(names))} did not fit alone, and are left out"
            self._tell(f"{words} (--data.overlong_memory skip).", {"left_out": sorted(names)})

    def restore(self, why: str) -> None:
        """Micro-batches as they were before memory ran out: the layout for which it did is given up."""
        self._set(0)
        self._tell(f"{why}: {self._in_words()}.", self._facts())

    # -------------------------------------------------------------------------------------------------------------

    def _shrink(self, shortages: tuple[Shortage, ...]) -> frozenset[str]:
        """Returns the names of units that are left out from now on, where that is all that helps."""
        if alone := self._beyond_help(shortages):
            return self._leave_out(alone)
        if self._has_grown:
            self._patience, self._has_grown = 2 * self._patience, False
        self._set(self._halvings + 1)
        self._say(shortages, f"{self._in_words()}, and the step is computed again")
        return frozenset()

    def _beyond_help(self, shortages: tuple[Shortage, ...]) -> list[Shortage]:
        """Those that no smaller budget helps."""
        alone = [one for one in shortages if len(one.unit_names) < 2]
        return [] if self._can_recompute() else alone

    def _leave_out(self, alone: list[Shortage]) -> frozenset[str]:
        names = frozenset(name for one in alone for name in one.unit_names)
        if self._overlong != "skip" or not names:
            raise RunStopped(self._what_helps(alone))
        what_is_done = "it does not fit alone, and is left out (--data.overlong_memory skip)"
        self._say(tuple(alone), what_is_done, left_out=sorted(names))
        return names

    def _what_helps(self, alone: list[Shortage]) -> str:
        longest = max(alone, key=lambda one: one.num_tokens)
        recomputed = ", with activations recomputed" if self._model is not None else ""
        if not longest.unit_names:
            return (
                f"memory ran out for no sample at all ({longest}){recomputed}: the model leaves no room beside it. "
                "What helps: --ds.zero_stage 3; --ds.adam_offload."
            )
        skip = "--data.overlong_memory skip, which leaves such samples out; " if self._overlong == "stop" else ""
        return (
            f"memory ran out for one sample alone ({longest}){recomputed}. What helps: --data.max_len below "
            f"{longest.num_tokens}; {skip}with --ds.packing_samples a ring (--ds.ring_attn_size); --ds.zero_stage "
            "3; --ds.adam_offload."
        )

    def _grow(self) -> None:
        self._steps_since += 1
        if not self._halvings or self._steps_since < self._patience:
            return
        self._has_grown = True
        self._set(self._halvings - 1)
        self._tell(f"{self._patience} steps had memory enough: {self._in_words()}.", self._facts())
        if not self._halvings and self._note is not None and self._note.is_file():
            with suppress(OSError):  # the note that stays asks for less memory
                self._write(self._note, 0, self._patience)

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
                give_back_at_once()
        elif not is_wanted and self._recomputes:
            model.gradient_checkpointing_disable()
            self._recomputes = False

    def _start_again_smaller(self, shortages: tuple[Shortage, ...]) -> str:
        """Writes the note. Returns the words that the ranks leave with. Raises StoppedAlone where no note helps."""
        words = "; ".join(map(str, shortages))
        halvings, what_changes = self._halvings + 1, "micro-batches halved"
        if alone := self._beyond_help(shortages):
            names = frozenset(name for one in alone for name in one.unit_names)
            if self._overlong != "skip" or not names or not self._can_note_names():
                kept = "Checkpoints are intact: --ckpt.load_enable goes on from the last one."
                raise StoppedAlone(f"{self._what_helps(alone)} {kept}")
            self._without |= names
            halvings, what_changes = self._halvings, f"{', '.join(sorted(names))} left out, which does not fit alone"
        if self._note is not None:
            if noted := self._read():  # by another rank, for which memory ran out elsewhere
                halvings = max(halvings, noted[0])
                self._without |= frozenset(noted[2])
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._write(self._note, halvings, 2 * self._patience, words)
        return (
            f"memory ran out ({words}) while the other ranks were in a collective that cannot be left. Nothing of the "
            f"step is kept. Start again: --ckpt.load_enable goes on from the last checkpoint with {what_changes} "
            f"({self._note})."
        )

    def _can_note_names(self) -> bool:
        """A name in a loader of the user's own means another sample in each window."""
        return self._note is not None and isinstance(self._loader, StepWindowLoader)

    def _write(self, note: Path, halvings: int, patience: int, shortages: str = "") -> None:
        """What the next start is to know. It waits longer before it takes a halving back than this one has."""
        content = {"halvings": halvings, "patience": patience, "without": sorted(self._without), "shortages": shortages}
        replace_file(note, json.dumps(content) + "\n")

    def _read(self) -> tuple[int, int, tuple[str, ...]] | None:
        """(halvings, patience, names of units to leave out) of the note; None where there is no whole one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            if self._note is not None:
                note = json.loads(self._note.read_text())
                halvings, patience = int(note["halvings"]), int(note.get("patience", STEPS_BEFORE_GROWTH))
                return halvings, patience, tuple(map(str, note.get("without", ())))
        return None

    def _in_words(self) -> str:
        if not self._halvings:
            return "micro-batches are as they were asked for again"
        recomputed = ", activations are recomputed" if self._recomputes else ""
        balance = ", each with a load-balancing loss of its own" if self._counts_micro_batches else ""
        return f"micro-batches are cut to 1/{2**self._halvings}{balance}{recomputed}"

    def _say(self, shortages: tuple[Shortage, ...], what_is_done: str, **facts: Any) -> None:
        words = "; ".join(map(str, shortages))
        self._tell(f"out of memory ({words}): {what_is_done}.", {"out_of_memory": words} | self._facts() | facts)

    def _facts(self) -> dict[str, Any]:
        return {"micro_batches_cut_to": 2.0**-self._halvings, "recomputes_activations": self._recomputes}
