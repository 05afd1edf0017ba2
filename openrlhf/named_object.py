"""`module:Name`: a class of the user's own, named by a setting."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TypeVar

from openrlhf.errors import UserError

Base = TypeVar("Base")


def named_object(name: str, base: type[Base], flag: str) -> type[Base]:
    """The class `Name` of the module, which is imported; modules in the working directory are found too.

    Raises UserError where the module cannot be imported, has no such class, or the class is no `base`.
    """
    module_name, _, class_name = name.strip().partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{flag} {name} cannot be imported: {error}. It reads module:Name.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{flag} {name} is no {base.__name__}: make it a subclass of openrlhf's {base.__name__}.")
    return found
