"""The kinds of values of settings: types that carry their check and, in plain words, what they ask for."""

from __future__ import annotations

import difflib
import os
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from openrlhf.errors import UserError

MAX_CHARACTERS, MAX_SHOWN = 1 << 20, 200
NONE_WORDS = ("", "none", "null")


def _read_whole_number(value: Any) -> Any:
    """Takes '1e6' for 1000000, and refuses True, which Python counts as 1."""
    if isinstance(value, bool):
        raise ValueError("a switch is no number")
    if isinstance(value, str) and "e" in value.lower():
        return float(value)
    return value


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("zero says neither never nor how often")
    return value


_Int = Annotated[int, BeforeValidator(_read_whole_number)]

MOST = 2**62  # of a whole number: what 64 bits hold
MOST_OF_FLOATS = 1e30  # float32 ends at 3e38
MOST_MINUTES = 1e7  # 19 years; a clock of the libraries overflows somewhere beyond

WholeNumber = Annotated[_Int, Field(description="a whole number")]
Count = Annotated[_Int, Field(ge=0, description="a whole number, 0 or above")]
Rank = Annotated[_Int, Field(ge=0, le=2**16, description="a whole number from 0 to 65536")]
PositiveCount = Annotated[_Int, Field(gt=0, description="a whole number above 0")]
Answers = Annotated[_Int, Field(ge=1, le=10**6, description="a whole number from 1 to 1000000")]  # to a prompt
EverySteps = Annotated[
    _Int, AfterValidator(_not_zero), Field(ge=-1, description="a whole number above 0, or -1 for never")
]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, 0 or above")]
Minutes = Annotated[float, Field(gt=0, le=MOST_MINUTES, description=f"a number above 0, at most {MOST_MINUTES:g}")]
AnyNumber = Annotated[float, Field(allow_inf_nan=False, description="a number")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
BelowOne = Annotated[float, Field(ge=0, lt=1, description="a number, 0 or above and below 1")]
FactorAboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False, description="a number above 1")]
Place = Annotated[str, AfterValidator(os.path.expanduser), Field(description="text")]  # ~ is the home folder
_SIZE, _UNITS = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(i?)B"), "KMGT"
_SIZE_IN_WORDS = "a size with its unit, such as 500MB, 1.5GB or 80GiB, from 1KB to 1000000TB"


def size_bytes(size: str) -> int:
    """Bytes of a `Size`: KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024. UserError of another text."""
    found = _SIZE.fullmatch(size)
    num_bytes = float(found[1]) * (1024 if found[3] else 1000) ** (_UNITS.index(found[2]) + 1) if found else 0.0
    if not 1e3 <= num_bytes <= 1e18:
        raise UserError(f"The size {_shown(size)} must be {_SIZE_IN_WORDS}.")
    return round(num_bytes)


def _checked_size(size: str) -> str:
    size_bytes(size)
    return size


Size = Annotated[str, AfterValidator(_checked_size), Field(description=_SIZE_IN_WORDS)]


def is_optional(kind: Any) -> bool:
    """Whether None is among the values."""
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def without_none(kind: Any) -> Any:
    """`X | None` → `X`; anything else as it is."""
    if not is_optional(kind):
        return kind
    (inner,) = [part for part in get_args(kind) if part is not type(None)]
    return inner


def takes_many(kind: Any) -> bool:
    """Whether the value is a list, on the command line `--name a b c`."""
    return get_origin(without_none(kind)) is tuple


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal`; empty for any other kind."""
    kind = without_none(kind)
    return get_args(kind) if get_origin(kind) is Literal else ()


def describe(kind: Any) -> str:
    """The values that the kind asks for, to finish the sentence "it must be …"."""
    words = _describe_value(without_none(kind))
    return f"{words}, or none" if is_optional(kind) else words


def _describe_value(kind: Any) -> str:
    if options := choices(kind):
        return "one of " + ", ".join(str(option) for option in options)
    parts = get_args(kind)
    if get_origin(kind) is tuple:
        count = "one or more" if parts[-1] is Ellipsis else len(parts)
        return f"{count} values, each {_describe_value(parts[0])}"
    if get_origin(kind) is Annotated:
        return next(mark for mark in parts if isinstance(mark, FieldInfo)).description or ""
    return {bool: "true or false", str: "text"}[kind]


def read_value(kind: Any, value: Any) -> Any:
    """Value as given (words of a command line, or what a file holds) → value of the kind.

    Raises:
        ValueError: with what is wrong, to finish the sentence "--name …".
    """
    if is_optional(kind) and isinstance(value, str) and value.lower() in NONE_WORDS:
        return None
    if problem := _wrong_number_of_values(kind, value):
        raise ValueError(problem)
    if takes_many(kind) and not isinstance(value, (list, tuple)) and value is not None:
        value = [value]
    value = next((option for option in choices(kind) if str(option) == _shown(value).strip("'")), value)  # '2' → 2
    if problem := _unusable_text(value):
        raise ValueError(problem)
    try:
        read = TypeAdapter(kind).validate_python(value)
    except (ValidationError, OverflowError):
        raise ValueError(f"is {_shown(value)}; it must be {describe(kind)}.{_nearest_choice(kind, value)}") from None
    for number in read if isinstance(read, tuple) else (read,):
        most = MOST if isinstance(number, int) else MOST_OF_FLOATS
        if isinstance(number, int | float) and abs(number) > most:
            raise ValueError(f"is {_shown(value)}; it may be {most} at most.")
    return read


def _unusable_text(value: Any) -> str:
    """No file can be named so, and no log or file could hold it."""
    for text in value if isinstance(value, list | tuple) else (value,):
        if isinstance(text, str) and "\x00" in text:
            return f"holds a zero byte: {_shown(text)}."
        if isinstance(text, str) and not text.isascii() and text.encode("utf-8", "replace").decode() != text:
            return f"is no valid text in UTF-8: {_shown(text)}."
        if isinstance(text, str) and len(text) > MAX_CHARACTERS:
            return f"has {len(text):,} characters; {MAX_CHARACTERS:,} are allowed."
    return ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number of too many digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _wrong_number_of_values(kind: Any, value: Any) -> str:
    if value is True and kind is not bool:
        return f"needs a value: {describe(kind)}."
    if isinstance(value, (list, tuple)) and not takes_many(kind):
        shown = " ".join(map(_shown, value[:20]))
        if len(value) == 1:
            return f"takes one value, but a list is given, which holds {shown}. Write the value alone."
        return f"takes one value, but {len(value)} are given: {shown}. Quote a value with spaces."
    if isinstance(value, (list, tuple)) and not value:
        return f"is an empty list; it must be {describe(kind)}."
    return ""


def _nearest_choice(kind: Any, value: Any) -> str:
    near = difflib.get_close_matches(_shown(value), [str(option) for option in choices(kind)], n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
