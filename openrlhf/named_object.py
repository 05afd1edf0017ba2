"""`module:Name`: a class of the user's own, named by a setting, and one object of it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TypeVar

from openrlhf.errors import UserError

Base = TypeVar("Base")


def named_object(name: str, base: type[Base], flag: str) -> Base:
    """A new object of the class `Name` of the module, made without arguments; the working directory is looked in too.

    Raises UserError where the module cannot be imported, has no such class, it is no `base`, or none can be made.
    """
    module_name, _, class_name = name.strip().partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a module of the user's own may raise anything
        raise UserError(
            f"{flag} {name} cannot be imported: {type(error).__name__}: {error}. It reads module:Name."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{flag} {name} is no {base.__name__}: make it a subclass of openrlhf's {base.__name__}.")
    try:
        return found()
    except Exception as error:
        raise UserError(
            f"{flag} {name} cannot be made: {type(error).__name__}: {error}. It is made without arguments."
        ) from error
