"""DeepSpeed's operators, compiled on first use, by one process at a time.

torch guards a build by a file that stays behind when its process is killed, and then waits for ever. Here every build
stands under the lock of our build folder, so a file of torch's that is found under it is stale.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openrlhf.build_folder import builds_are_for, sole_builder

_STAMP_NAME = "openrlhf_made_with"


@contextmanager
def sole_compiler(*operators: str) -> Iterator[None]:
    """While it lasts no other process of ours compiles; says so where `operators` (folder names) are not built yet."""
    _ask_processor_once()
    with sole_builder() as folder:
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        to_build = [folder / name for name in operators if not _load_built(folder / name)]
        missing = [place.name for place in to_build if not _library_in(place).is_file()]
        if missing:
            print(f"compiling DeepSpeed's {', '.join(missing)} (once; a minute or two) in {folder}", flush=True)
        yield
        for place in to_build:
            if _library_in(place).is_file():
                (place / _STAMP_NAME).write_text(_made_with())


def _load_built(place: Path) -> bool:
    """Loads an operator that was built with these very versions for this processor: torch would run ninja, for 0.2 s.

    On the CPU alone; with CUDA the GPU counts too, and torch knows more of it.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder

    library, stamp = _library_in(place), place / _STAMP_NAME
    if torch.cuda.is_available() or not (library.is_file() and stamp.is_file() and stamp.read_text() == _made_with()):
        return False
    if place.name not in OpBuilder._loaded_ops:
        spec = importlib.util.spec_from_file_location(place.name, library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        OpBuilder._loaded_ops[place.name] = module
    return True


def _library_in(place: Path) -> Path:
    return place / f"{place.name}.so"


def _made_with() -> str:
    import deepspeed

    return f"DeepSpeed {deepspeed.__version__}, {builds_are_for()}"


@contextmanager
def compiled_for_communication() -> Iterator[None]:
    """What DeepSpeed's communication on the CPU compiles when ranks join, done before anybody waits for anybody.

    While it lasts DeepSpeed is told that this operator works here. To learn that, it would try all it has, one of them
    by a run of the compiler.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible():
        yield
        return
    with sole_compiler("deepspeed_shm_comm"):
        builder.load(verbose=False)
    deepspeed.ops.__compatible_ops__ = {builder.NAME: True}
    try:
        yield
    finally:
        del deepspeed.ops.__compatible_ops__


def _ask_processor_once() -> None:
    """DeepSpeed's builders ask several times what processor this is; each time half a second goes to subprocesses."""
    try:
        import cpuinfo
    except ImportError:  # DeepSpeed then asks in another way
        return
    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        answer = _x86_features if platform.machine() == "x86_64" else cpuinfo.get_cpu_info
        cpuinfo.get_cpu_info = functools.cache(answer)


def _x86_features() -> dict[str, Any]:
    """What DeepSpeed reads of py-cpuinfo's answer, straight from Linux."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()  # of the first core
    facts = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {"arch": "X86_64", "vendor_id_raw": facts["vendor_id"][0], "flags": facts["flags"]}
