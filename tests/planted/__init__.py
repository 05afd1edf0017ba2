"""Small wrong changes to the package, by room, and what applies them: see tests/planted_bugs.py."""

from __future__ import annotations

from tests.planted import (
    attention,
    batching,
    callbacks,
    checkpoint,
    config,
    datasets,
    engine,
    models,
    objectives,
    scale,
    tracking,
    trainer,
    watchdog,
)
from tests.planted.bug import Bug

ROOMS = (
    batching,
    datasets,
    models,
    attention,
    objectives,
    engine,
    trainer,
    callbacks,
    checkpoint,
    watchdog,
    tracking,
    config,
    scale,
)


def bugs_of_rooms() -> list[Bug]:
    """All bugs, in the order of a sample's way."""
    return [bug for room in ROOMS for bug in room.BUGS]
