"""The parts of a training, put together in the order in which they can fail.

What differs by command stands in a subclass: `sft_run.py`, `dpo_run.py`, `rm_run.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from openrlhf.batching import StepSchedule
from openrlhf.checkpoint.checkpointer import FoundCheckpoint
from openrlhf.checkpoint.export import is_export_of
from openrlhf.checkpoint.identity import RunIdentity, check_same_run, compare, is_longer, read_identity
from openrlhf.checkpoint.model_settings import note_end_token
from openrlhf.checkpoint.rehearsal import try_export
from openrlhf.config import TrainingConfig, write_resolved
from openrlhf.config.written import FILE_NAME as RESOLVED_CONFIG_FILE_NAME
from openrlhf.datasets.fingerprint import tokenizer_fingerprint
from openrlhf.engine.devices import give_back_at_once, give_back_memory
from openrlhf.engine.optimizers import build_schedule
from openrlhf.exit_codes import RunStopped
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import CannotPack
from openrlhf.models.loading import facts_of
from openrlhf.objectives import Objective
from openrlhf.parallel.agreement import check_agreement
from openrlhf.parallel.collectives import gather_objects
from openrlhf.run.answering import Answering
from openrlhf.run.builders import Prepare, build_eval_data, build_tokenizer, build_train_data, read_facts
from openrlhf.run.layout_choice import ChosenLayout, OpenLayout, open_layout_here
from openrlhf.run.push import describe_and_push
from openrlhf.run.report import CURVES_FILE, REPORT, keep_other_run_aside, write_report
from openrlhf.run.rescue import Rescue
from openrlhf.run.start_table import print_start_table
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.checkpoints import load_best_if_wished, load_found, newest, set_earlier_run_aside, starts_anew
from openrlhf.strategy.rank_facts import facts_of_config
from openrlhf.trainer import Callback, CommandTrainer
from openrlhf.trainer.callbacks.preemption import LeaveRequests, Preempted
from openrlhf.trainer.callbacks.standard import callbacks_named
from openrlhf.trainer.run_identity import base_model_fingerprint, settings_identity

RunT = TypeVar("RunT", bound="TrainingRun")


class TrainingRun(ABC):
    """A run: its configuration, data, strategy, trainer."""

    trainer: CommandTrainer
    layout: ChosenLayout | None = None  # None in a run whose model is in memory already
    _open_layout: OpenLayout
    facts_of: ClassVar[Callable[..., ModelFacts]] = staticmethod(facts_of)

    def __init__(
        self,
        config: Any,
        objective: Objective,
        callbacks: list[Callback],
        tokenizer: Any,
        train_data: Any,
        eval_data: Any | None,
    ):
        """Args: config: the command's; data sets as of `SFTDataset` or `PairDataset`."""
        self.config = config
        self.objective = objective
        self.callbacks = callbacks
        self.tokenizer = tokenizer
        self.train_data = train_data
        self.eval_data = eval_data
        self.strategy = DeepspeedStrategy.of(config)
        self.consumed_samples = 0
        self._found: FoundCheckpoint | None = None
        self._is_trained = False  # the checkpoint that was found is the last of this run

    @classmethod
    def train(cls, config: TrainingConfig) -> None:
        """One run, from data to exported model."""
        run = cls.prepare_data(config)
        run.strategy.setup_distributed()
        with run.strategy.watchdog:
            run.check_ranks()
            with run.owning_folders():
                if not run.has_finished():
                    run.choose_layout()
                    run.build_as_chosen()
                    run.resume()
                    run.fit_and_export()

    @classmethod
    def prepare_data(cls: type[RunT], config: TrainingConfig) -> RunT:
        """Before ranks are joined: nobody waits in a collective for a tokenizer."""
        objective, callbacks = cls.build_objective(config), callbacks_named(config.train.callbacks)
        tokenizer = build_tokenizer(config)
        facts = read_facts(config, cls.facts_of)
        layout = open_layout_here(config, facts)
        config = layout.config
        if config.eval.prompts is not None:
            callbacks.append(Answering(config, tokenizer, facts.config))
        prepare = cls.preparation(config)
        train_data = build_train_data(config, tokenizer, prepare)
        eval_data = build_eval_data(config, tokenizer, prepare)
        run = cls(config, objective, callbacks, tokenizer, train_data, eval_data)
        run._open_layout = layout
        layout.check_data([run.train_data, run.eval_data])
        return run

    # --- what a command has of its own ---------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def build_objective(cls, config: Any) -> Objective:
        """What is minimised. Raises UserError where there is no such thing."""

    @classmethod
    @abstractmethod
    def preparation(cls, config: Any) -> Prepare:
        """How rows become a data set."""

    @abstractmethod
    def build_model(self) -> Any:
        """The model that is trained, before any engine holds it."""

    @abstractmethod
    def trainer_of(self, **parts: Any) -> CommandTrainer:
        """The face of the loop, of what all commands give it."""

    @property
    def reference_fingerprint(self) -> str | None:
        """Of the weights of the reference model; None where there is none."""
        return None

    def rows_of_start_table(self) -> dict[str, str]:
        """More lines for the start table."""
        return {}

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        train = self.config.train
        schedule = StepSchedule(len(self.train_data), train.batch_size, train.seed)
        return schedule.num_steps(train.max_epochs, train.max_steps)

    def check_ranks(self) -> None:
        """Raises UserError, on every rank, that names each difference between the ranks: settings, data, tokenizer."""
        facts = facts_of_config(self.config) | {
            "the training data": self.train_data.fingerprint,
            "the evaluation's data": self.eval_data and self.eval_data.fingerprint,
            "the tokenizer": tokenizer_fingerprint(self.tokenizer),
            "the base model's weights": base_model_fingerprint(self.config.model.model_name_or_path),
            "the reference's weights": self.reference_fingerprint,
        }
        check_agreement(facts, self.strategy.groups.control)

    # --- going on ------------------------------------------------------------------------------------------------

    def has_finished(self) -> bool:
        """Looks for the checkpoint to go on from. True where that run has finished and its model is exported.

        A finished run goes on where it is to take more epochs or steps than it had; one that differs otherwise, where
        `--ckpt.allow_mismatch` allows it.
        """
        ckpt, base = self.config.ckpt, self.config.model.model_name_or_path
        checkpointer = self.strategy.checkpointers.of(ckpt.path)
        self._found = newest(checkpointer, self.strategy.print) if ckpt.load_enable else None
        if self._found is None:
            set_earlier_run_aside(checkpointer, self.strategy.print)
            if ckpt.load_enable:
                self.strategy.print(starts_anew(ckpt.path, base))
            return False
        # Compared as far as it can be before the model is built, lest a finished run is taken for another one.
        now = replace(
            settings_identity(self.config),
            data_fingerprint=self.train_data.fingerprint,
            num_samples=len(self.train_data),
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            horizon_steps=self.num_steps,
            reference=self.reference_fingerprint,
        )
        saved = read_identity(self._found.path)
        check_same_run(saved, now, str(self._found.path), ckpt.allow_mismatch)
        is_same = not compare(saved, now).refused and not is_longer(saved, now)
        is_exported = is_same and self._is_exported(
            saved.run_id, checkpointer.exported_steps(self._found.progress, ckpt.export_best)
        )
        # The last checkpoint could not be written where the disk was full, and the model was exported all the same.
        self._is_trained = is_same and (self._found.progress.finished or is_exported)
        if not is_exported:
            return False
        self.strategy.print(
            f"this run has finished: {self._found.path} is its last step, {ckpt.output_dir} its model. Nothing is done."
        )
        return True

    def _is_exported(self, run_id: str | None, steps: set[int]) -> bool:
        """Rank 0 has written the model; its folder need not be seen by other machines."""
        folders = self.config.ckpt.exported_folders()
        is_ours = self.strategy.is_rank_0() and any(
            all(is_export_of(folder, run_id, step) for folder in folders) for step in steps
        )
        return gather_objects(is_ours, self.strategy.groups.control)[0]

    # --- building ------------------------------------------------------------------------------------------------

    def choose_layout(self) -> None:
        """What the settings have left open. All ranks call."""
        self.layout = self._open_layout.choose_together([self.train_data, self.eval_data], self.strategy.groups.control)
        self.config = self.layout.config
        self.strategy.use(self.config)
        if self.config.model.gradient_checkpointing_enable and self._open_layout.may_recompute:
            give_back_at_once()

    def build_as_chosen(self) -> None:
        """Padded where the model packs by its configuration, and not when it is looked at."""
        try:
            self.build()
            return
        except CannotPack as error:
            if not self._open_layout.may_pad:
                raise
            self.strategy.print(f"note: {error.problems[0].split('. ')[0]}. So they are padded.")
        give_back_memory()  # behind the handler, whose error held the first engine: it goes before there is a second
        self._open_layout = self._open_layout.padded()
        self.choose_layout()
        self.build()

    def build(self) -> None:
        config, strategy = self.config, self.strategy
        model = self.build_model()
        note_end_token(model.model, self.tokenizer, self.train_data.report.turn_end_id)
        optimizer = strategy.create_optimizer(model)
        ratios = config.lr_warmup_ratio, config.min_lr_ratio
        scheduler = build_schedule(optimizer, config.lr_scheduler, self.num_steps, *ratios)
        trainer = self.build_trainer(*strategy.prepare((model, optimizer, scheduler)))
        trainer.reference_fingerprint = self.reference_fingerprint
        if self.layout is not None and self.layout.candidates:
            trainer.step_layouts = self.layout.candidates
        self.check_layout_of(trainer)  # before anything is said of a run that cannot be
        self.trainer = trainer

    def check_layout_of(self, trainer: CommandTrainer) -> None:
        """Raises UserError where its model computes samples together otherwise than alone."""
        trainer.check_layout()

    def build_trainer(self, model: Any, optimizer: Any, scheduler: Any) -> CommandTrainer:
        """Of what `strategy.prepare` gave back."""
        config = self.config
        return self.trainer_of(
            model=model,
            strategy=self.strategy,
            optim=optimizer,
            train_dataloader=self.loader(self.train_data, shuffle=True),
            eval_dataloader=None if self.eval_data is None else self.loader(self.eval_data, shuffle=False),
            scheduler=scheduler,
            tokenizer=self.tokenizer,
            max_norm=config.max_norm,
            max_epochs=config.train.max_epochs,
            save_hf_ckpt=config.ckpt.save_hf,
            disable_ds_ckpt=config.ckpt.disable_ds,
            callbacks=self.callbacks,
            objective=self.objective,
        )

    def loader(self, dataset: Any, shuffle: bool, **layout: Any) -> Any:
        """Step windows of the data set. Args: layout: more of it, as of `setup_dataloader`."""
        size = self.config.train.micro_batch_size
        return self.strategy.setup_dataloader(dataset, size, shuffle=shuffle, collate_fn=dataset.collate_fn, **layout)

    def resume(self) -> None:
        """Goes on from the checkpoint that was found."""
        if self._found is None:
            return
        states = load_found(
            self.strategy.checkpointers.of(self.config.ckpt.path),
            self.trainer.trained,
            self._found,
            self.trainer.identity(self.config, self.num_steps),
            self.config.ckpt.allow_mismatch,
            self.strategy.print,
        )
        self.consumed_samples = states["consumed_samples"]
        self.strategy.print(f"going on from {self._found.path}: {self.consumed_samples:,} samples are trained.")

    # --- running -------------------------------------------------------------------------------------------------

    def owning_folders(self) -> AbstractContextManager[None]:
        """While it lasts, no other run may write into the folders of this one."""
        return self.strategy.checkpointers.owning_folders(self.config.ckpt, self.strategy.print)

    def fit_and_export(self) -> None:
        """Trains what is left to train. Raises UserError where the trained model cannot be exported."""
        output_dir, trainer = Path(self.config.ckpt.output_dir), self.trainer
        if self._is_trained and self._found is not None:
            self.strategy.print("this run has finished, and its model is not exported yet: nothing is trained.")
            trainer.progress = self._found.progress
        else:
            model, group, ckpt = trainer.model.model, self.strategy.groups.control, self.config.ckpt
            notes = try_export(model, self.tokenizer, output_dir, group, ckpt.export_shard_bytes, ckpt.merge_lora)
            self._take_output_dir(output_dir)
            for note in notes:
                self.strategy.print(f"note: {note}")
        if not self._is_trained:
            with LeaveRequests("one step is trained and saved"):  # what comes before the loop listens
                self._fit()
        with LeaveRequests("the run is finished and its model exported"):
            load_best_if_wished(self.strategy, trainer.trained, trainer.progress, self.config.ckpt)
            self._export(output_dir)

    def _take_output_dir(self, output_dir: Path) -> None:
        """The files of an earlier run stay, under other names."""
        run_id, config_path = self.trainer.run_id, output_dir / RESOLVED_CONFIG_FILE_NAME
        if not self.strategy.is_rank_0():
            return
        keep_other_run_aside(output_dir, run_id, goes_on=self.consumed_samples > 0)
        write_resolved(self.layout.config_again if self.layout else self.config, config_path, run_id)
        data, rows = (self.train_data, self.eval_data), self.rows_of_start_table()
        print_start_table(self.config, self.trainer, *data, self.consumed_samples, layout=self.layout, more_rows=rows)

    def _fit(self) -> None:
        try:
            self.trainer.fit(self.config, self.consumed_samples)
        except (RunStopped, Preempted) as error:
            if isinstance(error, RunStopped):
                error.args = (f"{error}\n{self._rescue().after_stop()}",)
            elif self.config.ckpt.disable_ds:
                self.strategy.print(self._rescue().after_stop())
            raise

    def _export(self, output_dir: Path) -> None:
        """The model in Hugging Face form, and the picture of how it came about."""
        identity = self._identity().to_dict() | {"optimizer_step": self.trainer.exported_step}
        model, size = self.trainer.model, self.config.ckpt.export_shard_size
        with self._rescue().of_failed_export():
            self.strategy.save_model(model, self.tokenizer, str(output_dir), max_shard_size=size, identity=identity)
        if self.strategy.is_rank_0():
            report, say = self.train_data.report, self.strategy.print
            write_report(output_dir, self.config, report, self.trainer.exported_step, say)
            describe_and_push(self.config, model.model, report, self.trainer.exported_step, say)
            say(f"the model is in {output_dir}, its curves in {output_dir / CURVES_FILE}, all of it in {REPORT}.")

    def _identity(self) -> RunIdentity:
        return replace(self.trainer.identity(self.config, self.num_steps), run_id=self.trainer.run_id)

    def _rescue(self) -> Rescue:
        return Rescue(self.trainer, self.config.ckpt, self._identity())
