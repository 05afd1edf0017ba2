"""The equations of an answer, by which rejection-sampling fine-tuning tells ways of reasoning apart (arXiv 2308.01825).

No expression here can backtrack far: the texts are a model's, and may be long and repeat themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARKED = re.compile(r"<<([^<>]*=[^<>]*)>>")  # GSM8K's calculator marks: 48/2 = <<48/2=24>>24
_TIMES = re.compile(r"(?<=[\d%)]) ?[xX] ?(?=[\d(.$€£])")
_RUN = re.compile(r"[\d.,$€£%()+\-*/^×÷·−= ]+")
_GAP = re.compile(r"(?<=[\d.%)]) (?=[\d(.$€£])|,(?!\d{3}(?!\d))")  # between two numbers; of a sentence
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)%?"
_ONE_SIDE = rf"[-+(]*{_NUMBER}(?:\)*(?:\*\*|[-+*/])[-+(]*{_NUMBER})*\)*"
_SIDE, _SIDES = re.compile(_ONE_SIDE), re.compile(rf"{_ONE_SIDE}(?:={_ONE_SIDE})+")
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**", **dict.fromkeys(" $€£,")})
_OPERATION = re.compile(r"[\d)%][-+*/]")


def equations_of(text: str) -> tuple[str, ...]:
    """The equations of a text, in their order.

    Where it has GSM8K's marks, `<<48/2=24>>`, an equation is what stands in one. Elsewhere it is two or more sides of
    numbers, operators and parentheses with equals signs between them, in one line, with an operation on one side at
    least. Spaces, currency signs and the commas of thousands are left out; ×, ·, ÷, − and x between numbers are read
    as *, *, /, - and *, and ^ as **. Nothing is computed: 3+4=7 and 4+3=7 are two, and their order counts.
    """
    if marked := _MARKED.findall(text):
        return tuple(equation.translate(_SIGNS) for equation in marked)
    lines = (" ".join(line.split()) for line in text.splitlines() if "=" in line)
    return tuple(_written("\n".join(line.removeprefix("- ") for line in lines)))


def _written(lines: str) -> Iterator[str]:
    """All lines at once: no expression here sees across a line feed."""
    runs = [run for run in _RUN.findall(_TIMES.sub("*", lines)) if "=" in run]
    for part in _GAP.sub("\n", "\n".join(runs)).translate(_SIGNS).split("\n"):
        if "=" in part:
            yield from _equations_in(part.strip(".*/"))


def _equations_in(part: str) -> Iterator[str]:
    if _SIDES.fullmatch(part):  # most are one equation, whole: found in one step
        if _OPERATION.search(part):
            yield part
        return
    sides: list[str] = []
    for side in (*part.split("="), ""):
        if _SIDE.fullmatch(side):
            sides.append(side)
            continue
        if len(sides) > 1 and any(map(_OPERATION.search, sides)):
            yield "=".join(sides)
        sides = []
