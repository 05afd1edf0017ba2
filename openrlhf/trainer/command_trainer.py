"""CommandTrainer: what the trainers of all commands have in common: `fit(args)`, by a command's settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from openrlhf.batching import StepLayout, StepWindowLoader
from openrlhf.checkpoint.identity import RunIdentity, model_shape
from openrlhf.config import TrainingConfig, from_namespace
from openrlhf.config.written import told_of_namespace
from openrlhf.datasets.fingerprint import tokenizer_fingerprint
from openrlhf.engine.optimizers import fit_schedule
from openrlhf.errors import UserError
from openrlhf.objectives import AuxLossSettings, Objective
from openrlhf.parallel.agreement import check_agreement
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.strategy.checkpoints import set_earlier_run_aside
from openrlhf.strategy.rank_facts import facts_of_config
from openrlhf.trainer.callbacks import Callback
from openrlhf.trainer.callbacks.standard import callbacks_named, standard_callbacks
from openrlhf.trainer.memory import EVAL_NOTE_FILE, NOTE_FILE
from openrlhf.trainer.run_identity import base_model_fingerprint, function_of_config, settings_identity
from openrlhf.trainer.trainer import Loader, Trainer

_NAMES_OF_A_STEP = ("gpt_loss", "loss_mean", "lr", "aux_loss")  # OpenRLHF's
_OF_AN_ADAPTER = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")  # as PEFT names them
_NEVER_READ = (  # what a script would have its own loss by
    "loss_fn",
    "concatenated_forward",
    "concatenated_inputs",
    "packed_samples_forward",
    "_get_batch_logps",
    "_packed_get_batch_logps",
    "compute_loss",
    "training_step",
)
_OF_THE_CONSTRUCTOR = {"epochs": "max_epochs", "beta": "_beta"}  # OpenRLHF's attribute → ours, which fit reads


class CommandTrainer(Trainer):
    """A trainer with OpenRLHF's signature.

    Args:
        model, optim, scheduler: what `strategy.prepare` gave back; the model knows the other two.
        max_norm: the strategy clips; another value than the strategy's is an error.
        save_hf_ckpt, disable_ds_ckpt: what each save writes.
        callbacks: the user's own; None: those that `--train.callbacks` names.
        objective: what is minimised.
        has_own_objective: it holds whatever settings `fit` is given.
        others: as of `Trainer`.
    """

    config_class: ClassVar[type[TrainingConfig]]
    loss_setting: ClassVar[str]  # by which the settings of `fit` name the loss
    step_layouts: tuple[StepLayout, ...] = ()  # that the run may choose from, the likely best first

    def __init__(
        self,
        model: Any,
        strategy: DeepspeedStrategy,
        optim: Any,
        train_dataloader: Loader,
        eval_dataloader: Loader | None,
        scheduler: Any,
        max_norm: float | None,
        save_hf_ckpt: bool,
        disable_ds_ckpt: bool,
        callbacks: Sequence[Callback] | None,
        objective: Objective,
        *,
        has_own_objective: bool,
        **others: Any,
    ):
        if not self._has_own_loop():
            self._check_overrides()
        self._check_callbacks(callbacks)
        self._check_max_norm(max_norm, strategy)
        super().__init__(
            model,
            strategy,
            train_dataloader,
            eval_dataloader,
            objective,
            callbacks=callbacks,
            **others,
        )
        self.optimizer = optim
        self.scheduler = scheduler
        self.save_hf_ckpt = save_hf_ckpt
        self.disable_ds_ckpt = disable_ds_ckpt
        self.reference_fingerprint: str | None = None  # of the weights of the reference model, where there is one
        self.reference_function: dict[str, Any] = {}  # of a reference of its own: see `function_of_config`
        self.reference_log_probs: dict[str, str] = {}  # see `RunIdentity`
        self._has_own_objective = has_own_objective

    @abstractmethod
    def objective_of(self, config: Any) -> Objective:
        """What the settings name."""

    def settings_of(self, config: Any) -> Any:
        """The settings as this trainer holds them, for the identity of its run."""
        return config

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Trains to the end of the last epoch.

        Args:
            args: a configuration, or any object with the names of the command line, nested or flat; a missing name has
                its default.
            consumed_samples: where the data stream stands (0, or what `strategy.load_ckpt` gave back).
            num_update_steps_per_epoch: for the time left; needed by nothing else.

        Raises:
            Preempted: SIGTERM or SIGUSR1 came; the run has saved.
            UserError: another run holds the folders of output or checkpoints, or ranks do not share the latter.
            NonFiniteSteps: several steps in a row were not finite.
            CallbackFailed: a callback of the user's own raised.
        """
        self._check_overrides()
        config = args if isinstance(args, self.config_class) else from_namespace(self.config_class, args)
        if config is not args:
            for sentence in told_of_namespace(self.config_class, args):
                self.strategy.print(sentence)
        check_agreement(facts_of_config(config), self.strategy.groups.control)
        if not self._has_own_objective:
            self.objective = self.objective_of(config)
        named_callbacks = callbacks_named(config.train.callbacks) if self._given_callbacks is None else []
        steps_per_epoch = self.windows.steps_per_epoch or num_update_steps_per_epoch or 0
        num_steps = min(steps_per_epoch * self.max_epochs, config.train.max_steps or 2**62)
        first_step = self._progress_at(consumed_samples).optimizer_step
        if num_steps and (note := fit_schedule(self.trained.scheduler, num_steps, first_step)):
            self.strategy.print(note)
        identity = replace(self.identity(config, num_steps), run_id=self.run_id)
        checkpointers, writes = self.strategy.checkpointers, not self.disable_ds_ckpt
        with checkpointers.owning_folders(config.ckpt, self.strategy.print, writes):
            if not config.ckpt.load_enable and not consumed_samples:
                for name in (NOTE_FILE, EVAL_NOTE_FILE):  # of an earlier run
                    Path(config.ckpt.path, name).unlink(missing_ok=True)
            self._take_checkpoints(config.ckpt.path, consumed_samples)
            self.run(
                named_callbacks,
                [*self._hooks(args), *standard_callbacks(self, config, num_steps, first_step, identity)],
                consumed_samples,
                config.train.max_steps,
                AuxLossSettings(config.model.aux_loss_coef, config.model.aux_loss_scope),
                config.logger.entropy,
                config.data.overlong_memory,
                Path(config.ckpt.path),
                self.step_layouts,
            )

    def _take_checkpoints(self, folder: str, consumed_samples: int) -> None:
        """Those of other runs go aside where this one begins to write; it may have some of an earlier `fit`."""
        if self.disable_ds_ckpt and not self.save_hf_ckpt:
            return
        checkpointer = self.strategy.checkpointers.of(folder)
        if self.trained.restored_progress is None and consumed_samples == 0:
            set_earlier_run_aside(checkpointer, self.strategy.print, self.run_id)
        checkpointer.holds_own_run = True

    def save_logs_and_checkpoints(
        self,
        args: Any,
        global_step: int,
        step_bar: Any,
        logs_dict: dict[str, float] | None = None,
        client_states: dict[str, Any] | None = None,
    ) -> None:
        """OpenRLHF's hook, called after every step where a subclass overrides it.

        Records, evaluations and saves are made in any case. This adds to the step's record what `logs_dict` has more
        than it was called with.
        """
        self.log({name: number for name, number in (logs_dict or {}).items() if name not in _NAMES_OF_A_STEP})

    def _hooks(self, args: Any) -> list[Callback]:
        is_overridden = type(self).save_logs_and_checkpoints is not CommandTrainer.save_logs_and_checkpoints
        return [_ScriptHook(self.save_logs_and_checkpoints, args)] if is_overridden else []

    @property
    def run_id(self) -> str | None:
        """Of this run, from its first start on; None for one that goes on from a checkpoint of an earlier version."""
        return self.trained.run_id

    @property
    def exported_step(self) -> int:
        """The optimizer step whose weights the model has: the last one's, unless the run went back to the best."""
        return self.trained.went_back_to_step or self.progress.optimizer_step

    def identity(self, config: TrainingConfig, num_steps: int) -> RunIdentity:
        """The identity of this run, for its checkpoints; nothing is known of the data of a loader of the user's own."""
        model = self.model.model
        data = self.train_dataloader.dataset if isinstance(self.train_dataloader, StepWindowLoader) else None
        identity = replace(
            settings_identity(self.settings_of(config)),
            data_fingerprint=getattr(data, "fingerprint", "unknown"),
            num_samples=-1 if data is None else len(data),
            model_shape=model_shape(self.model.trainable_module),
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            horizon_steps=num_steps,
            base_model=base_model_fingerprint(model.config.name_or_path) if _is_frozen_in_part(model) else None,
            reference=self.reference_fingerprint,
            eval_fingerprint=getattr(getattr(self.eval_dataloader, "dataset", None), "fingerprint", None),
            reference_log_probs=self.reference_log_probs,
        )
        brought = _brought_by_adapter(config, model)
        computed = function_of_config("model.model_name_or_path", model.config) | self.reference_function
        return replace(identity, must_match=identity.must_match | brought | computed)

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises UserError for a loss or another value that nothing here would read."""
        if self._has_own_loop():
            return super().__setattr__(name, value)
        if name in _NEVER_READ:
            raise self._of_ones_own([name])
        self._check_as_built(name, value)
        return super().__setattr__(name, value)

    def _check_as_built(self, name: str, value: Any) -> None:
        ours = _OF_THE_CONSTRUCTOR.get(name)
        if ours in vars(self) and value != vars(self)[ours]:
            raise UserError(
                f"{name} is set to {value} on a trainer that was built with {vars(self)[ours]}, and nothing here reads "
                f"it: give {type(self).__name__}({ours.strip('_')}={value})."
            )

    def _has_own_loop(self) -> bool:
        """A subclass with a `fit` of its own, which reads what it likes."""
        return type(self).fit is not CommandTrainer.fit

    def _check_overrides(self) -> None:
        holders = [self, *type(self).__mro__[: type(self).__mro__.index(CommandTrainer)]]
        if own := [name for name in _NEVER_READ if any(name in vars(holder) for holder in holders)]:
            raise self._of_ones_own(own)
        for name in _OF_THE_CONSTRUCTOR.keys() & vars(self).keys():  # set where a `fit` of its own might have read it
            self._check_as_built(name, vars(self)[name])

    def _of_ones_own(self, names: Sequence[str]) -> UserError:
        kind = type(self).__name__
        return UserError(
            f"{kind} is given {' and '.join(names)} of its own, which nothing here reads: the loss is that of the "
            "trainer's objective. Make your loss an Objective, as examples/own_objective.py does, and give it by "
            f"{kind}(objective=…); {self.loss_setting}."
        )

    def _check_callbacks(self, callbacks: Sequence[Callback] | None) -> None:
        for callback in callbacks or ():
            if not isinstance(callback, Callback):
                raise UserError(
                    f"{type(self).__name__}(callbacks=) has {callback!r}, which is no object of a Callback's subclass."
                )

    def _check_max_norm(self, max_norm: float | None, strategy: DeepspeedStrategy) -> None:
        if max_norm is not None and max_norm != strategy.max_norm:
            raise UserError(
                f"{type(self).__name__}(max_norm={max_norm:g}) contradicts the strategy, which clips gradients at "
                f"{strategy.max_norm:g} (--max_norm). Give both the same value, or leave the trainer's out."
            )


def _is_frozen_in_part(model: Any) -> bool:
    """Whether there are weights that no checkpoint holds."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def _brought_by_adapter(config: TrainingConfig, model: Any) -> dict[str, Any]:
    """What the adapter that a run starts from decides: another one may lie there when the run goes on."""
    adapter = getattr(model, "peft_config", {}).get("default")
    if config.ds.lora.adapter_name_or_path is None or adapter is None:
        return {}
    return {f"ds.lora.adapter_name_or_path ({name})": getattr(adapter, name) for name in _OF_AN_ADAPTER}


class _ScriptHook(Callback):
    """Calls `hook(args, global_step, step_bar, logs_dict, client_states)` after every step."""

    def __init__(self, hook: Callable[..., None], args: Any):
        self._hook, self._args = hook, args
        self._no_bar = tqdm(disable=True)  # the bar that is seen is the tracker's

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        logs = {"gpt_loss": metrics["loss"], "loss_mean": metrics["loss"]}
        logs |= {name: metrics[name] for name in ("lr", "aux_loss") if name in metrics}
        progress = trainer.progress
        states = {"consumed_samples": progress.consumed_samples}
        self._hook(self._args, progress.optimizer_step, self._no_bar, logs, states)
