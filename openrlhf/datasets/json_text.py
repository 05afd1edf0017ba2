"""JSON from elsewhere: no key twice in an object, no number or depth that would break a reader further on."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100  # objects and lists within one another; the deepest tool schemas known have about 20

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class RefusedJson(ValueError):
    """Valid JSON that means nothing certain, or that could not be handled: the text says why."""


class Refused:
    """Stands where a refused value stood; `refused_in` finds it."""

    def __init__(self, reason: str):
        self.reason = reason


class _Decoder:
    """A decoder that is made once: to make one takes longer than to read a row."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []
        self._usual = json.JSONDecoder(object_pairs_hook=self._object)
        self._careful = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._whole_number)

    def decode(self, text: str) -> Any:
        self.refused = []
        try:
            return self._usual.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a number of too many digits; the slower way tells which
            self.refused = []
            return self._careful.decode(text)

    def _object(self, pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        return self._refuse(f"two keys of the name {twice[:60]!r} in one object: which is meant cannot be told")

    def _whole_number(self, digits: str) -> Any:
        try:
            return int(digits)
        except ValueError:
            return self._refuse(f"a number of {len(digits):,} digits, which cannot be read")

    def _refuse(self, reason: str) -> Refused:
        self.refused.append(Refused(reason))
        return self.refused[-1]


_decoder = _Decoder()


def load_json(text: str) -> Any:
    """The value of a JSON text. Raises json.JSONDecodeError where it is broken, RefusedJson where it is refused."""
    value, refused = load_json_with_refused(text)
    if refused:
        raise RefusedJson(refused[0].reason)
    return value


def load_json_with_refused(text: str) -> tuple[Any, list[Refused]]:
    """The value, and what was refused in it. Raises json.JSONDecodeError, or RefusedJson for its depth."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise RefusedJson(f"its JSON is nested too deeply: more than {MAX_DEPTH} lists and objects within one another")
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("a byte order mark", text, 0)
    return _decoder.decode(text), _decoder.refused


def refused_in(value: Any) -> Refused | None:
    """The first refused value within a value; its depth is bounded by `load_json_with_refused`."""
    if isinstance(value, Refused):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(refused_in, parts)), None)


def _depth(text: str) -> int:
    """The depth of brackets outside of strings."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
