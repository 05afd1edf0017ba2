"""The equations of an answer, by which rejection-sampling fine-tuning tells paths of reasoning apart (arXiv 2308.01825)."""

from __future__ import annotations

import re

_MARKED = re.compile(r"<<([^<>]*=[^<>]*)>>")  # GSM8K's calculator marks: 48/2 = <<48/2=24>>24
_NUMBER = r"[-+]?[$€£]?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s*%?"
_OPERATOR = r"(?:\*\*|[-+*/^×÷·−]|(?<=[\d%)\s])[xX](?=[\s\d($]))"
_SIDE = rf"\(*\s*{_NUMBER}(?:\s*\)*\s*{_OPERATOR}\s*\(*\s*{_NUMBER})*\s*\)*"
_WRITTEN = re.compile(rf"(?<![\w.]){_SIDE}(?:\s*=\s*{_SIDE})+")
_SIGNS = str.maketrans({"×": "*", "·": "*", "x": "*", "X": "*", "÷": "/", "−": "-", "^": "**"})
_LEFT_OUT = re.compile(r"[\s$€£,]")
_HAS_OPERATION = re.compile(r"[\d)%][-+*/]")


def equations_of(text: str) -> tuple[str, ...]:
    """The equations of a text, in their order.

    Where it has GSM8K's marks, `<<48/2=24>>`, an equation is what stands in one. Elsewhere it is a run of numbers,
    operators, parentheses and equals signs with an operation on one side at least. Spaces, currency signs and the
    commas of thousands are left out; ×, ·, x and ÷ are read as * and /, ^ as **. Nothing is computed: 3+4=7 and
    4+3=7 are two equations, and so are two orders of the same equations.
    """
    found = _MARKED.findall(text) or _WRITTEN.findall(text)
    plain = (_LEFT_OUT.sub("", equation).translate(_SIGNS) for equation in found)
    return tuple(equation for equation in plain if _HAS_OPERATION.search(equation.partition("=")[0] + " " + equation))
