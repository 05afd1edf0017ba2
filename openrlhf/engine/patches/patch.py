"""How a patch is declared, and when it is applied."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version

from openrlhf.errors import UserError

logger = logging.getLogger(__name__)

SWITCH = "OPENRLHF_PATCHES"


@dataclass(frozen=True)
class Patch:
    """A change to how another library behaves.

    Args:
        name: of the file.
        package: that it changes, as the package index names it.
        made_for: the versions it was made for: "0.19" is 0.19 and every 0.19.x.
        applies_to_others: whether it is applied with another version of the package.
        without_it: the cost of leaving it out, for the warning.
    """

    name: str
    package: str
    made_for: str
    applies_to_others: bool
    without_it: str

    def is_on(self) -> bool:
        """Whether it is to be applied. One line warns of another version, once in a process, on rank 0.

        Raises UserError where the switch has another value than on or off.
        """
        if _is_switched_off():
            return False
        if f"{version(self.package)}.".startswith(f"{self.made_for}."):
            return True
        _warn_of_version(self, version(self.package))
        return self.applies_to_others


def _is_switched_off() -> bool:
    value = os.environ.get(SWITCH, "on")
    if value not in ("on", "off"):
        raise UserError(f"{SWITCH} is {value!r}: set it to on or off.")
    return value == "off"


@functools.cache
def _warn_of_version(patch: Patch, installed: str) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    made_for = f"the patch {patch.name} was made for {patch.package} {patch.made_for}, and {installed} is installed"
    if patch.applies_to_others:
        logger.warning("%s: it is applied, unverified.", made_for)
    else:
        logger.warning("%s: it is left out (%s).", made_for, patch.without_it)
