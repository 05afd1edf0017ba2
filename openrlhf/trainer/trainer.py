"""The loop: step windows in, a trained model out. All that is not the step is a callback."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf.batching import ForeignLoader, StepLayout, StepWindow, StepWindowLoader
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.engine.devices import trim_heap
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.models import PreparedModel
from openrlhf.models.limits import check_vocabulary
from openrlhf.objectives import NO_AUX_LOSS, AuxLossSettings, Objective
from openrlhf.parallel.agreement import check_agreement
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.rank_facts import facts_of_loader
from openrlhf.trainer.callbacks.callback import Callback, CallbackList, Wishes
from openrlhf.trainer.evaluation import evaluate
from openrlhf.trainer.layout_tuner import LayoutTuner
from openrlhf.trainer.memory import EVAL_NOTE_FILE, NOTE_FILE, MemoryBudget, OverlongMemory
from openrlhf.trainer.step import StepResult, WindowStep
from openrlhf.trainer.step_size import check_step_size

Loader = StepWindowLoader | Iterable[Any]


class Trainer:
    """Trains a model on step windows by an objective.

    Args:
        model: what `strategy.prepare` gave back.
        train_dataloader: what `strategy.setup_dataloader` gave, or any iterable of this rank's micro-batches
            `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S).
        eval_dataloader: likewise, or None.
        objective: what is minimised.
        batch_size: units an optimizer step, over all ranks: the strategy's, or 1 where it is left out.
        max_epochs: passes over the data.
        tokenizer: saved with the model.
        callbacks: the user's own; they come before those of the house. None: those that the settings name.
        all_targets: every token of a loader of the user's own is a target, whatever its mask says.
    """

    sequences_a_unit = 1  # of a row of the data set

    def __init__(
        self,
        model: PreparedModel,
        strategy: DeepspeedStrategy,
        train_dataloader: Loader,
        eval_dataloader: Loader | None,
        objective: Objective,
        *,
        batch_size: int = 1,
        max_epochs: int = 1,
        tokenizer: Any = None,
        callbacks: Sequence[Callback] | None = None,
        all_targets: bool = False,
    ):
        self.model = model
        self.strategy = strategy
        self.train_dataloader = train_dataloader
        self.eval_dataloader = eval_dataloader
        self.objective = objective
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.tokenizer = tokenizer
        self.progress = TrainingProgress()
        self.last_step: StepResult
        self._given_callbacks = callbacks
        self._callbacks = CallbackList(self, callbacks or ())  # an evaluation may come before the run
        self.wishes = Wishes()
        self._all_targets = all_targets
        self._with_entropy = False
        self._memory, self._eval_memory = MemoryBudget(train_dataloader), MemoryBudget(eval_dataloader)
        self._tuner = LayoutTuner(strategy, train_dataloader, model, self._memory)
        self._logged: dict[str, float] = {}
        self._events: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        self._names_of_record: frozenset[str] = frozenset()

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(
        self,
        named_callbacks: Sequence[Callback],
        standard_callbacks: Sequence[Callback],
        consumed_samples: int = 0,
        max_steps: int | None = None,
        aux_loss: AuxLossSettings = NO_AUX_LOSS,
        with_entropy: bool = False,
        overlong_memory: OverlongMemory = "stop",
        memory_folder: Path | None = None,
        layouts: Sequence[StepLayout] = (),
    ) -> None:
        """Trains from `consumed_samples` to the end of the last epoch, or until `max_steps` steps of the run are done.

        Args:
            named_callbacks: the user's own by the settings, where the constructor was given none.
            standard_callbacks: those of the house, in their order; they come after the user's own.
            overlong_memory, memory_folder: as of `MemoryBudget`. layouts: as of `LayoutTuner`.
        """
        self.check_layout()
        self._with_entropy = with_entropy
        users = named_callbacks if self._given_callbacks is None else self._given_callbacks
        self._callbacks, self.wishes = CallbackList(self, users, standard_callbacks), Wishes()
        self.progress = self._progress_at(consumed_samples)
        self.wishes.stop_reason = self.progress.stop_reason  # wished in the step in which the run was asked to leave
        self._check_ranks(users, max_steps, aux_loss)
        step = WindowStep(self.model, self.trained, self.strategy, self.objective, aux_loss, with_entropy)
        tell = partial(self._tell_event, 1)  # at the step that is computed
        self._memory = MemoryBudget(
            self.train_dataloader, self.model, overlong_memory, tell, memory_folder, NOTE_FILE, aux_loss.coef != 0
        )
        tell_now = partial(self._tell_event, 0)
        self._eval_memory = MemoryBudget(
            self.eval_dataloader, None, overlong_memory, tell_now, memory_folder, EVAL_NOTE_FILE
        )
        self._tuner = LayoutTuner(self.strategy, self.train_dataloader, self.model, self._memory, layouts, tell)
        self._tuner.begin(self._num_steps_left(max_steps), self.trained.restored_layout)
        self._memory.read_note(self.strategy.groups.control)
        self._eval_memory.read_note(self.strategy.groups.control)
        self.model.train()
        with self._callbacks.leaving():
            self.emit("on_run_begin")
            trim_heap()  # of what loading has left
            for number, (window, began_at) in enumerate(self._timed_windows(max_steps)):
                run = partial(step.run, optimizer_step=self.progress.optimizer_step, began_at=began_at)
                self.last_step = self._memory.compute(window, run)
                self._tuner.after_step(self.last_step.seconds, self.last_step.counts.num_tokens_global)
                self._advance(window)
                self._emit_record("on_step_end", self._record())
                if number == 0:
                    trim_heap()  # of what passes leave the first time
            if self.wishes.stop_reason is not None:
                self.strategy.print(f"stopped after step {self.progress.optimizer_step}: {self.wishes.stop_reason}.")
            self.progress = replace(self.progress, finished=True)
            self._callbacks.emit_end()
        self._callbacks = CallbackList(self, users)  # those of the house are closed: an evaluation may come later

    def check_layout(self) -> None:
        """Raises UserError where the model computes samples of a pack, or of a padded batch, otherwise than alone."""
        train, is_packed = self.strategy.train, self.strategy.ds.packing_samples
        num_sequences = train.micro_batch_size * self.sequences_a_unit
        if is_packed or num_sequences > 1 or train.max_tokens_per_micro_batch is not None:
            self.model.check_layout(is_packed, self.strategy.groups.sequence)

    def _check_ranks(self, users: Sequence[Callback], max_steps: int | None, aux_loss: AuxLossSettings) -> None:
        """Raises UserError where a rank would train on other rows, or in another way."""
        loaders = facts_of_loader("the training data", self.train_dataloader)
        if self.eval_dataloader is not None:
            loaders |= facts_of_loader("the evaluation's data", self.eval_dataloader)
        check_agreement(
            loaders
            | {
                "batch_size": self.batch_size,
                "max_epochs": self.max_epochs,
                "--train.max_steps": max_steps,
                "the samples trained before": self.progress.consumed_samples,
                "the objective": type(self.objective).__name__,
                "the load-balancing loss": aux_loss,
                "the callbacks": [type(one).__name__ for one in users],
            },
            self.strategy.groups.control,
        )

    def _timed_windows(self, max_steps: int | None) -> Iterator[tuple[StepWindow, float]]:
        """The windows still to train, each with the moment at which the loop began to wait for it."""
        windows = self.windows.windows_to_train(self.progress, self.max_epochs)
        while self.wishes.stop_reason is None and (max_steps is None or self.progress.optimizer_step < max_steps):
            self.strategy.watchdog.note("reading the next samples")
            began_at = time.perf_counter()
            window = next(windows, None)
            if window is None:
                return
            self._check_ids(window)
            yield window, began_at

    def _num_steps_left(self, max_steps: int | None) -> int:
        num_steps = (self.windows.steps_per_epoch or 0) * self.max_epochs
        return (num_steps if max_steps is None else min(num_steps, max_steps)) - self.progress.optimizer_step

    def _check_ids(self, window: StepWindow) -> None:
        """On the CPU: a GPU would abort without a word."""
        for one in window.micro_batches:
            if not one.input_ids.numel():  # a short pack leaves ranks of a ring without a token
                continue
            smallest, largest = one.input_ids.aminmax()
            what = ", ".join(one.unit_names) or "a micro-batch"
            check_vocabulary(self.model.config, int(smallest), int(largest), what)

    def _advance(self, window: StepWindow) -> None:
        counts = self.last_step.counts
        self.progress = self.progress.after_step(
            window.epoch, counts.num_units_global, counts.num_tokens_global, counts.num_target_tokens_global
        )

    def _record(self) -> dict[str, float]:
        result = self.last_step
        more = {name: value for name, value in result.metrics.items() if name != "loss"}
        return {
            "global_step": self.progress.optimizer_step,
            "epoch": self.progress.epoch,
            "loss": result.loss,
            "lr": result.lr,
            "grad_norm": result.outcome.grad_norm,
            "num_tokens": result.counts.num_tokens_global,
            "num_target_tokens": result.counts.num_target_tokens_global,
            "consumed_samples": self.progress.consumed_samples,
            "tokens_per_second": result.counts.num_tokens_global / result.seconds,
            "step_seconds": result.seconds,
            **more,
        }

    # --- for callbacks -------------------------------------------------------------------------------------------

    def emit(self, event: str, *facts: Any) -> None:
        """Hands an event to every callback, in order; all ranks call."""
        self._callbacks.emit(event, *facts)

    def _emit_record(self, event: str, record: dict[str, float]) -> None:
        self._names_of_record = frozenset(record)
        self._callbacks.emit_record(event, record)

    def log(self, metrics: dict[str, float]) -> None:
        """Adds numbers to the record that is written next, of a step or of an evaluation.

        Raises ValueError for a name that the record has already, TypeError or ValueError for what is no number.
        """
        if taken := sorted(self._names_of_record.intersection(metrics)):
            raise ValueError(f"the record has {', '.join(taken)} already: log under another name")
        self._logged |= {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}

    def take_logged(self) -> dict[str, float]:
        """The numbers that `log` was given since the last record."""
        logged, self._logged = self._logged, {}
        return logged

    def _tell_event(self, steps_on: int, words: str, facts: dict[str, Any]) -> None:
        self.strategy.print(words)
        self._events.append({"global_step": self.progress.optimizer_step + steps_on, **facts})

    def take_events(self) -> list[dict[str, Any]]:
        """What has happened beside the steps since it was last asked, as records of `metrics.jsonl`."""
        events, self._events = self._events, []
        return events

    def log_answers(self, answers: Sequence[dict[str, Any]]) -> None:
        """Shows texts that the model has written: `prompt`, `response`, `global_step`, and whatever else is known."""
        self._answers += answers

    def take_answers(self) -> list[dict[str, Any]]:
        """Those that `log_answers` was given since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def request_save(self) -> None:
        """Asks for a save at the end of this step."""
        self.wishes.save = True

    def request_evaluation(self) -> None:
        """Asks for an evaluation on the run's own rows at the end of this step."""
        self.wishes.evaluation = True

    def request_stop(self, reason: str) -> None:
        """Asks for the end of the run after this step; its model is exported as at its usual end."""
        self.wishes.stop_reason = reason

    def evaluate(self, dataloader: Loader | None = None, steps: int = 0, prefix: str = "eval") -> dict[str, float]:
        """Evaluates on all rows of `dataloader` (default: the run's own), and hands the record to the callbacks.

        Args:
            steps: part of OpenRLHF's interface; the record has the run's own step.
            prefix: that of the record's names; numbers under another one than `eval` are none of the run's evaluation.
        """
        dataloader = self.eval_dataloader if dataloader is None else dataloader
        metrics = self._evaluated(dataloader)
        if dataloader is self.eval_dataloader:  # on other rows it says nothing of the run's best checkpoint
            self.progress = self.progress.after_evaluation(metrics["eval_loss"])
        named = {f"{prefix}{name.removeprefix('eval')}": value for name, value in metrics.items()}
        record = {"global_step": self.progress.optimizer_step, **named}
        self._emit_record("on_evaluate", record)
        return record

    def _evaluated(self, dataloader: Loader | None) -> dict[str, float]:
        """The metrics alone."""
        assert dataloader is not None, "there is nothing to evaluate on"
        windows = self._source_of(dataloader, is_trained=False)
        memory = self._eval_memory if dataloader is self.eval_dataloader else MemoryBudget(dataloader)
        return evaluate(
            self.model, windows.windows(max_epochs=1), self.strategy, self.objective, self._with_entropy, memory
        )

    # --- where the run stands ------------------------------------------------------------------------------------

    @property
    def trained(self) -> TrainedModel:
        """The engine, optimizer, schedule and guard that `strategy.prepare` put under the model."""
        assert self.model.trained is not None, "strategy.prepare comes before training"
        return self.model.trained

    @property
    def states_to_save(self) -> dict[str, Any]:
        """A checkpoint's part beside engine and progress, as JSON values."""
        kept = {"layout": self._tuner.kept} if self._tuner.kept is not None else {}
        return {"guard": self.trained.guard.state_dict()} | kept

    @property
    def windows(self) -> StepWindowLoader | ForeignLoader:
        """The step windows to train on."""
        return self._source_of(self.train_dataloader, is_trained=True)

    def _source_of(self, dataloader: Loader, is_trained: bool) -> StepWindowLoader | ForeignLoader:
        if isinstance(dataloader, StepWindowLoader):
            return dataloader
        return ForeignLoader(
            dataloader,
            self.strategy.micro_batches_a_step if is_trained else 1,
            self.strategy.train_batch_size,
            self.strategy.micro_batch_format(),
            self.strategy.groups,
            self._all_targets,
            partial(check_step_size, self.strategy, is_said=self.batch_size != 1),
        )

    def _progress_at(self, consumed_samples: int) -> TrainingProgress:
        restored = self.trained.restored_progress
        if isinstance(restored, TrainingProgress) and restored.consumed_samples == consumed_samples:
            # It was finished or stopped, and goes on with more steps than it had.
            return replace(restored, finished=False, stop_reason=None if restored.finished else restored.stop_reason)
        return TrainingProgress(
            optimizer_step=self.windows.num_steps_before(consumed_samples), consumed_samples=consumed_samples
        )
