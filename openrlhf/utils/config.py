"""OpenRLHF's import path of what scripts do with their arguments."""

from __future__ import annotations

import argparse
from typing import Any

from openrlhf.errors import UserError

__all__ = ["hierarchize"]


def hierarchize(args: Any) -> argparse.Namespace:
    """`args` of an argparse whose flags are dotted (`--data.max_len`) → `args.data.max_len`.

    Args: args: a namespace, or a dict; it is not changed.

    Raises UserError where a name is a value and a group at once.
    """
    tree = argparse.Namespace()
    for name, value in sorted((args if isinstance(args, dict) else vars(args)).items()):
        *groups, leaf = name.split(".")
        branch = tree
        for group in groups:
            if not isinstance(getattr(branch, group, None), argparse.Namespace | None):
                raise UserError(f"--{name}: {group} is a value already, and cannot hold others.")
            if getattr(branch, group, None) is None:
                setattr(branch, group, argparse.Namespace())
            branch = getattr(branch, group)
        setattr(branch, leaf, value)
    return tree
