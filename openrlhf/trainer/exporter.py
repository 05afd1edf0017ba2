"""The model in Hugging Face form along the way: `global_step<N>_hf` beside the training checkpoints, rotated apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf.checkpoint.checkpointer import SaveReport
from openrlhf.checkpoint.export import write_model
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.rehearsal import exported_bytes
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.errors import UserError
from openrlhf.models import PreparedModel
from openrlhf.parallel.collectives import gather_objects
from openrlhf.strategy import DeepspeedStrategy


class ExporterAlongTheWay:
    """Exports the model at a save; a failure is told, and counted."""

    def __init__(
        self,
        strategy: DeepspeedStrategy,
        model: PreparedModel,
        tokenizer: Any,
        store: CheckpointStore,
        max_shard_bytes: int,
        identity: RunIdentity,
    ):
        self._strategy = strategy
        self._model = model
        self._tokenizer = tokenizer
        self._store = store
        self._identity = identity.to_dict()
        self._num_failures_in_a_row = 0
        self._max_shard_bytes = max_shard_bytes

    def export(self, optimizer_step: int, eval_loss: float | None) -> SaveReport:
        """Writes and puts in place the model after `optimizer_step`; what went wrong, the same on every rank."""
        problems, of_rotation = self._export(optimizer_step, eval_loss)
        self._num_failures_in_a_row = self._num_failures_in_a_row + 1 if problems else 0
        return SaveReport((*problems, *of_rotation), self._num_failures_in_a_row)

    def _export(self, optimizer_step: int, eval_loss: float | None) -> tuple[Sequence[str], Sequence[str]]:
        """Problems of the export, and of the rotation after it."""
        group = self._strategy.groups.control
        folder, problem = gather_objects(self._begin(optimizer_step), group)[0]
        if folder is None:
            return [problem], []
        try:
            write_model(self._model.model, self._tokenizer, folder, group, self._max_shard_bytes)
        except UserError as error:
            if self._strategy.is_rank_0():
                self._store.discard(folder)
            return error.problems, []
        found = self._put_in_place(folder, eval_loss) if self._strategy.is_rank_0() else ([], [])
        return gather_objects(found, group)[0]

    def _put_in_place(self, folder: Path, eval_loss: float | None) -> tuple[list[str], list[str]]:
        try:
            return [], self._store.put_in_place(folder, identity=self._identity, eval_loss=eval_loss)[1]
        except OSError as error:
            self._store.discard(folder)
            return [f"the exported model could not be put in place: {error}"], []

    def _begin(self, optimizer_step: int) -> tuple[Any, str]:
        """On rank 0 the folder aside, or why there is none."""
        if not self._strategy.is_rank_0():
            return None, ""
        try:
            return self._store.begin(optimizer_step, exported_bytes(self._model.model)), ""
        except OSError as error:
            return None, f"the model after step {optimizer_step} was not exported: {error}"
