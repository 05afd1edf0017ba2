"""The order of the rooms: imports go from an earlier one to a later one, or stay inside."""

from __future__ import annotations

from collections.abc import Iterator

from tests.house.source import imports

ROOMS = (
    "cli",
    "compat",
    "run",
    "rejection",
    "inspection",
    "trainer",
    "strategy",
    "objectives",
    "checkpoint",
    "tracking",
    "models",
    "engine",
    "datasets",
    "batching",
    "watchdog",
    "parallel",
    "config",
    "named_object",
    # leaves: one file each
    "errors",
    "exit_codes",
    "atomic_file",
    "build_folder",
    "control_groups",
    "processes",
    "versions",
)
FACE = "utils"  # OpenRLHF's import paths: it may import any room, and no room imports it
PACKAGE_ITSELF = "openrlhf"  # its version and its docstring


def room_of(module_name: str) -> str:
    """`trainer` for openrlhf.trainer.loop, `errors` for openrlhf.errors."""
    return (module_name.split(".")[1:] or [PACKAGE_ITSELF])[0]


def imports_up_the_house() -> Iterator[str]:
    """A sentence for each import that goes the wrong way."""
    for one in imports():
        room, imported = room_of(one.importer.name), room_of(one.imported)
        if not may_import(room, imported):
            yield (
                f"openrlhf/{one.importer.file}:{one.line} imports {one.imported}: "
                f"room {room} may not import room {imported}"
            )


def may_import(room: str, imported: str) -> bool:
    """Whether a file of `room` may import one of `imported`."""
    if room == imported or imported == PACKAGE_ITSELF:
        return True
    if room == FACE:
        return imported in ROOMS
    return room in ROOMS and imported in ROOMS and ROOMS.index(room) < ROOMS.index(imported)
