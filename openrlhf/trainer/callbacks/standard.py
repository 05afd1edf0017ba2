"""The callbacks of a run: those that the settings ask for, and the user's own by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.store import EXPORT_SUFFIX, CheckpointStore
from openrlhf.config import CkptConfig, TrainingConfig, shown_values
from openrlhf.named_object import named_object
from openrlhf.strategy.checkpoints import max_bytes_of
from openrlhf.tracking.tracker import open_tracker
from openrlhf.trainer.callbacks.callback import Callback
from openrlhf.trainer.callbacks.nonfinite_guard import NonFiniteGuard
from openrlhf.trainer.callbacks.preemption import Preemption, PreemptionAfterEvaluating
from openrlhf.trainer.callbacks.saving import Saving
from openrlhf.trainer.callbacks.tracking import Tracking
from openrlhf.trainer.evaluation import EarlyStop, Evaluating
from openrlhf.trainer.exporter import ExporterAlongTheWay

if TYPE_CHECKING:
    from openrlhf.trainer.command_trainer import CommandTrainer


def standard_callbacks(
    trainer: CommandTrainer, config: TrainingConfig, num_steps: int, resume_step: int, identity: RunIdentity
) -> list[Callback]:
    """The callbacks of the house, in their order.

    Args:
        num_steps: optimizer steps of the whole run; resume_step: those of them that are done.
        identity: a checkpoint of this run is recognised by it.
    """
    saving = _saving(trainer, config.ckpt, identity)
    preemption = Preemption(saving)
    tracker = open_tracker(
        config.logger,
        config.ckpt.output_dir,
        num_steps=num_steps,
        is_rank_0=trainer.strategy.is_rank_0(),
        resume_step=resume_step or None,
        shown_config=shown_values(config),
        spare_folder=config.ckpt.path,
        run_id=identity.run_id,
    )
    callbacks: list[Callback] = [
        Tracking(tracker),
        NonFiniteGuard(config.train.max_nonfinite_steps_in_a_row, config.ds.param_dtype == "fp16"),
        preemption,
    ]
    if trainer.eval_dataloader is not None:
        callbacks.append(Evaluating(config.eval.steps, config.eval.at_end, config.eval.every_epoch))
    if config.train.early_stop_patience is not None:
        callbacks.append(EarlyStop(config.train.early_stop_patience))
    return [*callbacks, PreemptionAfterEvaluating(preemption), saving]


def callbacks_named(names: str | None) -> list[Callback]:
    """The user's callbacks of `--train.callbacks module:Name,module:Name`.

    Raises UserError where one cannot be imported or made.
    """
    words = [word.strip() for word in (names or "").split(",") if word.strip()]
    return [named_object(word, Callback, "--train.callbacks") for word in words]


def _saving(trainer: CommandTrainer, ckpt: CkptConfig, identity: RunIdentity) -> Saving:
    checkpointer = trainer.strategy.checkpointers.of(ckpt.path, ckpt.max_num, ckpt.max_mem, ckpt.background_save)
    exporter = None
    if trainer.save_hf_ckpt:
        store = CheckpointStore(ckpt.path, ckpt.max_num, max_bytes_of(ckpt.max_mem), EXPORT_SUFFIX)
        exporter = ExporterAlongTheWay(
            trainer.strategy, trainer.model, trainer.tokenizer, store, ckpt.export_shard_bytes, identity
        )
    return Saving(None if trainer.disable_ds_ckpt else checkpointer, exporter, ckpt, identity)
