"""DeepSpeed's operators, compiled on first use, by one process at a time.

torch guards a build by a file that stays behind when its process is killed, and later processes wait for it for ever
(https://github.com/pytorch/pytorch/issues/189245). Every build of ours holds the lock of our build folder, so a file of
torch's that is found under that lock is stale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openrlhf.build_folder import builds_are_for, sole_builder
from openrlhf.engine.patches.built_operators import load_built

STAMP_NAME = "openrlhf_made_with"


@contextmanager
def sole_compiler(*operators: str) -> Iterator[None]:
    """While it lasts no other process of ours compiles; says so where `operators` (folder names) are not built yet."""
    with sole_builder() as folder:
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        to_build = [folder / name for name in operators if not _is_loaded_from(folder / name)]
        missing = [place.name for place in to_build if not _library_in(place).is_file()]
        if missing:
            print(f"compiling DeepSpeed's {', '.join(missing)} (once; a minute or two) in {folder}", flush=True)
        yield
        for place in to_build:
            if _library_in(place).is_file():
                (place / STAMP_NAME).write_text(_made_with())


def compile_for_communication() -> None:
    """Builds the operator of DeepSpeed's communication on the CPU, before any rank waits for another in a collective.

    DeepSpeed would build it while the ranks join.
    """
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and builder.is_compatible():
        with sole_compiler("deepspeed_shm_comm"):
            builder.load(verbose=False)


def _is_loaded_from(place: Path) -> bool:
    """Loads an operator from its folder if it was built with these very versions for this processor."""
    library, stamp = _library_in(place), place / STAMP_NAME
    is_ours = library.is_file() and stamp.is_file() and stamp.read_text() == _made_with()
    return is_ours and load_built(place.name, library)


def _library_in(place: Path) -> Path:
    return place / f"{place.name}.so"


def _made_with() -> str:
    import deepspeed

    return f"DeepSpeed {deepspeed.__version__}, {builds_are_for()}"
