"""Mean and deviation of a reward model's rewards: in the model's config, and in a file beside an adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path

from transformers import PretrainedConfig

from openrlhf.errors import UserError

ADAPTERS_FILE = "reward_statistics.json"  # an adapter's folder has no config.json
_NAMES = ("mean", "std")


def note_reward_statistics(config: PretrainedConfig, mean: float, std: float) -> None:
    """Keeps mean and deviation of the rewards of an evaluation in the model's config.json, as OpenRLHF does.

    Numbers that are not finite are none.
    """
    forget_reward_statistics(config)
    if math.isfinite(mean) and math.isfinite(std):
        config.mean, config.std = mean, std


def forget_reward_statistics(config: PretrainedConfig) -> None:
    """Takes away those of the weights before: other weights give other rewards."""
    for name in _NAMES:
        vars(config).pop(name, None)


def check_reward_statistics(config: PretrainedConfig, path: str) -> None:
    """Raises UserError where the config holds no mean and deviation to make rewards normal by."""
    if getattr(config, "mean", None) is None or not getattr(config, "std", None):
        raise UserError(
            f"{path}: its config.json names no mean and std of its rewards, so they cannot be made normal. train_rm "
            "writes them after an evaluation (--eval.dataset)."
        )


def save_beside_adapter(config: PretrainedConfig, folder: Path) -> None:
    """Writes those of the adapted model, if it has any, where a merge finds them."""
    values = {name: getattr(config, name, None) for name in _NAMES}
    if None not in values.values():
        (folder / ADAPTERS_FILE).write_text(json.dumps(values), encoding="utf-8")


def take_from_adapter(config: PretrainedConfig, folder: Path) -> None:
    """The base's config gets those of the adapted model, or none. Raises ValueError or KeyError for a damaged file."""
    forget_reward_statistics(config)
    if (file := folder / ADAPTERS_FILE).is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        note_reward_statistics(config, *(float(values[name]) for name in _NAMES))
