"""transformers' TrainerCallbacks on our loop: state and control as they know them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import DefaultFlowCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from openrlhf.compat.trl.history import RunHistory, evaluation_in_their_names
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_objects
from openrlhf.trainer import Callback
from openrlhf.trainer.callbacks.epochs import ends_epoch

if TYPE_CHECKING:
    from openrlhf.trainer import Trainer

STATE_FILE = "trainer_state.json"
_NEVER_CALLED = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_prediction_step")


class TrainerCallbacks(Callback):
    """Tells transformers' callbacks of each event, and does what their control asks for.

    transformers' own DefaultFlowCallback comes first, so that what is due by the arguments stands in `control`, and the
    others may change it.

    Args:
        args: the script's arguments, which callbacks are given.
        callbacks: objects of TrainerCallback, or its subclasses.
        model, tokenizer, optimizer, scheduler: what callbacks are given by keyword.
    """

    def __init__(self, args: Any, callbacks: Sequence[Any], model: Any, tokenizer: Any, optimizer: Any, scheduler: Any):
        self.handler = CallbackHandler([DefaultFlowCallback, *callbacks], model, tokenizer, optimizer, scheduler)
        self.state, self.control = TrainerState(log_history=[]), TrainerControl()
        self.state.is_world_process_zero = args.process_index == 0
        self.state.is_local_process_zero = args.local_process_index == 0
        self.history = RunHistory(1, self.state.log_history)
        self._args, self._as_built = args, args.settings_now()

    def begin(self, max_steps: int, steps_per_epoch: int, every: dict[str, int]) -> None:
        """Before a run: its length, and `logging_steps`, `eval_steps` and `save_steps` in steps.

        Evaluations before it are none of the run's.
        """
        state = self.state
        state.log_history.clear()
        state.best_metric = state.best_global_step = None
        state.max_steps, state.num_train_epochs = max_steps, -(-max_steps // max(1, steps_per_epoch))
        state.logging_steps, state.eval_steps, state.save_steps = (
            every[name] for name in ("logging_steps", "eval_steps", "save_steps")
        )
        state.train_batch_size = self._args.per_device_train_batch_size
        self.history = RunHistory(steps_per_epoch, state.log_history)

    def check_arguments(self) -> None:
        """Raises UserError for arguments that are set after the run was built by them: it would not obey."""
        now = self._args.settings_now()
        if changed := [name for name, value in self._as_built.items() if now[name] != value]:
            raise UserError(
                f"args.{', args.'.join(changed)} is set after the trainer was built, which has read it: set it before."
            )

    def replay(self, records: Sequence[dict[str, Any]]) -> None:
        """The records of the steps before the one that the run goes on from."""
        for record in records:
            self.state.global_step = record["global_step"]
            if "loss" not in record:
                numbers = evaluation_in_their_names(record)
                self._keep_best(numbers)
                self.history.append(numbers, self.state.global_step)
                continue
            self.history.add_step(record)
            if self.state.global_step % self.state.logging_steps == 0:
                self.history.log()

    def tell(self, event: str, **facts: Any) -> None:
        """Calls `event` of every callback; the last control that is given back holds."""
        given_back = self.handler.call_event(event, self._args, self.state, self.control, **facts)
        self.control = self.control if given_back is None else given_back

    def end(self, metrics: dict[str, Any]) -> None:
        """After the run: its summary, and the end of training."""
        self.tell("on_log", logs=self.history.append(metrics, self.state.global_step))
        self.tell("on_train_end")

    # --- our loop's events ---------------------------------------------------------------------------------------

    def on_run_begin(self, trainer: Trainer) -> None:
        self._stand_at(trainer)
        self.control = TrainerControl()
        self.tell("on_train_begin")
        self.tell("on_epoch_begin")
        self._obey(trainer)

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.history.add_step(metrics)
        self._stand_at(trainer)
        control = self.control
        control.should_log = control.should_save = control.should_evaluate = False
        self.tell("on_step_end")
        is_last = self.control.should_training_stop  # or max_steps is reached: DefaultFlowCallback says so
        if ends_epoch(trainer) or is_last:
            self.tell("on_epoch_end")
        if self.control.should_log:
            self.tell("on_log", logs=self.history.log())
        self.check_arguments()
        self._obey(trainer)
        if ends_epoch(trainer) and not is_last:
            self.tell("on_epoch_begin")

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        numbers = evaluation_in_their_names(metrics)
        told = self.history.append(numbers, self.state.global_step)
        self.tell("on_log", logs=told)
        self.tell("on_evaluate", metrics=told)
        own_loss = trainer.progress.eval_loss_here  # not of other rows, which a script may evaluate
        if own_loss is not None and metrics.get("eval_loss") == own_loss:
            self._keep_best(numbers)  # after the event: callbacks compare with the best before this evaluation
            self.control.should_evaluate = False  # it is done, also where a callback has asked for it meanwhile
        self._obey(trainer)

    def on_save(self, trainer: Trainer, path: str) -> None:
        output_dir = Path(self._args.output_dir)
        if trainer.strategy.is_rank_0():
            link_checkpoints(output_dir, Path(path).parent)
            self.state.save_to_json(str(output_dir / STATE_FILE))
        gather_objects(None, trainer.strategy.groups.control)  # callbacks of every rank may look into the folder
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.global_step}")
        self.tell("on_save")
        self._obey(trainer)

    def _stand_at(self, trainer: Trainer) -> None:
        state = self.state
        state.global_step = trainer.progress.optimizer_step
        state.epoch = self.history.epoch_of(state.global_step)
        state.num_input_tokens_seen = self.history.num_tokens

    def _keep_best(self, numbers: dict[str, Any]) -> None:
        name = self._args.metric_for_best_model or "loss"
        value = numbers.get(name if name.startswith("eval_") else f"eval_{name}")
        if value is None:
            return
        best = self.state.best_metric
        if best is None or (value > best if self._args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step

    def _obey(self, trainer: Trainer) -> None:
        """What is due goes to the loop, which does it on all ranks. Raises UserError for what cannot be done."""
        if self.control.should_epoch_stop:
            raise UserError(
                "a callback has set control.should_epoch_stop, which is not here: should_training_stop ends the run, "
                "and max_steps bounds it."
            )
        if self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            trainer.request_stop("a callback has set control.should_training_stop")
        if self.control.should_save:
            trainer.request_save()
        if self.control.should_evaluate and trainer.eval_dataloader is not None:
            trainer.request_evaluation()
        self.control.should_save = self.control.should_evaluate = False


def is_trainer_callback(one: Any) -> bool:
    """Whether it is an object of TrainerCallback, or a subclass."""
    return issubclass(_kind(one), TrainerCallback)


def untold_events(callbacks: Sequence[Any]) -> list[str]:
    """A sentence for each method of a callback, an object or a class, that nothing here calls."""
    return [
        f"{kind.__name__}.{event} is never called here; on_step_end is, after each step."
        for kind in map(_kind, callbacks)
        for event in _NEVER_CALLED
        if getattr(kind, event) is not getattr(TrainerCallback, event)
    ]


def _kind(one: Any) -> type:
    return one if isinstance(one, type) else type(one)


def link_checkpoints(output_dir: Path, checkpoints: Path) -> None:
    """`checkpoint-<N>` in the output folder for each exported model of the checkpoints, and for none that is gone."""
    for link in output_dir.glob("checkpoint-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    for folder in checkpoints.glob("global_step*_hf"):
        link = output_dir / f"checkpoint-{folder.name.removeprefix('global_step').removesuffix('_hf')}"
        if not os.path.lexists(link):
            link.symlink_to(os.path.relpath(folder, output_dir), target_is_directory=True)
