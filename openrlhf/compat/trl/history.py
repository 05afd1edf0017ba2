"""The log history of a run as transformers keeps it, out of the records of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_STEP_NAMES = {"grad_norm": "grad_norm", "lr": "learning_rate", "token_accuracy": "mean_token_accuracy"}
_STEP_NAMES |= {"entropy": "entropy", "aux_loss": "aux_loss"}
_ACCURACY = "_token_accuracy"  # of an evaluation, behind its prefix


class RunHistory:
    """The records of a run's steps, of which each log tells those since the one before.

    Args:
        steps_per_epoch: optimizer steps of an epoch.
        log_history: of TrainerState; entries are appended.
    """

    def __init__(self, steps_per_epoch: int, log_history: list[dict[str, Any]]):
        self._steps_per_epoch = max(1, steps_per_epoch)
        self._log_history = log_history
        self._losses: list[float] = []
        self._num_logged = 0
        self._num_tokens = 0
        self._last: Mapping[str, Any] = {}

    @property
    def train_loss(self) -> float:
        """The mean of all steps' losses; steps without a finite one are left out."""
        return _mean(self._losses)

    @property
    def num_tokens(self) -> int:
        """Tokens that were trained on, in all steps."""
        return self._num_tokens

    def epoch_of(self, step: int) -> float:
        return step / self._steps_per_epoch

    def add_step(self, record: Mapping[str, Any]) -> None:
        loss = record["loss"]
        self._losses.append(math.nan if loss is None else loss)
        self._num_tokens += record["num_tokens"]
        self._last = record

    def log(self) -> dict[str, Any]:
        """The steps since the last log, as one entry."""
        since, self._num_logged = self._losses[self._num_logged :], len(self._losses)
        names = {theirs: self._last[ours] for ours, theirs in _STEP_NAMES.items() if ours in self._last}
        return self.append({"loss": _mean(since), **names, "num_tokens": self._num_tokens}, self._last["global_step"])

    def append(self, logs: Mapping[str, Any], step: int) -> dict[str, Any]:
        """An entry of the history; what callbacks are told of it."""
        told = {**logs, "epoch": self.epoch_of(step)}
        self._log_history.append({**told, "step": step})
        return told


def evaluation_in_their_names(record: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's record as transformers names its numbers."""
    numbers = {name: value for name, value in record.items() if name != "global_step"}
    return {
        f"{name.removesuffix(_ACCURACY)}_mean{_ACCURACY}" if name.endswith(_ACCURACY) else name: value
        for name, value in numbers.items()
    }


def _mean(losses: Sequence[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite else math.nan
