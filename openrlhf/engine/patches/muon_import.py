"""DeepSpeed's Muon imported without torch's compiler.

Reason: every ZeRO engine asks whether its optimizer is Muon. That imports Muon, whose module compiles three functions
while it is imported, and for this alone torch's compiler is loaded: a second of every start, on every rank.

Change: while Muon is imported, DeepSpeed's decorator `compiler.compile` puts the compiling off to the first call.

Upstream: none known.
Another version of DeepSpeed: left out; a start takes longer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from openrlhf.engine.patches.patch import Patch

PATCH = Patch("muon_import", "deepspeed", "0.19", applies_to_others=False, without_it="a start takes 1 s longer")


def import_muon() -> None:
    """Imports it so that its functions are compiled when they are first called."""
    if not PATCH.is_on():
        return
    from deepspeed.runtime import compiler

    compile_now = compiler.compile
    compiler.compile = functools.partial(_compile_at_first_call, compile_now)
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compile_now


def _compile_at_first_call(compile_now: Callable, *choices: Any, **named: Any) -> Callable[[Callable], Callable]:
    """The decorator `compile_now(*choices, **named)`, put off."""

    def decorate(function: Callable) -> Callable:
        compiled = functools.cache(lambda: compile_now(*choices, **named)(function))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # a compiled function that calls this one takes it in
                return function(*args, **kwargs)
            return compiled()(*args, **kwargs)

        return call

    return decorate
