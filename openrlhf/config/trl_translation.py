"""TRL's settings → ours: what the names of `trl_names.py` mean together, and what is told of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from openrlhf.config.trl_names import RECIPE_NAMES, TAKE_NONE, is_secret, rule_of
from openrlhf.config.trl_parts import PARTS

HIDDEN = "[hidden]"  # in place of a secret


@dataclasses.dataclass
class Translation:
    """What became of TRL's names.

    Attributes:
        settings: values by our dotted names.
        rows: for the table at the start: the names as given, and what became of them.
        problems: what cannot be, in words.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def translate(
    values: Mapping[str, Any], given: Collection[str], num_data_ranks: int, num_rows: int | None = None
) -> Translation:
    """TRL's values → our settings.

    Args:
        values: by TRL's name; a missing one has TRL's default.
        given: the names that the user has given: what becomes of them is told.
        num_data_ranks: ranks that each compute samples of their own.
        num_rows: of the training data, where they are known: shares of the run are then counted in steps.
    """
    return Translator(values, given, num_data_ranks, num_rows).run()


class Translator:
    """Values by TRL's names, and what becomes of them, for the functions of `trl_parts.py`."""

    def __init__(self, values: Mapping[str, Any], given: Collection[str], num_data_ranks: int, num_rows: int | None):
        self._values = {name: field.default for name, field in RECIPE_NAMES.items()} | dict(values)
        self._given = given
        self.num_data_ranks = num_data_ranks
        self._num_rows = num_rows
        self._result = Translation()

    def run(self) -> Translation:
        self._refuse_none()
        for name in RECIPE_NAMES:
            self._by_rule(name)
        for part in PARTS:
            part(self)
        return self._result

    @property
    def settings(self) -> dict[str, Any]:
        """What has been translated so far."""
        return self._result.settings

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def either(self, *names: str) -> Any:
        """The value of the first that is given, else of the first that is not none."""
        for name in (*(name for name in names if name in self._given), *names):
            if self._values[name] is not None:
                return self._values[name]
        return None

    def gives(self, *names: str) -> bool:
        return any(name in self._given for name in names)

    def becomes(self, settings: Mapping[str, Any], *names: str, note: str = "") -> None:
        """The names mean these settings; told where the user has given one of them."""
        self._result.settings.update(settings)
        self.tell(", ".join(f"{ours} {_shown(value)}" for ours, value in settings.items()), *names, note=note)

    def becomes_by(self, who: str, settings: Mapping[str, Any]) -> None:
        """The same of what stands elsewhere than among the names."""
        self._result.settings.update(settings)
        self._result.rows.append((who, ", ".join(f"{ours} {_shown(value)}" for ours, value in settings.items())))

    def tell(self, ours: str, *names: str, note: str = "") -> None:
        shown = [self._shown_with_value(name) for name in names if name in self._given]
        if shown:
            self._result.rows.append((", ".join(shown), f"{ours} ({note})" if note else ours))

    def refuse(self, name: str, remedy: str) -> None:
        self.problem(f"{self._shown_with_value(name)} cannot be had here: {remedy}.")

    def problem(self, sentence: str) -> None:
        """Something else than a name that cannot be; said once, where several parts find it."""
        if sentence not in self._result.problems:
            self._result.problems.append(sentence)

    def _shown_with_value(self, name: str) -> str:
        return f"{name} {HIDDEN if is_secret(name) else _shown(self[name])}"

    def steps(self, name: str, value: float) -> int:
        """A number of steps; a value below 1 is a share of the run's."""
        if value >= 1:
            if value != int(value):
                self.refuse(name, "steps are a whole number, or a share of the run below 1")
            return int(value)
        if value <= 0:
            self.refuse(name, "give a number of steps, or a share of the run, above 0")
            return 1
        num_steps = self._num_steps()
        if num_steps is None:
            self.refuse(name, "the number of steps is not known before the data are prepared: give it in steps")
            return 1
        return max(1, math.ceil(num_steps * value))

    def num_steps_per_epoch(self) -> int | None:
        """None before the rows are counted."""
        batch_size = self._result.settings["train.batch_size"]
        return None if self._num_rows is None else max(1, math.ceil(self._num_rows / batch_size))

    def _num_steps(self) -> int | None:
        """Of the whole run."""
        if self["max_steps"] > 0:
            return int(self["max_steps"])
        steps_per_epoch = self.num_steps_per_epoch()
        return None if steps_per_epoch is None else max(1, math.ceil(self["num_train_epochs"] * steps_per_epoch))

    def warmup_share(self, num_warmup_steps: int) -> float | None:
        """The share of the run that rounds up to so many steps; of as many as the run has, or more, 1 or above."""
        num_steps = self._num_steps()
        if num_steps is None:
            return None
        return 1.0 if num_warmup_steps == num_steps else max(0.0, (num_warmup_steps - 0.5) / num_steps)

    def _refuse_none(self) -> None:
        """A none where a value must stand would leave our own default, or end in a traceback."""
        for name, field in RECIPE_NAMES.items():
            rule = rule_of(field)
            if self[name] is None and name not in TAKE_NONE and (rule is None or rule.setting):
                self.refuse(name, f"give a value, or leave it out, which is {_shown(field.default)}")
                self._values[name] = field.default

    def _by_rule(self, name: str) -> None:
        rule, value, default = rule_of(RECIPE_NAMES[name]), self[name], RECIPE_NAMES[name].default
        if rule is None:
            return
        is_asked = name in self._given and value != default
        if rule.remedy and value != default and value not in (None, [], {}, ""):
            self.refuse(name, rule.remedy)
        elif rule.idle and is_asked:
            self.tell(f"changes nothing: {rule.idle}", name)
        elif rule.setting and value is not None and (name in self._given or default not in (None, False)):
            self.becomes({rule.setting: value}, name, note=rule.note)


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) or value is None else str(value)
    text = f"{value:g}" if isinstance(value, float) else text
    text = text.replace("\n", " ")
    return text if len(text) <= 200 else f"{text[:197]}…"
