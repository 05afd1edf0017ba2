"""The metrics of a step or of an evaluation: sums with their counts, kept on the device until the end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.errors import UserError
from openrlhf.models import TargetScores
from openrlhf.objectives import Objective, Scorer, Share
from openrlhf.parallel.collectives import sum_over

_NAMES_OF_EVERY_RECORD = {
    "global_step", "epoch", "lr", "grad_norm", "num_tokens", "num_target_tokens", "consumed_samples",
    "tokens_per_second", "step_seconds", "token_accuracy", "entropy", "aux_loss",
    "gpu_memory_bytes", "host_memory_bytes",
}  # fmt: skip


class MetricSums:
    """A (sum, count) pair for each metric: those of the objective, and those that every objective has.

    Attributes:
        pairs: (num_names, 2) float64 on the device, in the order of `names`: one collective reduces all of them.
    """

    def __init__(
        self,
        objective: Objective,
        device: torch.device,
        with_entropy: bool = False,
        with_aux_loss: bool = False,
        is_evaluation: bool = False,
    ):
        self._of_objective = {*objective.metrics, *objective.eval_sums}
        _check_names(objective)
        aux_loss = ("aux_loss",) if with_aux_loss else ()
        of_tokens = ("token_accuracy", *(("entropy",) if with_entropy else ())) if objective.scores_tokens else ()
        self.names = (*objective.metrics, *aux_loss, *of_tokens, *(objective.eval_sums if is_evaluation else ()))
        self.pairs = torch.zeros(len(self.names), 2, dtype=torch.float64, device=device)

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1.0) -> None:
        """Adds a sum of `count` things; scalars. Neither waits for the device nor talks to another rank."""
        row = self.names.index(name)
        for column, amount in enumerate((total, count)):
            self.pairs[row, column] += amount.detach() if isinstance(amount, Tensor) else amount

    def add_share(self, share: Share, scorer: Scorer) -> None:
        """Adds a micro-batch's sums. Raises UserError where they are not those that the objective has declared."""
        if share.sums.keys() != self._of_objective:
            declared = ", ".join(sorted(self._of_objective))
            raise UserError(
                f"The objective has declared the metrics {declared}, but its Share has sums of {', '.join(share.sums)}."
            )
        for name, (total, count) in share.sums.items():
            if name in self.names:
                self.add(name, total, count)
        scores = scorer.scores
        if not isinstance(scores, TargetScores):
            return
        self.add("token_accuracy", scores.is_likeliest.sum(), len(scores.is_likeliest))
        if scores.entropy is not None:
            self.add("entropy", scores.entropy.double().sum(), len(scores.entropy))

    def means_over(self, group: ProcessGroup | None) -> dict[str, float]:
        """Each metric's sum over its count, over the ranks of `group`; a mere sum where none is counted. Collective."""
        pairs = sum_over(self.pairs, group).tolist()
        return {name: total / (count or 1.0) for name, (total, count) in zip(self.names, pairs, strict=True)}


def _check_names(objective: Objective) -> None:
    taken = sorted(_NAMES_OF_EVERY_RECORD.intersection(objective.metrics))
    if taken or "loss" not in objective.metrics:
        fault = f"has {', '.join(taken)}, which every record has" if taken else "lacks loss"
        raise UserError(f"The metrics of {type(objective).__name__}, {objective.metrics}, are not right: it {fault}.")
