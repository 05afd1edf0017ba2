"""The progress of a run: stored, never worked out again by division."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace

from openrlhf.errors import UserError


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run after an optimizer step.

    `consumed_samples` counts over the whole run, all epochs; so do the tokens.
    `left_early`: the run was asked to leave, and did so before the evaluation and the answers that may have been due
    after this step; `evaluation_wished`, `save_wished`: a callback had asked for the former, and for a save;
    `stop_reason`: why one had asked for the end of the run.
    """

    optimizer_step: int = 0
    epoch: int = 0
    consumed_samples: int = 0
    consumed_target_tokens: int = 0
    consumed_tokens: int = 0
    last_eval_loss: float | None = None
    last_eval_step: int | None = None
    best_eval_loss: float | None = None
    best_eval_step: int | None = None
    num_evals_since_best: int = 0
    finished: bool = False
    left_early: bool = False
    evaluation_wished: bool = False
    save_wished: bool = False
    stop_reason: str | None = None

    def after_step(self, epoch: int, num_samples: int, num_tokens: int, num_target_tokens: int) -> "TrainingProgress":
        """One optimizer step on, which trained so much."""
        return replace(
            self,
            optimizer_step=self.optimizer_step + 1,
            epoch=epoch,
            consumed_samples=self.consumed_samples + num_samples,
            consumed_tokens=self.consumed_tokens + num_tokens,
            consumed_target_tokens=self.consumed_target_tokens + num_target_tokens,
            left_early=False,
            evaluation_wished=False,
            save_wished=False,
        )

    def after_evaluation(self, loss: float) -> "TrainingProgress":
        """Evaluated at this step; the best is the lowest loss that is finite."""
        is_best = math.isfinite(loss) and (self.best_eval_loss is None or loss < self.best_eval_loss)
        return replace(
            self,
            last_eval_loss=loss,
            last_eval_step=self.optimizer_step,
            best_eval_loss=loss if is_best else self.best_eval_loss,
            best_eval_step=self.optimizer_step if is_best else self.best_eval_step,
            num_evals_since_best=0 if is_best else self.num_evals_since_best + 1,
        )

    def without_evaluations(self) -> "TrainingProgress":
        """Where the rows are others from here on: losses on those before are no measure of these."""
        return replace(
            self,
            last_eval_loss=None,
            last_eval_step=None,
            best_eval_loss=None,
            best_eval_step=None,
            num_evals_since_best=0,
        )

    @property
    def eval_loss_here(self) -> float | None:
        """The evaluation loss of the present weights, where they were evaluated."""
        return self.last_eval_loss if self.last_eval_step == self.optimizer_step else None

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainingProgress":
        """Inverse of `to_json`.

        Raises UserError where the text is of another version of this library.
        """
        values = json.loads(text)
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise UserError(
                f"The stored progress has the fields {sorted(values)}, this version knows {sorted(known)}. "
                "Resume with the version of openrlhf that wrote the checkpoint (its manifest.json names it)."
            )
        return cls(**values)
