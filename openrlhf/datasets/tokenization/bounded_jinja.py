"""Jinja for templates from elsewhere: sandboxed, and within bounds of time, steps and characters.

A template that exceeds them, for one conversation, ends the preparation: rows cannot mend it. Calls and rounds of loops
count as steps (`MarkedTemplate` puts a filter into every loop); each text that is made or printed counts by its
characters.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from openrlhf.errors import UserError

MAX_SECONDS = 5.0  # of this thread's processor time
STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 64
MAX_STEPS = 1_000_000
MAX_CHARACTERS = 1 << 26  # beside `CHARACTERS_A_CHARACTER` for each of the conversation
CHARACTERS_A_CHARACTER = 100
MAX_SOURCE_CHARACTERS = 1 << 20
MAX_INTEGER_BITS = 4096
MAX_WIDTH = 100_000  # of what a filter or method fills up
CHARACTERS_A_PART = 64  # what a part of a list or object counts, beside its own text

_TEXT_OF_ANYTHING = {
    "string",
    "join",
    "tojson",
    "pprint",
    "format",
    "replace",
    "urlencode",
    "escape",
    "e",
    "forceescape",
}
_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{6}|\*)|\{[^}]*(\d{6}|\{)")  # a field of a format that could fill the memory


class _Names(Namespace):
    """Takes no name that begins as those of Python's insides do."""

    def __init__(*args: Any, **more: Any):  # any name may be among `more`
        self, values = args[0], dict(*args[1:], **more)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")
        super().__setitem__(name, value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One thread renders at a time; `begin` comes before each compilation and each render."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any):
        super().__init__(**options)
        del self.filters["urlize"], self.globals["lipsum"]
        self.globals |= {"namespace": _Names, "dict": lambda *parts, **more: dict(*parts, **more)}
        for name, function in [*self.filters.items()]:
            self.add_filter(name, function)
        self.finalize = self._printed
        self.begin(0)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter whose text counts."""
        self.filters[name] = self._bounded(name, function)

    def begin(self, num_characters: int) -> None:
        """Grants what one conversation of so many characters may take."""
        self._steps_left = MAX_STEPS
        self._characters_left = MAX_CHARACTERS + CHARACTERS_A_CHARACTER * num_characters
        self._deadline = time.thread_time() + MAX_SECONDS

    def spend(self, num_characters: int = 0) -> None:
        """Takes a step, and so many characters. Raises UserError where no more are left."""
        self._steps_left -= 1
        self._characters_left -= num_characters
        is_late = self._steps_left % STEPS_BETWEEN_LOOKS_AT_THE_CLOCK == 0 and time.thread_time() > self._deadline
        if is_late or self._steps_left < 0 or self._characters_left < 0:
            raise UserError(
                f"The chat template takes more than {MAX_SECONDS:.0f} s, {MAX_STEPS:,} steps or {MAX_CHARACTERS:,} "
                "characters for one conversation: give another by --data.tokenizer_chat_template."
            )

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as jinja2 has it)
        if isinstance(getattr(__obj, "__self__", None), str):
            __self._check_arguments(__obj.__name__, (__obj.__self__, *args), kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        __self.spend(len(result) if isinstance(result, str) else 0)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:  # by far the most, so it is quick
            self.spend(len(left) + len(right))
            return left + right
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            self.spend(0 if bits <= MAX_INTEGER_BITS else self._characters_left + 1)
        elif operator == "*":
            sized, count = (left, right) if hasattr(left, "__len__") else (right, left)
            self.spend(len(sized) * max(0, count) if hasattr(sized, "__len__") and isinstance(count, int) else 0)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.spend(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._check_format(value.__self__, [*args, kwargs])
            return wrapped(*args, **kwargs)

        return bounded

    def joined(self, *parts: Any) -> str:
        """What `~` does."""
        self._weigh(parts)
        return "".join(map(str, parts))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        num_passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment, before the value

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._check_arguments(name, args[num_passed:], kwargs)
            result = function(*args, **kwargs)
            self.spend(len(result) if isinstance(result, str) else 0)
            return result

        return bounded

    def _check_arguments(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The first argument is the value itself."""
        if any(isinstance(one, int) and one > MAX_WIDTH for one in (*args[1:], *kwargs.values())):
            self.spend(self._characters_left + 1)
        if name == "replace" and len(args) > 2:
            self.spend((len(str(args[0])) + 1) * len(str(args[2])) // 16)  # few characters are replaced, as a rule
        if name == "format":
            self._check_format(str(args[0]), args[1:])
        elif name in _TEXT_OF_ANYTHING:
            self._weigh(args)

    def _check_format(self, text: str, values: Any) -> None:
        if _WIDE.search(text):
            self.spend(self._characters_left + 1)
        self._weigh(values)

    def _printed(self, value: Any) -> Any:
        if isinstance(value, str):
            self.spend(len(value))
        else:
            self._weigh(value)
        return value

    def _weigh(self, value: Any) -> None:
        """Spends the characters that a value has as text; a list that stands in a list many times counts as often."""
        parts = [value]
        while parts:
            part = parts.pop()
            self.spend(len(part) if isinstance(part, str) else CHARACTERS_A_PART)
            if isinstance(part, dict):
                parts += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple):
                parts += part
