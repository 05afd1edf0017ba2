"""SFTTrainer with TRL's signature, on the parts of our own run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from openrlhf.compat.trl.accelerator import accelerator_of
from openrlhf.compat.trl.arguments import TrlSFTConfig, output_dir_for
from openrlhf.compat.trl.callbacks import STATE_FILE, untold_events
from openrlhf.compat.trl.given import check_given, check_model
from openrlhf.compat.trl.history import evaluation_in_their_names
from openrlhf.compat.trl.hub import model_id_of, push, write_model_card
from openrlhf.compat.trl.inputs import completion_only_loss_of, config_of, rows_of, tokenizer_of, translation_of
from openrlhf.compat.trl.overrides import check_overrides, check_set, no_such_name
from openrlhf.compat.trl.results import print_metrics, write_metrics
from openrlhf.compat.trl.run import TrlRun, last_checkpoint
from openrlhf.config.recipes import Recipe
from openrlhf.engine.launch import leave_ranks
from openrlhf.engine.launchers import adopt_launcher
from openrlhf.errors import UserError
from openrlhf.models.loading import facts_of
from openrlhf.strategy.checkpoints import load_best_if_wished


class TrlSFTTrainer:
    """`SFTTrainer` of TRL.

    Args:
        model: a folder, a hub name, or a model of transformers in memory.
        args: SFTConfig; None: its defaults.
        train_dataset, eval_dataset: a `datasets.Dataset`, or any sequence of dicts, in a format that TRL or we know.
        processing_class: the tokenizer; None: the model's.
        quantization_config: bitsandbytes' configuration of 4 bits, for a model that is given by its name.
        peft_config: PEFT's LoraConfig; None: the whole model is trained.
        callbacks: transformers' TrainerCallbacks.
        formatting_func: row → text, or another row.

    Attributes: model (of transformers, or PEFT's around it), args, processing_class, state, control, accelerator.
    Raises UserError, with all problems, for what cannot be had here.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Any, Any] | None = None,
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[Any], Any] | None = None,
        tokenizer: Any = None,
    ):
        given = {
            "data_collator": data_collator,
            "compute_loss_func": compute_loss_func,
            "compute_metrics": compute_metrics,
            "optimizers": None if optimizers == (None, None) else optimizers,
            "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }
        check_given(given, train_dataset, callbacks or ())
        check_overrides(type(self), TrlSFTTrainer)
        check_model(model, quantization_config)
        if args is not None and not isinstance(args, TrlSFTConfig):
            raise UserError(f"SFTTrainer(args=) is a {type(args).__name__}: give the SFTConfig of openrlhf.compat.trl.")
        self.args = args if args is not None else TrlSFTConfig(output_dir_for(model))
        if eval_dataset is None and str(self.args.eval_strategy).rpartition(".")[2].lower() != "no":
            raise UserError(
                f"eval_strategy is {self.args.eval_strategy}, and SFTTrainer has no eval_dataset: give one."
            )
        tokenizer = processing_class or tokenizer
        self._run = self._prepare(
            model,
            train_dataset,
            eval_dataset,
            tokenizer,
            callbacks or (),
            quantization_config,
            peft_config,
            formatting_func,
        )
        self._formatting_func = formatting_func
        self._is_trained = False
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self._join_and_build()
        self._is_built = True
        self._run.told.tell("on_init_end")

    def _prepare(
        self,
        model: Any,
        train_dataset: Any,
        eval_dataset: Any,
        tokenizer: Any,
        callbacks: Sequence[Any],
        quantization_config: Any,
        peft_config: Any,
        formatting_func: Any,
    ) -> TrlRun:
        """All that can fail without other ranks."""
        adopt_launcher()
        num_ranks = self.args.world_size
        asked = (self.args, model, quantization_config, num_ranks)
        before = translation_of(*asked, num_rows=1)  # the settings of data depend on no number
        config = config_of(before, model, peft_config, num_ranks)
        self.processing_class = tokenizer_of(config, tokenizer, self.args.pad_token)
        model_config = facts_of(model, "fp32").config
        of_rows = (model_config, self.processing_class, formatting_func)
        given = self.args.completion_only_loss
        train_data = rows_of("train_dataset", train_dataset, config, given, *of_rows)
        self._completion_only_loss = by_rows = completion_only_loss_of(given, train_dataset[0], formatting_func)
        eval_data = None if eval_dataset is None else rows_of("eval_dataset", eval_dataset, config, by_rows, *of_rows)
        translation = translation_of(*asked, num_rows=len(train_data))
        config = config_of(translation, model, peft_config, num_ranks)
        self._every = {
            "logging_steps": config.logger.logging_steps,
            "eval_steps": translation.settings.get("eval.steps", 1),
            "save_steps": translation.settings.get("ckpt.save_steps", 1),
        }
        if self.args.process_index == 0:
            Recipe([], translation).tell()
        return TrlRun(config, self.args, model, self.processing_class, train_data, eval_data, callbacks)

    def _join_and_build(self) -> None:
        run = self._run
        run.strategy.setup_distributed()
        run.check_ranks()
        run.build()
        self.model = run.trainer.model.model
        self.accelerator = accelerator_of(run.strategy, self.args)
        self._tell_untold(run.told.handler.callbacks)

    def _tell_untold(self, callbacks: Sequence[Any]) -> None:
        for sentence in untold_events(callbacks):
            self._run.strategy.print(f"note: {sentence}")

    is_deepspeed_enabled, is_fsdp_enabled = True, False
    _is_built = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises UserError for what nothing reads any more."""
        if self._is_built and value is not vars(self).get(name):
            check_set(name, TrlSFTTrainer)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not here."""
        raise AttributeError(no_such_name(type(self).__name__, name))

    @property
    def _output_dir(self) -> Path:
        return Path(self._run.config.ckpt.output_dir)

    # --- what scripts read ---------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """transformers' TrainerState."""
        return self._run.told.state

    @property
    def control(self) -> Any:
        """transformers' TrainerControl."""
        return self._run.told.control

    @property
    def callback_handler(self) -> Any:
        return self._run.told.handler

    @property
    def optimizer(self) -> Any:
        return self._run.trainer.optimizer

    @property
    def lr_scheduler(self) -> Any:
        return self._run.trainer.scheduler

    @property
    def tokenizer(self) -> Any:
        return self.processing_class

    @property
    def hub_model_id(self) -> str:
        """Where `push_to_hub` uploads to."""
        return model_id_of(self.args)

    def is_world_process_zero(self) -> bool:
        return self._run.strategy.is_rank_0()

    def is_local_process_zero(self) -> bool:
        return self.args.local_process_index == 0

    def add_callback(self, callback: Any) -> None:
        """Another TrainerCallback, an object or a class."""
        check_given({}, (), [callback])
        self.callback_handler.add_callback(callback)
        self._tell_untold([callback])

    def remove_callback(self, callback: Any) -> None:
        self.callback_handler.remove_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Takes it off; the object, or None."""
        return self.callback_handler.pop_callback(callback)

    # --- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Trains to the end of the run; all ranks call, once.

        Args: resume_from_checkpoint: the folder `checkpoint-<N>` to go on from; True: the newest of `output_dir`.

        Returns: `global_step`, `training_loss` (the mean over all steps of the run), `metrics`.
        Raises UserError where there is no such checkpoint, or it is of another run; where a run that is still going on
            holds the folder; where arguments have been set since the trainer was built.
        """
        if self._is_trained:
            raise UserError("train() has run: make another SFTTrainer to train again.")
        self._run.told.check_arguments()
        self._is_trained = True
        run, began_at = self._run, time.perf_counter()
        with run.strategy.watchdog, run.owning_folders():
            run.start(self._checkpoint(resume_from_checkpoint), self._every)
            first_sample = run.consumed_samples
            run.trainer.fit(run.config, run.consumed_samples)
            load_best_if_wished(run.strategy, run.trainer.trained, run.trainer.progress, run.config.ckpt)
        seconds = time.perf_counter() - began_at
        progress, history = run.trainer.progress, run.told.history
        num_samples, num_steps = progress.consumed_samples - first_sample, progress.optimizer_step
        metrics = {
            "train_runtime": seconds,
            "train_samples_per_second": num_samples / seconds,
            "train_steps_per_second": (num_steps - run.first_step) / seconds,
            "train_loss": history.train_loss,
            "epoch": history.epoch_of(num_steps),
        }
        run.told.end(metrics)
        return TrainOutput(num_steps, history.train_loss, metrics)

    def _checkpoint(self, given: str | bool | None) -> Path | None:
        if given is None or given is False:
            return None
        if given is not True:
            return Path(given)
        found = last_checkpoint(self._output_dir)
        if found is None:
            raise UserError(f"resume_from_checkpoint=True: {self.args.output_dir} holds no checkpoint-<N>.")
        return found

    def evaluate(self, eval_dataset: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Numbers over all rows of `eval_dataset` (default: the trainer's), by names that begin with the prefix.

        All ranks call. Raises UserError where there are no rows.
        """
        run, began_at = self._run, time.perf_counter()
        loader: Any = run.trainer.eval_dataloader
        if eval_dataset is not None:
            of_model = facts_of(self.model, "fp32").config, self.processing_class, self._formatting_func
            rows = rows_of("eval_dataset", eval_dataset, run.config, self._completion_only_loss, *of_model)
            loader = run.loader(rows, shuffle=False)
        if loader is None:
            raise UserError("evaluate() has no rows: give SFTTrainer an eval_dataset, or evaluate(eval_dataset=…).")
        numbers = evaluation_in_their_names(run.trainer.evaluate(loader, prefix=metric_key_prefix))
        seconds, num_rows = time.perf_counter() - began_at, len(loader.dataset)
        times = {"runtime": seconds, "samples_per_second": num_rows / seconds}
        named = {f"{metric_key_prefix}_{name}": value for name, value in times.items()}
        return numbers | named | {"epoch": self.state.epoch}

    # --- what is left on disk ------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None) -> None:
        """The model and its tokenizer in Hugging Face form; all ranks call.

        With `push_to_hub` the model goes into the output folder as well, which is uploaded.
        """
        own = str(self.args.output_dir)
        self._export(output_dir or own)
        if self.args.push_to_hub:
            if Path(output_dir or own) != Path(own):
                self._export(own)
            self._upload("Model save")

    def _export(self, folder: str) -> None:
        run = self._run
        run.strategy.save_model(
            run.trainer.model,
            self.processing_class,
            str(folder),
            max_shard_size=run.config.ckpt.export_shard_size,
            identity=run.identity_now(),
        )

    def save_state(self) -> None:
        """`trainer_state.json` in the output folder."""
        if self.is_world_process_zero():
            self._output_dir.mkdir(parents=True, exist_ok=True)
            self.state.save_to_json(str(self._output_dir / STATE_FILE))

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Prints the numbers on rank 0."""
        if self.is_world_process_zero():
            print_metrics(split, metrics)

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """`<split>_results.json` in the output folder; with `combined` they go into `all_results.json` too."""
        if self.is_world_process_zero():
            write_metrics(self._output_dir, split, metrics, combined)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, **more: Any
    ) -> None:
        """`README.md` in the output folder, with the hub's metadata; `more`: `license`, `language`."""
        if self.is_world_process_zero():
            tags = [*([tags] if isinstance(tags, str) else tags or ()), *getattr(self, "_tag_names", ())]
            write_model_card(self._run, model_name or self.args.hub_model_id, dataset_name, tags, **more)

    def push_to_hub(
        self, commit_message: str = "End of training", blocking: bool = True, token: str | None = None, **more: Any
    ) -> str | None:
        """Saves the model and its card, and uploads the output folder, without its checkpoints; all ranks call.

        A hub that cannot be reached is told in a sentence, and nothing is lost.
        Returns: the address of the upload, on rank 0; None where there was none.
        """
        self._export(str(self.args.output_dir))
        return self._upload(commit_message, token, **more)

    def _upload(self, message: str, token: str | None = None, revision: str | None = None, **card: Any) -> str | None:
        self.create_model_card(**card)
        return push(self.args, message, token, revision) if self.is_world_process_zero() else None

    def end(self) -> None:
        """The last of a script: the ranks part. All ranks call; trackers have been closed at the end of train()."""
        leave_ranks()
