"""The progress of a run: stored, never worked out again by division."""

import json
from dataclasses import asdict, dataclass, fields

from openrlhf.errors import UserError

_NEWER_FIELDS = {"num_evals_since_best"}  # checkpoints of version 0.1.0 lack them


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run after an optimizer step.

    `consumed_samples` counts over the whole run, all epochs; so do the tokens.
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

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainingProgress":
        """Inverse of `to_json`; a newer field that an older version did not store has its default.

        Raises UserError where the text is of another version of this library.
        """
        values = json.loads(text)
        known = {field.name for field in fields(cls)}
        if not known - _NEWER_FIELDS <= set(values) <= known:
            raise UserError(
                f"The stored progress has the fields {sorted(values)}, this version knows {sorted(known)}. "
                "Resume with the version of openrlhf that wrote the checkpoint (its manifest.json names it)."
            )
        return cls(**values)
