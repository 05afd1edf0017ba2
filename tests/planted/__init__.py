"""Small wrong changes to the package, a file a topic, and what applies them: see tests/planted_bugs.py."""

from __future__ import annotations

import importlib
import pkgutil

from tests.planted.bug import Bug


def all_bugs() -> list[Bug]:
    """The `BUGS` of every file beside this one, by its name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [bug for module in modules for bug in getattr(module, "BUGS", [])]
