"""A step for which memory runs out is computed again in smaller pieces: on a machine that holds only so many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from openrlhf.batching import FixedSize, MicroBatch
from openrlhf.errors import UserError
from openrlhf.exit_codes import RankLost, RunStopped
from openrlhf.models import Actor
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.evaluation import evaluate
from openrlhf.trainer.memory import EVAL_NOTE_FILE, STEPS_BEFORE_GROWTH, MemoryBudget
from openrlhf.trainer.shortage import Apart, OutOfMemory, Shortage, has_memory_for, is_out_of_memory
from openrlhf.trainer.step import StepResult, WindowStep
from tests.helpers.tiny_models import tiny_model
from tests.trainer.plain_engine import Recipe, make_loader, make_rows, run_window, trained_on_plain_torch

Fits = Callable[[int, MicroBatch], bool]  # of the pass's number, and its micro-batch


def tokens(number: int) -> Fits:
    """So many tokens fit."""
    return lambda call, batch: batch.num_tokens <= number


def all_but(failing: int) -> Fits:
    """One pass fails, whatever its size."""
    return lambda call, batch: call != failing


@dataclass
class Machine:
    """Computes windows on plain torch, where not all passes fit."""

    fits: Fits
    recipe: Recipe = Recipe(layout=FixedSize(2))
    overlong: Any = "stop"
    lengths: tuple[int, ...] = (9, 3, 14, 5)
    told: list[str] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = tiny_model(self.recipe.kind, self.recipe.dtype, **dict(self.recipe.config))
        self.actor = Actor(model).train()
        self.loader = make_loader(make_rows(self.lengths), self.recipe)
        self.memory = MemoryBudget(self.loader, self.actor, self.overlong, self._tell)
        trained = trained_on_plain_torch(self.actor)
        self.step = WindowStep(self.actor, trained, DeepspeedStrategy(), self.recipe.objective())
        self._compute, self._calls = self.step._forward_and_backward, 0
        self.step._forward_and_backward = self._limited  # type: ignore[method-assign]

    def _tell(self, words: str, facts: dict[str, Any]) -> None:
        self.told.append(words)
        self.facts.append(facts)

    def _limited(self, scorer: Any, *more: Any) -> Any:
        self._calls += 1
        assert self._calls < 40, "the step is tried for ever"
        loss = self._compute(scorer, *more)
        if not self.fits(self._calls, scorer.batch):  # behind the backward pass: its gradients are there already
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    def run(self) -> tuple[StepResult, dict[str, torch.Tensor]]:
        (window,) = self.loader.windows(max_epochs=1)
        result = self.memory.compute(window, partial(self.step.run, optimizer_step=0))
        return result, {name: parameter.grad for name, parameter in self.actor.model.named_parameters()}


@pytest.mark.parametrize("fits", [tokens(14), all_but(1), all_but(2)], ids=["14 tokens", "first", "second"])
def test_loss_gradients_and_metrics_are_those_of_a_step_that_fits(fits):
    machine = Machine(fits)
    result, gradients = machine.run()
    expected, right = run_window(make_rows(), machine.recipe)
    assert result.metrics == pytest.approx(expected.metrics, rel=1e-12)
    assert result.counts.divisor == expected.counts.divisor
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_models_of_the_objectives_own_give_up_too(monkeypatch):
    machine, thrown = Machine(all_but(1)), []
    monkeypatch.setattr(machine.step._objective, "throw_away", lambda: thrown.append(True))
    machine.run()
    assert thrown


def test_micro_batches_are_halved_and_activations_recomputed_and_that_is_told():
    machine = Machine(tokens(14))
    machine.run()
    assert machine.memory.halvings == machine.loader.halvings == 1
    assert machine.actor.is_checkpointing
    (words,) = machine.told
    assert words.startswith(
        "out of memory (backward pass, rank 0: 23 tokens of row 2, row 0): micro-batches are cut to"
    )
    assert "1/2, activations are recomputed, and the step is computed again" in words
    (facts,) = machine.facts
    assert facts["micro_batches_cut_to"] == 0.5
    assert facts["recomputes_activations"] is True
    assert "row 2" in facts["out_of_memory"]


def test_micro_batches_are_halved_until_they_fit():
    machine = Machine(tokens(14), Recipe(layout=FixedSize(4)))
    result, _ = machine.run()
    assert machine.memory.halvings == 2
    assert result.loss == pytest.approx(run_window(make_rows())[0].loss, rel=1e-12)


def test_dropout_is_drawn_anew_as_in_the_attempt_that_failed():
    recipe = Recipe("gpt2", torch.float32, FixedSize(1), config=(("resid_pdrop", 0.5),))
    result, _ = Machine(all_but(3), recipe).run()
    assert result.loss == pytest.approx(run_window(make_rows(), recipe)[0].loss, rel=1e-6)


def test_a_sample_that_does_not_fit_alone_ends_the_run_with_its_name_and_length():
    with pytest.raises(RunStopped) as stopped:
        Machine(tokens(10)).run()
    assert "14 tokens of row 2" in str(stopped.value)
    assert "--data.max_len below 14" in str(stopped.value)
    assert "--data.overlong_memory skip" in str(stopped.value)


def test_a_sample_that_does_not_fit_alone_can_be_left_out():
    machine = Machine(tokens(10), overlong="skip")
    result, gradients = machine.run()
    rows = make_rows()
    expected, right = run_window([rows[0], rows[1], rows[3]], machine.recipe)
    assert result.loss == pytest.approx(expected.loss, rel=1e-12)
    assert result.counts.num_units_global == 4, "the run goes on behind the row that was left out"
    assert [one["left_out"] for one in machine.facts if "left_out" in one] == [["row 2"]]
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_sample_that_is_left_out_makes_no_other_step_slow():
    machine = Machine(tokens(20), overlong="skip", lengths=(9, 3, 40, 5))
    machine.run()
    assert machine.memory.halvings == 0
    assert not machine.actor.is_checkpointing


def test_the_budget_grows_back_and_waits_twice_as_long_after_growing_too_early():
    machine = Machine(all_but(1))
    (window,) = machine.loader.windows(max_epochs=1)
    fails = [True]

    def work(some: Any) -> None:
        if fails.pop() if fails else False:
            raise OutOfMemory((Shortage(0, "forward pass", ("a", "b"), 5),))

    def steps_until_growth() -> int:
        steps = 0
        while machine.memory.halvings or not steps:
            machine.memory.compute(window, work)
            steps += 1
            assert steps < 1000, "it never grows back"
        return steps

    assert steps_until_growth() == STEPS_BEFORE_GROWTH
    assert not machine.actor.is_checkpointing
    fails.append(True)
    assert steps_until_growth() == 2 * STEPS_BEFORE_GROWTH
    assert machine.told[-1].endswith("micro-batches are as they were asked for again.")


def test_an_update_that_runs_out_of_memory_ends_in_words():
    machine = Machine(tokens(100))

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    machine.step._trained.step = step  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match="in the update of step 1 on rank 0.*checkpoints are intact.*adam_offload"):
        machine.run()


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def work() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        has_memory_for(work)


@pytest.mark.parametrize(
    "work", [lambda: torch.empty(2**50, dtype=torch.uint8), lambda: bytearray(2**60)], ids=["torch", "python"]
)
def test_an_allocator_that_refuses_is_known(work):
    assert not has_memory_for(work)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_a_gpu_says_is_known(error):
    assert is_out_of_memory(error)


def test_ranks_that_cannot_go_on_leave_a_note_and_start_again_smaller(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)

    def work(some: Any) -> None:
        raise Apart((Shortage(1, "forward pass", ("row 2",), 14),))

    with pytest.raises(RankLost, match="rank 1: 14 tokens of row 2.*--ckpt.load_enable"):
        MemoryBudget(machine.loader, machine.actor, folder=tmp_path).compute(window, work)
    again = MemoryBudget(machine.loader, machine.actor, folder=tmp_path)
    again.read_note()
    assert again.halvings == machine.loader.halvings == 1
    of_evaluation = MemoryBudget(Machine(tokens(100)).loader, folder=tmp_path, note_file=EVAL_NOTE_FILE)
    of_evaluation.read_note()
    assert of_evaluation.halvings == 0, "training and evaluation have notes of their own"


@pytest.mark.parametrize("fits", [tokens(14), all_but(2)], ids=["14 tokens", "second"])
def test_an_evaluation_counts_each_row_once(fits, monkeypatch):
    machine, calls = Machine(fits), [0]
    objective = machine.recipe.objective()
    right = evaluate(machine.actor, machine.loader.windows(max_epochs=1), DeepspeedStrategy(), objective)
    loss = objective.loss

    def limited(scorer: Any, batch: MicroBatch, divisor: float) -> Any:
        calls[0] += 1
        share = loss(scorer, batch, divisor)
        if not fits(calls[0], batch):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return share

    monkeypatch.setattr(objective, "loss", limited)
    memory = MemoryBudget(machine.loader)
    windows = machine.loader.windows(max_epochs=1)
    found = evaluate(machine.actor, windows, DeepspeedStrategy(), objective, memory=memory)
    assert found == pytest.approx(right, rel=1e-12)
    assert memory.halvings == 1
