"""The weights of a run that could not be exported, or that has stopped itself, are put where nothing removes them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from openrlhf.checkpoint.export import write_weights
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.manifest import is_of_run
from openrlhf.checkpoint.model_settings import save_settings
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.config import CkptConfig
from openrlhf.engine.parameters import names_of_non_finite
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import any_rank, any_rank_within, gather_objects
from openrlhf.trainer import CommandTrainer

_SECONDS_FOR_ALL = 30.0  # to meet the error that one of them has met


class Rescue:
    """Sees to it that what a run has trained is on a disk. All ranks call each method."""

    def __init__(self, trainer: CommandTrainer, ckpt: CkptConfig, identity: RunIdentity):
        self._trainer, self._ckpt, self._identity = trainer, ckpt, identity
        self._group = trainer.strategy.groups.control

    @contextmanager
    def of_failed_export(self) -> Iterator[None]:
        """What is trained is kept, and told where, if what is done inside raises an error of any kind."""
        try:
            yield
        except UserError as error:
            raise UserError(*error.problems, self._after_failed_export()) from None
        except Exception:  # a fault of ours, say, which is to cost no training
            # Where one rank alone has met it, the others are in a collective, and do nothing together with it.
            if any_rank_within(True, self._group, _SECONDS_FOR_ALL):
                self._trainer.strategy.print(self._after_failed_export())
            raise

    def _after_failed_export(self) -> str:
        """The last step's checkpoint is there, or is written; else the weights alone. Says where, and what to do.

        Where the run has gone back to its best weights, the last step's are gone, and those have a checkpoint.
        """
        store, best = CheckpointStore(self._ckpt.path), self._trainer.trained.went_back_to_step
        last = store.name_of(self._trainer.progress.optimizer_step)
        if best is None and self._newest_name() != last:
            self._save()
        if self._newest_name() == last:
            return (
                f"The trained weights are in the checkpoint {Path(self._ckpt.path) / last}. Mend the cause and start "
                "again with --ckpt.load_enable: the model is exported, and nothing is trained again."
            )
        if best is not None:
            return (
                f"The best weights are in the checkpoint {Path(self._ckpt.path) / store.name_of(best)}. Mend the cause "
                f"and start again with --ckpt.load_enable: the run goes on from {self._newest_name()}."
            )
        return self._weights_alone()

    def after_stop(self) -> str:
        """Where the run can go on from; where there is no checkpoint, the weights are written."""
        newest = self._newest_name()
        if newest is not None:
            return f"The newest checkpoint is {Path(self._ckpt.path) / newest}; --ckpt.load_enable goes on from it."
        if not self._trainer.progress.optimizer_step:
            return "No step has been trained yet."
        return self._weights_alone()

    def _newest_name(self) -> str | None:
        """Of this run's whole checkpoints. Nothing goes on from a model that it has exported along the way."""
        whole = CheckpointStore(self._ckpt.path).whole()
        names = [path.name for path in whole if is_of_run(path, self._identity.run_id)]
        return gather_objects(next(iter(names), None), self._group)[0]

    def _save(self) -> None:
        """What goes wrong is seen by what is there afterwards."""
        trained, ckpt = self._trainer.trained, self._ckpt
        checkpointer = self._trainer.strategy.checkpointers.of(ckpt.path, ckpt.max_num, ckpt.max_mem, False)
        progress, states = self._trainer.progress, self._trainer.states_to_save
        checkpointer.save(trained.engine, progress, self._identity, states, scheduler=trained.scheduler)

    def _weights_alone(self) -> str:
        """Into the first folder that takes them, however long that takes."""
        with self._trainer.strategy.watchdog.long_phase("writing the trained weights"):
            return self._written_alone()

    def _written_alone(self) -> str:
        step, model = self._trainer.progress.optimizer_step, self._trainer.model.model
        if any_rank(bool(names_of_non_finite(model)), self._group):
            return f"The weights after step {step} are not finite: they are not kept."
        for place in (self._ckpt.output_dir, self._ckpt.path, ".", tempfile.gettempdir()):
            paths = (Path(place).resolve() / f"weights_of_step{step}_{number}" for number in count(1))
            folder = gather_objects(next(path for path in paths if not path.exists()), self._group)[0]
            try:
                write_weights(model, folder, self._group)
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if self._trainer.strategy.is_rank_0():
                with suppress(Exception):  # they are what the export may have failed over
                    save_settings(model, self._trainer.tokenizer, folder)
            return f"The weights after step {step} are in {folder}, which nothing here removes."
        return f"No folder could take the weights after step {step}."
