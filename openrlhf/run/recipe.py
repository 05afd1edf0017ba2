"""Settings that a run may change when it goes on, and what becomes of each: nothing is replaced without a word."""

from __future__ import annotations

from typing import Any

_KEPT_BY_THE_CHECKPOINT = ("adam.lr", "muon.lr")  # they are part of the schedule's state
_TAKEN_FROM_HERE_ON = (
    "adam.betas", "adam.eps", "adam.weight_decay", "muon.momentum", "max_norm",
    "lr_scheduler", "lr_warmup_ratio", "min_lr_ratio",
)  # fmt: skip
_OF_MUON_ALONE = ("muon.lr", "muon.momentum")


def recipe_of(config: Any) -> dict[str, Any]:
    """Values by flag, as JSON holds them.

    Args:
        config: an SFTConfig, or a namespace with its names; what a script's own lacks is left out.
    """
    names = (*_KEPT_BY_THE_CHECKPOINT, *_TAKEN_FROM_HERE_ON)
    is_muon = _value(config, "optim") == "muon"
    values = {name: _value(config, name) for name in names if is_muon or name not in _OF_MUON_ALONE}
    return {name: value for name, value in values.items() if value is not None}


def changes_in_words(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence for each setting that is not the checkpoint's; `saved` is empty where a checkpoint says nothing."""
    changed = [name for name in now if name in saved and saved[name] != now[name]]
    return [
        f"--{name} {now[name]} is ignored: the checkpoint's {saved[name]} stays. "
        "(To use it, start another run from the exported model.)"
        if name in _KEPT_BY_THE_CHECKPOINT
        else f"--{name} {now[name]} is taken from here on; the checkpoint was made with {saved[name]}."
        for name in changed
    ]


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return list(config) if isinstance(config, tuple) else config
