"""A run whose model and rows are in memory, and whose callbacks are transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.compat.trl.callbacks import TrainerCallbacks, link_checkpoints
from openrlhf.config import SFTConfig
from openrlhf.config.trl_data import word_of
from openrlhf.config.trl_parts import CHECKPOINTS
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.models.loading import PARAM_DTYPES
from openrlhf.objectives import objective_named
from openrlhf.parallel.collectives import gather_objects
from openrlhf.run.builders import build_actor
from openrlhf.run.sft_run import SFTRun
from openrlhf.strategy.checkpoints import load_found, newest, set_earlier_run_aside
from openrlhf.tracking.metrics_file import METRICS_FILE, read_records
from openrlhf.trainer import CommandTrainer

_CHECKPOINT = "checkpoint-"


class TrlRun(SFTRun):
    """See `SFTRun`.

    Args: args, callbacks: the script's; model: a folder, a hub name, or a model in memory.
    """

    def __init__(
        self,
        config: SFTConfig,
        args: Any,
        model: str | PreTrainedModel,
        tokenizer: Any,
        train_data: Any,
        eval_data: Any,
        callbacks: Sequence[Any],
    ):
        super().__init__(config, objective_named(config.train.loss), [], tokenizer, train_data, eval_data)
        self._args = args
        self._model = model
        self._theirs = list(callbacks)

    def owning_folders(self) -> AbstractContextManager[None]:
        """The arguments say whether it saves, and not the settings: a callback asks for each save."""
        must_save, strategy = word_of(self._args.save_strategy) != "no", self.strategy
        return strategy.checkpointers.owning_folders(self.config.ckpt, strategy.print, must_save=must_save)

    def build_model(self) -> Actor:
        """A model in memory takes the dtype of the run; one in 4 bits stays as it is."""
        in_memory = self._model if isinstance(self._model, PreTrainedModel) else None
        if in_memory is not None and not self.config.ds.load_in_4bit:
            in_memory = in_memory.to(PARAM_DTYPES[self.config.ds.param_dtype])  # type: ignore[arg-type]
        return build_actor(self.config, self.strategy.get_ds_train_config(), in_memory)

    def build_trainer(self, model: Any, optimizer: Any, scheduler: Any) -> CommandTrainer:
        self.told = TrainerCallbacks(self._args, self._theirs, model.model, self.tokenizer, optimizer, scheduler)
        self.callbacks = [self.told]
        return super().build_trainer(model, optimizer, scheduler)

    def start(self, checkpoint: Path | None, every: dict[str, int]) -> None:
        """From the beginning, or from a checkpoint; all ranks call.

        Args: every: `logging_steps`, `eval_steps` and `save_steps`, in steps.
        Raises UserError where the checkpoint is none, or of another run.
        """
        steps_per_epoch = self.trainer.windows.steps_per_epoch
        self.told.begin(self.num_steps, steps_per_epoch, every)
        output_dir = Path(self.config.ckpt.output_dir)
        self.first_step = 0
        if checkpoint is None:
            set_earlier_run_aside(self.strategy.checkpointers.of(self.config.ckpt.path), self.strategy.print)
        else:
            self._go_on_from(checkpoint)
            self.first_step = self.trainer.windows.num_steps_before(self.consumed_samples)
            self.told.replay(self._records_before(output_dir / METRICS_FILE))
        if self.strategy.is_rank_0() and output_dir.is_dir():
            link_checkpoints(output_dir, Path(self.config.ckpt.path))
        self._take_output_dir(output_dir)

    def _go_on_from(self, checkpoint: Path) -> None:
        store = checkpoint.parent / CHECKPOINTS
        step = checkpoint.name.removeprefix(_CHECKPOINT)
        if not step.isdigit() or not store.is_dir():
            raise UserError(
                f"resume_from_checkpoint {checkpoint} is no checkpoint of a run here, which is named checkpoint-<N> "
                f"and has its training state in {store}."
            )
        checkpointer = self.strategy.checkpointers.of(store)
        found = newest(checkpointer, self.strategy.print, CheckpointStore(store).name_of(int(step)))
        if found is None:
            raise UserError(f"resume_from_checkpoint {checkpoint}: {store} holds no training state.")
        identity = self.trainer.identity(self.config, self.num_steps)
        load_found(checkpointer, self.trainer.trained, found, identity, False, self.strategy.print)
        self.consumed_samples = found.progress.consumed_samples
        self.strategy.print(f"going on from {checkpoint}: {self.consumed_samples:,} samples are trained.")

    def identity_now(self) -> dict[str, Any]:
        """For the manifest of an export."""
        return self._identity().to_dict() | {"optimizer_step": self.trainer.exported_step}

    def _records_before(self, path: Path) -> list[dict[str, Any]]:
        """Of the steps that are done, and of evaluations by whatever prefix; rank 0 reads them for all."""
        done = self.first_step
        is_here = self.strategy.is_rank_0() and path.is_file()
        of_steps = [one for one in read_records(path) if one["global_step"] <= done] if is_here else []
        records = [one for one in of_steps if any(name == "loss" or name.endswith("_loss") for name in one)]
        return gather_objects(records, self.strategy.groups.control)[0]


def last_checkpoint(output_dir: Path) -> Path | None:
    """The `checkpoint-<N>` of the highest step in a folder; None where there is none."""
    steps = {path: path.name.removeprefix(_CHECKPOINT) for path in output_dir.glob(f"{_CHECKPOINT}*") if path.is_dir()}
    return max(
        (path for path, step in steps.items() if step.isdigit()), key=lambda path: int(steps[path]), default=None
    )
