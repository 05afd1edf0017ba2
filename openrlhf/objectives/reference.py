"""The reference of a preference: where its log-probs come from. All three ways give the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from openrlhf.batching import MicroBatch
from openrlhf.engine.abandoned_step import throw_away_gradients
from openrlhf.errors import UserError
from openrlhf.models import Actor
from openrlhf.objectives.scorer import Scorer

REFERENCE_CHOSEN, REFERENCE_REJECTED = "reference_chosen", "reference_rejected"  # numbers of a unit


class FrozenReference:
    """A second model, which is not trained."""

    def __init__(self, model: Actor | None = None):
        """Args: model: None: `use` gives it before the first step."""
        self._model = model and model.eval()

    def use(self, model: Actor) -> None:
        self._model = model.eval()

    def log_probs(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        assert self._model is not None, "the reference has its model by now"
        return log_probs_of_sequences(scorer.beside(self._model))

    def throw_away(self) -> None:
        if self._model is not None and self._model.engine is not None:
            throw_away_gradients(self._model.engine)  # there are none; in parts (ZeRO-3) a broken pass holds weights


class BaseUnderAdapters:
    """The trained model with its adapters switched off."""

    def log_probs(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        model = scorer.model
        was_training = model.training
        model.eval()  # dropout draws no random numbers: those of the training pass stay as they are
        try:
            with model.model.disable_adapter():
                return log_probs_of_sequences(scorer.beside(model))
        finally:  # memory may run out, and the step begin anew
            model.train(was_training)

    def throw_away(self) -> None:
        """The step itself throws away what its model has left."""


def base_is_no_reference(start: str, remedy: str) -> UserError:
    """What is said where a training starts from an adapter. Args: start: the setting; remedy: the other one."""
    return UserError(
        f"{start} starts from an adapted model, and the base alone would be its reference: merge the two by "
        f"openrlhf.cli.lora_combiner, and give the result as {remedy}."
    )


class ComputedReference:
    """Log-probs that were computed before, as numbers of each unit."""

    def log_probs(self, scorer: Scorer, batch: MicroBatch) -> Tensor:
        numbers = batch.unit_numbers
        if not numbers:  # a rank without a unit in this micro-step
            return torch.zeros(0, device=batch.input_ids.device)
        return torch.stack([numbers[REFERENCE_CHOSEN], numbers[REFERENCE_REJECTED]], dim=1).flatten()

    def throw_away(self) -> None:
        """No model computes."""


@torch.no_grad()
def log_probs_of_sequences(scorer: Scorer) -> Tensor:
    """(Q,) of each sequence of the micro-batch, whole on every rank of a ring."""
    return scorer.sequence_sums(scorer.log_probs())
