"""What `strategy.save_ckpt` and `strategy.load_ckpt` do, over the checkpoint room."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from openrlhf.checkpoint.checkpointer import Checkpointer, FoundCheckpoint
from openrlhf.checkpoint.identity import RunIdentity, model_shape_fingerprint
from openrlhf.checkpoint.manifest import saved_identity
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.engine.tensor_shards import whole_shape
from openrlhf.errors import UserError
from openrlhf.parallel.groups import ProcessGroups

BYTES_PER_GIB = 2**30


class CheckpointDesk:
    """One checkpointer for each folder; every rank asks for the same ones in the same order."""

    def __init__(self, groups: ProcessGroups, timeout_seconds: float):
        self._groups = groups
        self._timeout_seconds = timeout_seconds
        self._checkpointers: dict[Path, Checkpointer] = {}

    def checkpointer(
        self, folder: str | Path, max_num: int = 3, max_gib: float | None = None, in_background: bool = True
    ) -> Checkpointer:
        folder = Path(folder)
        if folder not in self._checkpointers:
            max_bytes = None if max_gib is None else int(max_gib * BYTES_PER_GIB)
            store = CheckpointStore(folder, max_num=max_num, max_bytes=max_bytes)
            self._checkpointers[folder] = Checkpointer(
                store, self._groups.control, in_background, timeout_seconds=0.9 * self._timeout_seconds
            )
        return self._checkpointers[folder]

    def save_now(self, folder: str | Path, engine: Any, scheduler: Any, tag: str, client_state: dict[str, Any]) -> None:
        """A save by a script of the user's own: on disk, or an error, when this returns."""
        checkpointer = self.checkpointer(folder, in_background=False)
        optimizer_step = checkpointer.store.step_of(tag)
        if optimizer_step is None:
            raise UserError(
                f"a checkpoint is named global_step<N>, as in global_step20; save_ckpt was given tag={tag!r}."
            )
        consumed_samples = int(client_state.get("consumed_samples", 0))
        progress = TrainingProgress(optimizer_step=optimizer_step, consumed_samples=consumed_samples)
        identity = RunIdentity(model_shape=shape_of(engine.module))  # a script says nothing of its settings
        report = checkpointer.save(engine, progress, identity, {"script": client_state}, scheduler=scheduler)
        report = checkpointer.wait() if not report.problems else report
        if report.problems:
            raise OSError("\n".join(report.problems))

    def load(
        self,
        folder: str | Path,
        found: FoundCheckpoint,
        engine: Any,
        scheduler: Any,
        identity: RunIdentity | None,
        allow_mismatch: bool,
    ) -> tuple[TrainingProgress, dict[str, Any]]:
        """Sets engine and schedule; the progress, and the caller's own state."""
        identity = identity or RunIdentity.from_dict(saved_identity(found.path))
        loaded = self.checkpointer(folder).load(engine, found, identity, allow_mismatch, scheduler)
        return loaded.progress, loaded.client_state


def shape_of(module: Any) -> str:
    """Fingerprint of the names and whole shapes of a module's parameters, also where ranks hold parts of them."""
    return model_shape_fingerprint((name, whole_shape(p)) for name, p in module.named_parameters())


def states_for_script(progress: TrainingProgress, client_state: dict[str, Any]) -> dict[str, Any]:
    """What `strategy.load_ckpt` hands to a script: `consumed_samples` among it."""
    return asdict(progress) | client_state.get("script", {})
