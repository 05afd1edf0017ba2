"""A run tunes its layout while it trains: its first steps are computed in candidates, and the fastest is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from openrlhf.batching import StepLayout, StepWindowLoader, TokenBudget
from openrlhf.engine.devices import hardware_name
from openrlhf.models import PreparedModel
from openrlhf.parallel.collectives import gather_objects, max_over
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.layout_trials import LEAST_STEPS, LayoutTrials, Timing
from openrlhf.trainer.memory import MemoryBudget


class LayoutTuner:
    """Sets the layout of each next step. All ranks decide alike: the slowest rank's seconds count.

    Args:
        strategy, loader, model, memory: the run's. Windows are cut, and activations recomputed, as the layout says.
        layouts: the candidates, the likely best first; fewer than two: loader and model stay as they are.
        tell: is given each event: words for people, facts for the record.

    Attributes:
        kept: the layout that is kept and the facts that it rests on, as JSON values for a checkpoint; None: none is.
    """

    def __init__(
        self,
        strategy: DeepspeedStrategy,
        loader: Any,
        model: PreparedModel,
        memory: MemoryBudget,
        layouts: Sequence[StepLayout] = (),
        tell: Callable[[str, dict[str, Any]], None] = lambda words, facts: None,
    ):
        self._strategy, self._loader, self._model, self._memory = strategy, loader, model, memory
        is_asked = strategy.train.tune_layout and not strategy.train.full_determinism_enable
        can_choose = is_asked and isinstance(loader, StepWindowLoader) and len(layouts) > 1
        self._obstacle = self._what_forbids_another_layout() if can_choose else ""
        self._layouts = tuple(layouts) if can_choose and not self._obstacle else ()
        self._tell = tell
        self._steps: Generator[StepLayout, Timing, StepLayout] | None = None  # None: no trials are under way
        self._trials: LayoutTrials
        self._layout: StepLayout  # of the next step
        self.kept: dict[str, Any] | None = None

    def begin(self, num_steps_left: int, restored: dict[str, Any] | None) -> None:
        """Before the first step; all ranks call.

        Args: restored: `kept`, of the checkpoint that the run goes on from. It holds where the facts are the same.
        """
        if self._obstacle:
            self._strategy.print(f"the layout stays as it is and is not tuned: {self._obstacle}.")
        if not self._layouts:
            return
        if restored is not None and restored["rests_on"] == self._rests_on():
            layout = StepLayout(**restored["layout"])
            self._keep(layout)
            self._tell(f"layout from here on, as the checkpoint has it: {layout}.", {"layout": asdict(layout)})
        elif num_steps_left >= LEAST_STEPS:
            self._trials = LayoutTrials(self._layouts, num_steps_left)
            self._steps = self._trials.run()
            self._take(next(self._steps))

    def after_step(self, seconds: float, num_tokens: int) -> None:
        """Args: seconds: that the step took on this rank. num_tokens: of its window, over all ranks."""
        if self._steps is None or not num_tokens:  # all of the window's samples may be left out
            return
        ran_out = self._memory.halvings > 0
        if ran_out and self._layout == self._trials.first:
            self._steps = None  # what is left of the memory is the MemoryBudget's to find out
            return
        if ran_out:
            self._memory.restore(f"{self._layout} are more than memory holds, and are not tried again")
        slowest = max_over(torch.tensor(seconds, dtype=torch.float64), self._strategy.groups.control)
        try:
            self._take(self._steps.send(Timing(float(slowest), num_tokens, ran_out)))
        except StopIteration as end:
            self._steps = None
            self._keep(end.value)
            self._tell(self._in_words(), {"layout": asdict(self._layout), "tried": self._tried()})

    # -------------------------------------------------------------------------------------------------------------

    def _what_forbids_another_layout(self) -> str:
        if self._model.draws_random_numbers:
            return "dropout would draw other numbers in another one"
        if self._model.is_compiled or self._strategy.ds.deepcompile:
            return "another one would be compiled anew, for longer than trials may take"
        return ""

    def _keep(self, layout: StepLayout) -> None:
        self._take(layout)
        self.kept = {"layout": asdict(layout), "rests_on": self._rests_on()}

    def _take(self, layout: StepLayout) -> None:
        self._layout, loader = layout, self._loader
        max_tokens = layout.max_tokens * loader.groups.sequence_size
        at_present = loader.layout
        if not isinstance(at_present, TokenBudget):
            at_present = TokenBudget(max_tokens, loader.micro_batch_format.packed)
        loader.layout = replace(at_present, max_tokens=max_tokens)
        if layout.recomputes and not self._model.is_checkpointing:
            self._model.gradient_checkpointing_enable()
        elif not layout.recomputes and self._model.is_checkpointing:
            self._model.gradient_checkpointing_disable()

    def _rests_on(self) -> dict[str, Any]:
        """Elsewhere, or with other settings, another layout may be the fastest; all ranks call."""
        strategy = self._strategy
        machines = gather_objects(hardware_name(strategy.device), strategy.groups.control)
        facts = {
            "num_ranks": strategy.world_size,
            "machines": sorted(set(machines)),
            "layouts": [asdict(layout) for layout in self._layouts],
            "settings": asdict(strategy.ds),
        }
        return json.loads(json.dumps(facts))  # as a checkpoint gives it back

    def _tried(self) -> list[dict[str, Any]]:
        rates = self._trials.seconds_a_token
        return [
            asdict(layout)
            | {
                "tokens_per_second": 1 / min(rates[layout]) if layout in rates else None,
                "num_steps": len(rates.get(layout, ())),
                "out_of_memory": layout in self._trials.struck,
            }
            for layout in self._layouts
        ]

    def _in_words(self) -> str:
        words = []
        for layout, tried in zip(self._layouts, self._tried(), strict=True):
            rate = tried["tokens_per_second"]
            result = "not tried" if rate is None else f"{rate:,.0f} tokens/s"
            words.append(f"{layout}: {'out of memory' if tried['out_of_memory'] else result}")
        return f"layout from here on: {self._layout}. Seen in the first steps: {'; '.join(words)}."
