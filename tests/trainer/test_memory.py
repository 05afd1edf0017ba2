"""A step for which memory runs out is computed again in smaller pieces: on a machine that holds only so many tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pyarrow.lib import ArrowException, ArrowInvalid

from openrlhf.batching import FixedSize, MicroBatch
from openrlhf.errors import UserError, is_out_of_memory
from openrlhf.exit_codes import RankLost, RunStopped, StoppedAlone
from openrlhf.models import Actor
from openrlhf.run.training_run import TrainingRun
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.evaluation import evaluate
from openrlhf.trainer.memory import EVAL_NOTE_FILE, STEPS_BEFORE_GROWTH, MemoryBudget
from openrlhf.trainer.shortage import Apart, OutOfMemory, Shortage, has_memory_for
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


def test_a_run_that_recomputes_as_memory_is_short_gives_back_what_it_frees(monkeypatch):
    """Behind a shortage, and where the layout was left open; not where the user has asked for recomputation."""
    asked = []
    for module in ("trainer.memory", "run.training_run"):
        monkeypatch.setattr(f"openrlhf.{module}.give_back_at_once", lambda: asked.append(1))
    Machine(tokens(14)).run()
    assert len(asked) == 1
    for recomputes, is_open, times in ((True, True, 2), (True, False, 2), (False, True, 2)):
        model = SimpleNamespace(gradient_checkpointing_enable=recomputes)
        layout = SimpleNamespace(config=SimpleNamespace(model=model))
        opened = SimpleNamespace(choose_together=lambda *_, chosen=layout: chosen, may_recompute=is_open)
        strategy = SimpleNamespace(groups=SimpleNamespace(control=None), use=lambda config: None)
        run: Any = SimpleNamespace(_open_layout=opened, train_data=None, eval_data=None, strategy=strategy)
        TrainingRun.choose_layout(run)
        assert len(asked) == times, (recomputes, is_open)


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
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    ],
)
def test_what_a_gpu_says_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
        ArrowException("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    ],
    ids=["python", "C++", "pyarrow"],
)
def test_a_thread_without_room_is_known(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ArrowInvalid("out of memory, says a row"))
    assert not is_out_of_memory(RuntimeError("Read error [10.0.0.2]: Resource temporarily unavailable"))


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


def apart(*names: str) -> Callable[[Any], None]:
    """Memory runs out on one rank, for a micro-batch of these units, and the others are in a collective."""

    def work(window: Any) -> None:
        if names and set(names) <= set(window.unit_names):
            raise Apart((Shortage(1, "forward pass", names, 14),))

    return work


def started(machine: Machine, folder: Path, overlong: Any) -> MemoryBudget:
    """The budget of a run that starts where another has left a note."""
    machine.told.clear()
    memory = MemoryBudget(machine.loader, machine.actor, overlong, machine._tell, folder)
    memory.read_note()
    return memory


def test_a_sample_alone_for_which_one_rank_runs_out_is_no_reason_to_start_again_for_ever(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    with pytest.raises(RankLost, match="micro-batches halved") as lost:  # and activations recomputed: that may help
        started(machine, tmp_path, "stop").compute(window, apart("row 2"))
    assert not isinstance(lost.value, StoppedAlone)
    with pytest.raises(StoppedAlone, match="one sample alone .*row 2.*overlong_memory skip.*Checkpoints are intact"):
        started(machine, tmp_path, "stop").compute(window, apart("row 2"))


def test_a_sample_alone_for_which_one_rank_runs_out_is_left_out_from_the_next_start_on(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    for words in ("micro-batches halved", "row 2 left out"):
        with pytest.raises(RankLost, match=words):
            started(machine, tmp_path, "skip").compute(window, apart("row 2"))
    for _ in range(2):
        again = started(machine, tmp_path, "skip")
        assert "row 2 did not fit alone, and are left out" in machine.told[-1]
        again.compute(window, apart("row 2"))
        with pytest.raises(RankLost, match="micro-batches halved"):
            again.compute(window, apart("row 0", "row 1"))
    assert not started(machine, tmp_path, "stop")._without


def test_ranks_that_run_out_at_unlike_samples_note_both(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    with pytest.raises(RankLost):
        started(machine, tmp_path, "skip").compute(window, apart("row 2"))
    ranks = [started(machine, tmp_path, "skip") for _ in range(2)]
    for rank, name in zip(ranks, ("row 1", "row 2"), strict=True):
        with pytest.raises(RankLost, match=f"{name} left out"):
            rank.compute(window, apart(name))
    assert started(machine, tmp_path, "skip")._without == {"row 1", "row 2"}


def test_a_halving_is_noted_beside_a_sample_that_is_left_out(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    with pytest.raises(RankLost):
        started(machine, tmp_path, "skip").compute(window, apart("row 2"))
    ranks = [started(machine, tmp_path, "skip") for _ in range(2)]
    for rank, names in zip(ranks, (("row 0", "row 1"), ("row 2",)), strict=True):
        with pytest.raises(RankLost):
            rank.compute(window, apart(*names))
    last = started(machine, tmp_path, "skip")
    assert (last.halvings, last._without) == (2, {"row 2"})


def test_a_loader_of_ones_own_names_no_sample_for_ever(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    memory = MemoryBudget([], None, "skip", folder=tmp_path)
    with pytest.raises(StoppedAlone, match="one sample alone"):
        memory.compute(window, apart("row 2"))


def test_a_note_keeps_how_long_the_run_is_to_wait_before_it_grows(tmp_path):
    machine = Machine(tokens(100))
    (window,) = machine.loader.windows(max_epochs=1)
    waited = []
    for _ in range(3):
        memory = started(machine, tmp_path, "stop")
        steps = 0
        while memory.halvings:
            memory.compute(window, apart())
            steps += 1
        waited.append(steps)
        with pytest.raises(RankLost):
            memory.compute(window, apart("row 0", "row 1"))
    assert waited == [0, 2 * STEPS_BEFORE_GROWTH, 4 * STEPS_BEFORE_GROWTH]


@pytest.mark.parametrize("content", ["null", "[]", "3", "{}", '{"halvings": null}', "{"])
def test_a_note_that_is_none_is_as_if_it_were_not_there(content, tmp_path):
    (tmp_path / "memory.json").write_text(content)
    assert started(Machine(tokens(100)), tmp_path, "stop").halvings == 0


def budget_of_rank(folder: str) -> int:
    """Rank 1 alone has left a note, on a disk of its own."""
    mine = Path(folder, str(dist.get_rank()))
    mine.mkdir()
    if dist.get_rank():
        (mine / "memory.json").write_text('{"halvings": 2}')
    memory = MemoryBudget(None, folder=mine)
    memory.read_note(dist.new_group(backend="gloo"))
    return memory.halvings


def test_ranks_take_the_smallest_budget_that_any_of_them_reads(two_ranks, tmp_path):
    assert two_ranks.run(budget_of_rank, str(tmp_path)) == [2, 2]


def test_a_pass_without_a_sample_that_does_not_fit_is_not_said_to_be_a_sample():
    machine = Machine(tokens(100), overlong="skip")
    (window,) = machine.loader.windows(max_epochs=1)

    def work(some: Any) -> None:
        raise OutOfMemory((Shortage(1, "forward pass", (), 0),))

    with pytest.raises(RunStopped, match="no sample at all .*leaves no room beside it.*zero_stage 3") as stopped:
        machine.memory.compute(window, work)
    assert "max_len" not in str(stopped.value)


def test_a_balancing_loss_of_smaller_micro_batches_is_told():
    machine = Machine(tokens(14))
    machine.memory = MemoryBudget(machine.loader, machine.actor, tell=machine._tell, counts_micro_batches=True)
    machine.run()
    assert "cut to 1/2, each with a load-balancing loss of its own, activations are recomputed" in machine.told[0]


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
