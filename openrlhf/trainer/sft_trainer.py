"""SFTTrainer: supervised fine-tuning as a list of events."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any

from openrlhf.batching import StepWindow, StepWindowLoader, windows_of_foreign_loader
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import EXPORT_SUFFIX, CheckpointStore
from openrlhf.config import SFTConfig, from_namespace
from openrlhf.datasets.fingerprint import tokenizer_fingerprint
from openrlhf.models import Actor
from openrlhf.parallel.collectives import any_rank
from openrlhf.run.run_files import open_run_tracker
from openrlhf.run.run_identity import base_model_fingerprint, run_identity
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.checkpoints import shape_of
from openrlhf.tracking import StepRecord, Tracker
from openrlhf.trainer.evaluation import evaluate
from openrlhf.trainer.exports import ExportsAlongTheWay
from openrlhf.trainer.numbers_watch import NumbersWatch
from openrlhf.trainer.saving import Saver
from openrlhf.trainer.signals import Preempted, PreemptionRequest
from openrlhf.trainer.window_step import AuxLossSettings, StepResult, WindowStep


class SFTTrainer:
    """Trains an Actor on step windows.

    Args:
        model, optim, scheduler: what `strategy.prepare` gave back.
        train_dataloader: what `strategy.setup_dataloader` gave, or any iterable of this rank's micro-batches
            `(input_ids, attention_mask, loss_mask)`, each (B, S) or (B, 1, S).
        eval_dataloader: likewise, or None.
        max_norm, pretrain_mode: part of OpenRLHF's interface; the strategy clips, the data set makes the masks.
        batch_size: samples an optimizer step, over all ranks; cuts a loader of the user's own into steps.
        max_epochs: passes over the data.
        tokenizer: saved with the model; its padding token fills rows.
        save_hf_ckpt, disable_ds_ckpt: what each save writes.
    """

    def __init__(
        self,
        model: Actor,
        strategy: DeepspeedStrategy,
        optim: Any,
        train_dataloader: StepWindowLoader | Iterable[Any],
        eval_dataloader: StepWindowLoader | Iterable[Any] | None,
        scheduler: Any,
        max_norm: float = 1,
        pretrain_mode: bool = False,
        batch_size: int = 1,
        max_epochs: int = 2,
        tokenizer: Any = None,
        save_hf_ckpt: bool = False,
        disable_ds_ckpt: bool = False,
    ):
        self.model = model
        self.strategy = strategy
        self.optimizer = optim
        self.train_dataloader = train_dataloader
        self.eval_dataloader = eval_dataloader
        self.scheduler = scheduler
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.tokenizer = tokenizer
        self.save_hf_ckpt = save_hf_ckpt
        self.disable_ds_ckpt = disable_ds_ckpt
        self.progress = TrainingProgress()

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Trains to the end of the last epoch.

        Args:
            args: any object with the names of the command line, nested or flat; what is missing takes its default.
            consumed_samples: where the data stream stands (0, or what `strategy.load_ckpt` gave back).
            num_update_steps_per_epoch: for the time left; needed by nothing else.

        Raises:
            Preempted: SIGTERM or SIGUSR1 came; the run has saved.
            NumbersWentWrong: several steps in a row were not finite.
        """
        config = from_namespace(SFTConfig, args)
        self.progress = self._progress_at(consumed_samples)
        num_steps = self._num_steps(num_update_steps_per_epoch)
        step = WindowStep(
            self.model,
            self.strategy,
            self.scheduler,
            AuxLossSettings(config.model.aux_loss_coef, config.model.aux_loss_scope),
        )
        watch = NumbersWatch(config.train.max_nonfinite_steps_in_a_row, config.ds.param_dtype == "fp16")
        saver = self._saver(config, num_steps)
        self.model.train()
        open_tracker = open_run_tracker(
            config, num_steps, self.progress.optimizer_step, is_rank_0=self.strategy.is_rank_0()
        )
        with PreemptionRequest() as preemption, open_tracker as tracker, saver:
            began_at = time.perf_counter()
            for window in self._windows(consumed_samples):
                result = step.run(window, self.progress.optimizer_step, began_at)
                self._advance(window, result)
                self._report(tracker, result)
                self._look_at_numbers(watch, result)
                if self._eval_is_due(config):
                    self._evaluate(tracker)
                self._save_if_due(saver, preemption)
                self.strategy.watchdog.note("reading the next samples")
                began_at = time.perf_counter()
            self._finish(tracker, saver)

    # --- events --------------------------------------------------------------------------------------------------

    def _advance(self, window: StepWindow, result: StepResult) -> None:
        done = self.progress
        self.progress = replace(
            done,
            optimizer_step=done.optimizer_step + 1,
            epoch=window.epoch,
            consumed_samples=done.consumed_samples + result.counts.num_samples_global,
            consumed_tokens=done.consumed_tokens + result.counts.num_tokens_global,
            consumed_target_tokens=done.consumed_target_tokens + result.counts.num_target_tokens_global,
        )

    def _report(self, tracker: Tracker, result: StepResult) -> None:
        record: StepRecord = {
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
        }
        if result.aux_loss is not None:
            record["aux_loss"] = result.aux_loss
        tracker.log_step(record)

    def _look_at_numbers(self, watch: NumbersWatch, result: StepResult) -> None:
        message = watch.look_at(result, self.progress.optimizer_step)
        if message:
            self.strategy.print(message)

    def _eval_is_due(self, config: SFTConfig) -> bool:
        every = config.eval.steps
        return self.eval_dataloader is not None and every > 0 and self.progress.optimizer_step % every == 0

    def _evaluate(self, tracker: Tracker) -> None:
        assert self.eval_dataloader is not None
        result = evaluate(self.model, self.eval_dataloader, self.strategy, self.pad_token_id)
        tracker.log_eval(
            {
                "global_step": self.progress.optimizer_step,
                "eval_loss": result.loss,
                "eval_perplexity": result.perplexity,
                "eval_num_target_tokens": result.num_target_tokens,
            }
        )
        best = self.progress.best_eval_loss
        self.progress = replace(self.progress, last_eval_loss=result.loss, last_eval_step=self.progress.optimizer_step)
        if math.isfinite(result.loss) and (best is None or result.loss < best):
            self.progress = replace(
                self.progress, best_eval_loss=result.loss, best_eval_step=self.progress.optimizer_step
            )

    def _save_if_due(self, saver: Saver, preemption: PreemptionRequest) -> None:
        must_leave = any_rank(preemption.is_made, self.strategy.groups.control)
        if must_leave or saver.is_due(self.progress.optimizer_step):
            saver.save(self.progress, self._eval_loss_here)
        if must_leave:
            saver.wait()
            what = "saved" if saver.writes_checkpoints else "no training checkpoint is written (--ckpt.disable_ds)"
            self.strategy.print(f"asked to leave after step {self.progress.optimizer_step}: {what}.")
            raise Preempted

    def _finish(self, tracker: Tracker, saver: Saver) -> None:
        if self.eval_dataloader is not None and self.progress.last_eval_step != self.progress.optimizer_step:
            self._evaluate(tracker)
        self.progress = replace(self.progress, finished=True)
        saver.save_at_end(self.progress, self._eval_loss_here)

    # --- where the run stands ------------------------------------------------------------------------------------

    @property
    def _eval_loss_here(self) -> float | None:
        """The evaluation loss of the present weights, where they were evaluated."""
        return self.progress.last_eval_loss if self.progress.last_eval_step == self.progress.optimizer_step else None

    @property
    def pad_token_id(self) -> int:
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def _saver(self, config: SFTConfig, num_steps: int) -> Saver:
        checkpointer = self.strategy.desk.checkpointer(
            config.ckpt.path, config.ckpt.max_num, config.ckpt.max_mem, config.ckpt.background_save
        )
        return Saver(
            self.strategy,
            self.model,
            self.scheduler,
            self.identity(config, num_steps),
            None if self.disable_ds_ckpt else checkpointer,
            self._exports(config) if self.save_hf_ckpt else None,
            config.ckpt,
        )

    def _exports(self, config: SFTConfig) -> ExportsAlongTheWay:
        store = CheckpointStore(config.ckpt.path, max_num=config.ckpt.max_num, suffix=EXPORT_SUFFIX)
        return ExportsAlongTheWay(self.strategy, self.model, self.tokenizer, store, config.ckpt.export_shard_size)

    def identity(self, config: SFTConfig, num_steps: int) -> RunIdentity:
        """What a checkpoint of this run is recognised by; of a loader of the user's own no data is known."""
        model = self.model.model
        data = self.train_dataloader.dataset if isinstance(self.train_dataloader, StepWindowLoader) else None
        return run_identity(
            config,
            data_fingerprint=getattr(data, "fingerprint", "unknown"),
            num_samples=-1 if data is None else len(data),
            model_shape=shape_of(self.model.trainable_module),
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            horizon_steps=num_steps,
            base_model=base_model_fingerprint(model.config.name_or_path) if hasattr(model, "peft_config") else None,
        )

    def _progress_at(self, consumed_samples: int) -> TrainingProgress:
        restored = self.strategy.restored_progress
        if restored is not None and restored.consumed_samples == consumed_samples:
            return restored
        return TrainingProgress(
            optimizer_step=self._num_steps_before(consumed_samples), consumed_samples=consumed_samples
        )

    def _num_steps_before(self, consumed_samples: int) -> int:
        if isinstance(self.train_dataloader, StepWindowLoader):
            return self.train_dataloader.schedule.num_steps_before(consumed_samples)
        return consumed_samples // self.batch_size

    def _num_steps(self, num_update_steps_per_epoch: int | None) -> int:
        if isinstance(self.train_dataloader, StepWindowLoader):
            num_update_steps_per_epoch = self.train_dataloader.schedule.steps_per_epoch
        if num_update_steps_per_epoch is None:
            num_batches = len(self.train_dataloader) if isinstance(self.train_dataloader, Sized) else 0
            num_update_steps_per_epoch = -(-num_batches // self.strategy.accumulated_gradient)
        return num_update_steps_per_epoch * self.max_epochs

    def _windows(self, consumed_samples: int) -> Iterator[StepWindow]:
        if isinstance(self.train_dataloader, StepWindowLoader):
            return self.train_dataloader.windows(consumed_samples, self.max_epochs)
        return windows_of_foreign_loader(
            self.train_dataloader,
            self.strategy.accumulated_gradient,
            self.strategy.micro_batch_format(self.pad_token_id),
            self.strategy.groups,
            self.max_epochs,
            skip_windows=self.progress.optimizer_step,
        )
