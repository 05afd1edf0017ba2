"""The layout of the next step is set on loader and model; the one that is kept is told, and goes into a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from openrlhf.batching import FixedSize, StepLayout, TokenBudget
from openrlhf.config import DeepspeedConfig, TrainConfig
from openrlhf.models import Actor
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer import layout_tuner
from openrlhf.trainer.layout_tuner import LayoutTuner
from openrlhf.trainer.memory import MemoryBudget
from openrlhf.trainer.shortage import OutOfMemory, Shortage
from tests.helpers.tiny_models import tiny_model
from tests.trainer.plain_engine import Recipe, make_loader, make_rows

FIRST, RECOMPUTED, LARGE = StepLayout(32), StepLayout(32, recomputes=True), StepLayout(64)
NUM_STEPS = 1 + 3 * 3 + 2 * 2


class Tuning:
    """A tuner, on a machine that computes steps of one layout in half the time."""

    def __init__(
        self,
        fastest: StepLayout,
        layouts=(FIRST, RECOMPUTED, LARGE),
        restored=None,
        steps_left=200,
        drops=None,
        compiles=None,
        **train,
    ):
        self.fastest, self.told, self.facts = fastest, [], []  # type: ignore[var-annotated]
        self.loader = make_loader(make_rows(), Recipe(layout=FixedSize(2)))
        self.model = Actor(tiny_model("llama"))
        if drops == "in a module":
            self.model.model.lora_dropout = torch.nn.Dropout(0.1)
        elif drops == "by the configuration":
            self.model.config.attention_dropout = 0.1
        self.memory = MemoryBudget(self.loader, self.model, tell=self._tell)
        if compiles == "layers":
            self.model.compile_layers()
        ds = DeepspeedConfig(deepcompile=compiles == "the whole model")
        strategy = DeepspeedStrategy(ds=ds, train=TrainConfig(**train))
        self.tuner = LayoutTuner(strategy, self.loader, self.model, self.memory, layouts, self._tell)
        self.tuner.begin(steps_left, restored)

    def _tell(self, words: str, facts: dict[str, Any]) -> None:
        self.told.append(words)
        self.facts.append(facts)

    @property
    def layout(self) -> StepLayout:
        assert isinstance(self.loader.layout, TokenBudget)
        return StepLayout(self.loader.layout.max_tokens, self.model.is_checkpointing)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.tuner.after_step(1.0 if self.layout == self.fastest else 2.0, num_tokens=1000)

    def run_out_of_memory(self) -> None:
        shortages, windows = [Shortage(0, "forward pass", ("a", "b"), 5)], self.loader.windows(max_epochs=1)

        def work(window: Any) -> None:
            if shortages:
                raise OutOfMemory((shortages.pop(),))

        self.memory.compute(next(windows), work)
        windows.close()


@pytest.mark.parametrize("fastest", [FIRST, RECOMPUTED, LARGE], ids=str)
def test_windows_are_cut_and_activations_recomputed_as_the_fastest_layout_says(fastest):
    tuning = Tuning(fastest)
    tuning.step(NUM_STEPS)
    assert tuning.layout == fastest
    assert tuning.tuner.kept is not None


def test_the_slowest_rank_counts(monkeypatch):
    tuning = Tuning(LARGE)
    monkeypatch.setattr(layout_tuner, "max_over", lambda seconds, group: seconds.clamp(min=2.0))  # of another rank
    tuning.step(NUM_STEPS)
    assert tuning.layout == FIRST


def test_every_layout_is_tried():
    tuning, seen = Tuning(LARGE), []
    for _ in range(NUM_STEPS):
        seen.append(tuning.layout)
        tuning.step()
    assert seen == [FIRST] * 4 + [RECOMPUTED] * 3 + [LARGE] * 3 + [FIRST] * 2 + [LARGE] * 2


def test_what_is_kept_is_told_once_with_what_each_has_taken():
    tuning = Tuning(LARGE)
    tuning.step(NUM_STEPS + 5)
    assert tuning.told == [
        "layout from here on: 64 tokens a micro-batch. Seen in the first steps: 32 tokens a micro-batch: 500 tokens/s; "
        "32 tokens a micro-batch, activations recomputed: 500 tokens/s; 64 tokens a micro-batch: 1,000 tokens/s."
    ]
    (facts,) = tuning.facts
    assert facts["layout"] == {"max_tokens": 64, "recomputes": False}
    assert facts["tried"][1] == {
        "max_tokens": 32,
        "recomputes": True,
        "tokens_per_second": 500,
        "num_steps": 3,
        "out_of_memory": False,
    }


def kept_by(fastest: StepLayout) -> dict[str, Any]:
    """As a checkpoint gives it back."""
    tuning = Tuning(fastest)
    tuning.step(NUM_STEPS)
    return json.loads(json.dumps(tuning.tuner.kept))


def test_a_run_that_goes_on_takes_the_layout_of_its_checkpoint_and_tries_nothing():
    tuning = Tuning(FIRST, restored=kept_by(LARGE), steps_left=1)
    assert tuning.layout == LARGE
    tuning.step(30)
    assert tuning.layout == LARGE
    assert tuning.told == ["layout from here on, as the checkpoint has it: 64 tokens a micro-batch."]
    assert tuning.tuner.kept == kept_by(LARGE)


@pytest.mark.parametrize("what", ["machine", "candidates", "settings"])
def test_a_run_that_goes_on_elsewhere_tries_again(what, monkeypatch):
    restored, layouts = kept_by(LARGE), (FIRST, RECOMPUTED, LARGE)
    if what == "machine":
        monkeypatch.setattr(layout_tuner, "hardware_name", lambda device: "another processor")
    elif what == "settings":
        restored["rests_on"]["settings"]["zero_stage"] = 3
    else:
        layouts = (FIRST, LARGE)
    tuning = Tuning(FIRST, layouts, restored)
    assert tuning.layout == FIRST
    tuning.step(NUM_STEPS)
    assert "tried" in tuning.facts[0]


def test_a_step_without_a_token_counts_for_nothing():
    """Its samples are left out, as they do not fit."""
    tuning = Tuning(LARGE)
    for _ in range(NUM_STEPS):
        tuning.tuner.after_step(1.0, num_tokens=0)
    assert tuning.layout == FIRST
    assert tuning.tuner.kept is None


def test_nothing_is_kept_before_the_trials_are_over():
    tuning = Tuning(LARGE)
    tuning.step(NUM_STEPS - 1)
    assert tuning.tuner.kept is None


def test_memory_that_runs_out_in_a_candidate_costs_that_step_alone():
    tuning = Tuning(LARGE)
    while tuning.layout != LARGE:
        tuning.step()
    tuning.run_out_of_memory()
    assert tuning.loader.halvings == 1
    tuning.step()
    assert tuning.loader.halvings == 0
    assert tuning.layout == FIRST
    assert tuning.told[1] == (
        "64 tokens a micro-batch are more than memory holds, and are not tried again: micro-batches are as they were "
        "asked for again."
    )
    assert tuning.told[2].endswith("64 tokens a micro-batch: out of memory.")
    assert tuning.facts[-1]["tried"][2]["out_of_memory"] is True


def test_memory_that_runs_out_in_the_first_layout_ends_the_trials():
    tuning = Tuning(LARGE)
    tuning.run_out_of_memory()
    tuning.step(NUM_STEPS)
    assert tuning.loader.halvings == 1
    assert tuning.model.is_checkpointing, "as memory needs it"
    assert tuning.tuner.kept is None


@pytest.mark.parametrize(
    "choice",
    [
        dict(layouts=(LARGE,)),
        dict(layouts=()),
        dict(steps_left=19),
        dict(tune_layout=False),
        dict(full_determinism_enable=True),
        dict(drops="by the configuration"),
        dict(drops="in a module"),
        dict(compiles="layers"),
        dict(compiles="the whole model"),
    ],
    ids=[
        *("one", "none", "19 steps left", "not to tune", "the same to the bit", "dropout", "an adapter's dropout"),
        *("compiled layers", "a compiled model"),
    ],
)
def test_where_there_is_nothing_to_choose_the_layout_stays_as_it_was(choice):
    tuning = Tuning(LARGE, **choice)
    for _ in range(NUM_STEPS):
        tuning.tuner.after_step(1.0, 1000)
    assert tuning.loader.layout == FixedSize(2)
    assert tuning.told == []


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (dict(drops="in a module"), "is not tuned: dropout would draw other numbers in another one."),
        (dict(compiles="layers"), "is not tuned: another one would be compiled anew, for longer than trials may take."),
        (dict(tune_layout=False, compiles="layers"), ""),
    ],
    ids=["dropout", "compiled layers", "not to tune"],
)
def test_what_forbids_another_layout_is_said_unless_none_was_asked_for(choice, words, capsys):
    Tuning(LARGE, **choice)
    said = capsys.readouterr().out
    assert words in said
    assert bool(words) == ("tuned" in said)
