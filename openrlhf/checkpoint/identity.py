"""What must agree between a checkpoint and the run that wants to go on from it."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from openrlhf.errors import UserError

_IN_WORDS = {
    "data_fingerprint": "the training data",
    "num_samples": "the number of training samples",
    "seed": "the seed (--train.seed)",
    "batch_size": "the global batch size in samples (--train.batch_size)",
    "model_shape": "the names or shapes of the model's parameters",
    "tokenizer_fingerprint": "the tokenizer",
    "loss_reduction": "how the loss is reduced",
    "schedule_num_steps": "the horizon of the learning rate schedule in optimizer steps",
    "optimizer": "the optimizer (--optim)",
    "param_dtype": "the type of the weights (--ds.param_dtype)",
    "adapter": "the adapters (--ds.lora.*, --ds.load_in_4bit)",
    "base_model": "the model under the adapters (--model.model_name_or_path)",
}
_UNKNOWN = ""  # of a checkpoint from before there was such a field, and of a script that does not say


@dataclass(frozen=True)
class RunIdentity:
    """Facts of a run without which its next step would be another one. All values fit into JSON.

    The last four are compared where both sides know them; see `openrlhf.run.run_identity` for how they are made.
    """

    data_fingerprint: str
    num_samples: int
    seed: int
    batch_size: int
    model_shape: str
    tokenizer_fingerprint: str
    loss_reduction: str
    schedule_num_steps: int
    optimizer: str = _UNKNOWN
    param_dtype: str = _UNKNOWN
    adapter: str = _UNKNOWN
    base_model: str = _UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Field name to value."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RunIdentity":
        """Inverse of `to_dict`."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def differences(saved: RunIdentity, now: RunIdentity) -> list[str]:
    """One sentence for each fact in which the two runs differ; empty when it is the same run."""
    sentences = []
    for field in fields(RunIdentity):
        before, here = getattr(saved, field.name), getattr(now, field.name)
        is_known = field.default != _UNKNOWN or _UNKNOWN not in (before, here)
        if is_known and before != here:
            sentences.append(f"{_IN_WORDS[field.name]} differs: {before} in the checkpoint, {here} now")
    return sentences


def check_same_run(saved: RunIdentity, now: RunIdentity, checkpoint: str, allow_mismatch: bool = False) -> list[str]:
    """Raise UserError if `checkpoint` belongs to another run, unless the user means it.

    Returns: the differences, which the caller reports when they are allowed.
    """
    found = differences(saved, now)
    if found and not allow_mismatch:
        raise UserError(
            f"The checkpoint {checkpoint} belongs to another run:",
            *(f"  {sentence}" for sentence in found),
            "Restore the setting, or start a new run with another --ckpt.path, or pass --ckpt.allow_mismatch "
            "to go on all the same.",
        )
    return found


def model_shape_fingerprint(named_shapes: Iterable[tuple[str, Iterable[int]]]) -> str:
    """Hash of parameter names and full (unpartitioned) shapes, in any order."""
    lines = sorted(f"{name} {tuple(int(size) for size in shape)}" for name, shape in named_shapes)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
