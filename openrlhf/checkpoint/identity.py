"""The identity of a run: what must agree between a checkpoint and the run that wants to go on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from openrlhf.checkpoint.manifest import saved_identity
from openrlhf.engine.parameters import whole_shape
from openrlhf.errors import UserError

_FACTS_IN_WORDS = {
    "data_fingerprint": "the training data",
    "num_samples": "the number of training samples",
    "model_shape": "the names or shapes of the model's parameters",
    "tokenizer_fingerprint": "the tokenizer",
    "horizon_steps": "the horizon of the learning rate schedule in optimizer steps (--train.max_epochs, "
    "--train.max_steps)",
    "base_model": "the model whose weights are not trained (--model.model_name_or_path)",
    "reference": "the reference model (--ref.model_name_or_path)",
}
_COMPUTED_ANEW = (
    "The reference's log-probs (--ref.precompute) were computed anew since the checkpoint was made: the run goes on "
    "with these. They are the same to rounding, and not to the bit."
)
_MISSING = object()


@dataclass(frozen=True)
class RunIdentity:
    """Settings and facts of a run by which it is recognised. All values fit into JSON.

    `openrlhf.trainer.run_identity` gathers it; a script that has no configuration knows the model's shape alone.

    Attributes:
        must_match, kept, taken: values of settings by flag, each under the rule that the setting was declared with
            (see `openrlhf.config.schema.setting`).
        data_fingerprint, num_samples: of the training data.
        model_shape: see `model_shape_fingerprint`.
        tokenizer_fingerprint: of vocabulary, special tokens and chat template.
        horizon_steps: optimizer steps of the whole run.
        base_model: fingerprint of the weights that are not trained: under adapters, or frozen.
        reference: fingerprint of the weights of the model that a preference is held to.
            None in any of these: not known, and compared with nothing.
        run_id: of the run itself, from its first start on; no part of the comparison. Its checkpoints and its exported
            model carry it.
        eval_fingerprint: of the rows that are evaluated: with others a run goes on, and its best loss begins anew.
        reference_log_probs: a checksum of those that were computed before the training, by the fingerprint of the data.
    """

    must_match: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    taken: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str | None = None
    num_samples: int | None = None
    model_shape: str | None = None
    tokenizer_fingerprint: str | None = None
    horizon_steps: int | None = None
    base_model: str | None = None
    reference: str | None = None
    run_id: str | None = None
    eval_fingerprint: str | None = None
    reference_log_probs: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """All values of settings by flag, whatever their rule."""
        return {**self.must_match, **self.kept, **self.taken}

    def to_dict(self) -> dict[str, Any]:
        """Field name to value."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunIdentity:
        """Inverse of `to_dict`."""
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})


class Comparison(NamedTuple):
    """Differences of two runs in words: those that make it another run, and those that the user is only told."""

    refused: list[str]
    told: list[str]


def compare(saved: RunIdentity, now: RunIdentity) -> Comparison:
    """The differences of two runs, a sentence each. What only one of them knows is not compared.

    The rule that `now` has for a setting counts, whatever it was when the checkpoint was made.
    """
    different = [(f"--{flag}", before, here) for flag, before, here in _changed(saved, now.must_match)]
    longer = []
    for name, words in _FACTS_IN_WORDS.items():
        before, here = getattr(saved, name), getattr(now, name)
        if name == "horizon_steps" and is_longer(saved, now):
            longer.append(f"{words} is {here} from here on; the checkpoint's was {before}.")
        elif None not in (before, here) and before != here:
            different.append((words, before, here))
    refused = [f"{words} differs: {before} in the checkpoint, {here} now" for words, before, here in different]
    kept = [
        f"--{flag} {here} is ignored: the checkpoint's {before} stays. "
        "(To use it, start another run from the exported model.)"
        for flag, before, here in _changed(saved, now.kept)
    ]
    taken = [
        f"--{flag} {here} is taken from here on; the checkpoint was made with {before}."
        for flag, before, here in _changed(saved, now.taken)
    ]
    before = saved.reference_log_probs
    is_anew = any(before.get(data, here) != here for data, here in now.reference_log_probs.items())
    return Comparison(refused, longer + kept + taken + [_COMPUTED_ANEW] * (is_anew and not refused))


def evaluates_otherwise(saved: RunIdentity, now: RunIdentity) -> bool:
    """Whether the run evaluates on other rows from here on, whose losses are not to be compared with those before."""
    if "eval.dataset" not in saved.taken or now.taken.get("eval.dataset") is None:
        return False
    if saved.eval_fingerprint is not None and now.eval_fingerprint is not None:  # a file may move
        return saved.eval_fingerprint != now.eval_fingerprint
    return any(saved.taken.get(name) != now.taken.get(name) for name in ("eval.dataset", "eval.split"))


def is_longer(saved: RunIdentity, now: RunIdentity) -> bool:
    """Whether the run is to take more optimizer steps than it was when it saved: it then goes on."""
    return (now.horizon_steps or 0) > (saved.horizon_steps or 2**62)


def same_setting(flag: str, saved: RunIdentity, now: RunIdentity) -> bool:
    """Whether both have one value of a setting that must match; a script's identity says nothing of it.

    Args: flag: without dashes.
    """
    is_known = flag in saved.must_match and flag in now.must_match
    return not is_known or saved.must_match[flag] == now.must_match[flag]


def check_same_run(saved: RunIdentity, now: RunIdentity, checkpoint: str, allow_mismatch: bool = False) -> list[str]:
    """Raises UserError if `checkpoint` belongs to another run, unless the user means it.

    Returns: sentences to tell the user, the differences that `allow_mismatch` allows among them.
    """
    found = compare(saved, now)
    if found.refused and not allow_mismatch:
        raise UserError(
            f"The checkpoint {checkpoint} belongs to another run:",
            *(f"  {sentence}" for sentence in found.refused),
            "Restore the setting, or start a new run with another --ckpt.path, or pass --ckpt.allow_mismatch "
            "to go on all the same.",
        )
    return [f"{sentence}; --ckpt.allow_mismatch goes on all the same." for sentence in found.refused] + found.told


def read_identity(checkpoint: Path) -> RunIdentity:
    """The identity that a checkpoint holds. Raises OSError or ValueError where it cannot be read."""
    return RunIdentity.from_dict(saved_identity(checkpoint))


def model_shape(module: nn.Module) -> str:
    """The fingerprint of a module's parameters, the same where ranks hold parts of them."""
    return model_shape_fingerprint((name, whole_shape(p)) for name, p in module.named_parameters())


def model_shape_fingerprint(named_shapes: Iterable[tuple[str, Iterable[int]]]) -> str:
    """Hash of parameter names and full (unpartitioned) shapes, in any order."""
    lines = sorted(f"{name} {tuple(int(size) for size in shape)}" for name, shape in named_shapes)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _changed(saved: RunIdentity, settings: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(flag, value in the checkpoint, value now) of each setting whose two values are known and differ."""
    before = saved.settings
    for flag, here in settings.items():
        if before.get(flag, _MISSING) not in (_MISSING, here):
            yield flag, before[flag], here
