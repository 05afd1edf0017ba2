"""Jinja for templates from elsewhere: sandboxed, and within bounds of time, steps and characters.

A template that exceeds them, for one conversation, ends the preparation: rows cannot mend it. Calls and rounds of loops
count as steps (`MarkedTemplate` puts a filter into every loop); each text that is made or printed counts by its
characters.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from openrlhf.errors import UserError

MAX_SECONDS = 5.0  # of this thread's processor time
MAX_STEPS = 1_000_000
MAX_CHARACTERS = 1 << 26  # beside `CHARACTERS_A_CHARACTER` for each of the conversation
CHARACTERS_A_CHARACTER = 100
MAX_SOURCE_CHARACTERS = 1 << 20
MAX_INTEGER_BITS = 4096
CHARACTERS_A_PART = 64  # what a part of a list or object counts, beside its own text
CHARACTERS_A_PLACE = 16  # what a place in a list counts

_DROPPED = ("striptags", "urlize", "wordwrap", "xmlattr")  # their time grows with the square of the text, or more
_WIDENING = {  # filters and methods whose text may be as long as the product of two of their arguments
    *("center", "ljust", "rjust", "zfill", "indent", "expandtabs", "batch", "slice"),
    *("replace", "translate", "join", "tojson"),
}

_TEXT_OF_ANYTHING = {"string", "join", "tojson", "pprint", "replace", "urlencode", "escape", "e", "forceescape"}
_WIDTH_FROM_ELSEWHERE = re.compile(r"%[^a-zA-Z%]*\*|\{[^}]*\{")  # of a field of a format


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
        for name in _DROPPED:
            del self.filters[name]
        del self.globals["lipsum"]
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
        self._deadlines = time.monotonic() + MAX_SECONDS, time.thread_time() + MAX_SECONDS

    def spend(self, num_characters: int = 0) -> None:
        """Takes a step, and so many characters. Raises UserError where no more are left."""
        self._steps_left -= 1
        self._characters_left -= num_characters
        if self._steps_left < 0 or self._characters_left < 0 or self._is_late():
            raise UserError(
                f"The chat template takes more than {MAX_SECONDS:.0f} s, {MAX_STEPS:,} steps or {MAX_CHARACTERS:,} "
                "characters for one conversation: give another by --data.tokenizer_chat_template."
            )

    def _is_late(self) -> bool:
        """By this thread's processor time, which takes longer to ask for than the time on the wall."""
        return time.monotonic() > self._deadlines[0] and time.thread_time() > self._deadlines[1]

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
            if hasattr(sized, "__len__") and isinstance(count, int):
                self.spend(_num_characters(sized) * max(0, count))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right)
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.spend(_num_characters(left) + _num_characters(right))
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
            passed, values = args[:num_passed], list(args[num_passed:])
            if name in _WIDENING and hasattr(values[0], "__next__"):  # what `map` gives, of no known length
                values[0] = list(values[0])
            self._check_arguments(name, values, kwargs)
            result = function(*passed, *values, **kwargs)
            self.spend(len(result) if isinstance(result, str) else 0)
            return result

        return bounded

    def _check_arguments(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """The first argument is the value itself."""
        if name in _WIDENING:
            counted = (*args[:1], *args[2:]) if name == "replace" else (*args, *kwargs.values())
            sizes = sorted(map(_size, counted))[-2:]
            self.spend(math.prod(sizes) // 16)  # few characters are replaced, as a rule
        if name == "sum" and any(isinstance(one, list | tuple) for one in (*args[1:], *kwargs.values())):
            self.spend(self._characters_left + 1)  # lists put together one by one take the square of their number
        if name == "format":
            self._check_format(str(args[0]), args[1:])
        elif name in _TEXT_OF_ANYTHING:
            self._weigh(args)

    def _check_format(self, text: str, values: Any) -> None:
        widths = sum(int(width[:9]) for width in re.findall(r"\d+", text))
        self.spend(self._characters_left + 1 if _WIDTH_FROM_ELSEWHERE.search(text) else widths)
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


def _num_characters(value: Any) -> int:
    return len(value) if isinstance(value, str) else CHARACTERS_A_PLACE * len(value)


def _size(value: Any) -> int:
    """A number, or how long a text is, or the parts of a list or object, and the longest text among them."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return max(len(value), *(len(part) for part in value if isinstance(part, str)), 0)
    return len(value) if isinstance(value, str) else abs(value) if isinstance(value, int) else 1
