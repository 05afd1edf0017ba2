"""The settings that a script hands to `strategy.prepare((model, cfg))`: optimizer, clipping, schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch.optim import Optimizer

from openrlhf.config import AdamConfig, MuonConfig, SFTConfig
from openrlhf.config.checks import muon_problems
from openrlhf.config.parse import read_given
from openrlhf.config.sources import Given
from openrlhf.errors import UserError

_SYNONYMS = {
    **{name: f"adam.{name}" for name in ("lr", "betas", "eps", "weight_decay")},
    "num_training_steps": "scheduler_steps",
}
_SCHEDULE = {  # argument of `build_schedule` by its name in a cfg
    "lr_scheduler": "name",
    "lr_warmup_ratio": "warmup_ratio",
    "min_lr_ratio": "min_lr_ratio",
    "scheduler_steps": "num_training_steps",
}
_GROUPS: dict[str, type] = {"adam": AdamConfig, "muon": MuonConfig}
_KNOWN = (
    "optim",
    "max_norm",
    *_SCHEDULE,
    *(f"{name}.{field.name}" for name, group in _GROUPS.items() for field in fields(group)),
)


@dataclass(frozen=True)
class TrainingCfg:
    """What a model is trained with; `muon` None: AdamW alone. `schedule` holds arguments of `build_schedule`."""

    adam: AdamConfig
    muon: MuonConfig | None
    max_norm: float
    schedule: dict[str, Any]


def read_cfg(cfg: Any, default: TrainingCfg) -> TrainingCfg:
    """A script's cfg, a dict or an object with attributes; what it leaves out, or gives as None, is as in `default`.

    Its names are optim, max_norm, lr_scheduler, lr_warmup_ratio, min_lr_ratio, scheduler_steps (or num_training_steps),
    lr, betas, eps, weight_decay, and the groups adam and muon with the names of their settings. With neither
    lr_scheduler nor scheduler_steps the rate is constant.

    Raises UserError for a name that is none of these, a value that cannot be, a schedule without its steps, and an
    optimizer in place of a cfg.
    """
    if isinstance(cfg, Optimizer):
        raise UserError(
            "strategy.prepare was given (model, optimizer). Give (model, optimizer, scheduler), with None for a "
            "constant learning rate; or (model, cfg), where cfg has the settings of an optimizer to make."
        )
    given = [Given(_SYNONYMS.get(name, name), value, f"cfg.{name}") for name, value in _flat(cfg)]
    unknown = [one.where for one in given if one.name not in _KNOWN]
    reading = read_given(SFTConfig, [one for one in given if one.name in _KNOWN and one.name != "scheduler_steps"])
    problems = [f"{name} is unknown here. Known: {', '.join(sorted(map(_shown, _KNOWN)))}." for name in unknown]
    if problems or reading.problems:
        raise UserError("strategy.prepare((model, cfg)) cannot take this cfg:", *problems, *reading.problems)
    values = reading.values | {one.name: _steps(one.value) for one in given if one.name == "scheduler_steps"}
    if "scheduler_steps" not in values and values.setdefault("lr_scheduler", "constant") != "constant":
        raise UserError("cfg.scheduler_steps is missing: give the optimizer steps of the whole run.")
    optim = values.get("optim", "muon" if default.muon else "adam")
    muon = _with_values(default.muon or MuonConfig(), "muon.", values) if optim == "muon" else None
    if muon and (unable := [*muon_problems(muon)]):
        raise UserError(*unable)
    return TrainingCfg(
        _with_values(default.adam, "adam.", values),
        muon,
        values.get("max_norm", default.max_norm),
        default.schedule | {ours: values[name] for name, ours in _SCHEDULE.items() if name in values},
    )


def _flat(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all that is given, a group's with its dotted name."""
    for name, value in (cfg if isinstance(cfg, Mapping) else vars(cfg)).items():
        if name in _GROUPS and value is not None and not prefix:
            yield from _flat(value, f"{name}.")
        elif value is not None:
            yield prefix + name, value


def _steps(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise UserError(f"cfg.scheduler_steps is {value!r}; it must be the optimizer steps of the run, 1 or more.")
    return int(value)


def _with_values(group: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return replace(group, **own)


def _shown(name: str) -> str:
    return {ours: theirs for theirs, ours in _SYNONYMS.items() if theirs != "num_training_steps"}.get(name, name)
