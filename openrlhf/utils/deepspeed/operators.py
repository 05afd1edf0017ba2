"""DeepSpeed's operators, compiled on first use, by one process at a time.

torch guards a build by a file that stays behind when its process is killed, and then waits for ever. Here every build
stands under the lock of our build folder, so a file of torch's that is found under it is stale.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf.utils.build_folder import sole_builder


@contextmanager
def sole_compiler(*operators: str) -> Iterator[None]:
    """While it lasts no other process of ours compiles; says so where `operators` (folder names) are not built yet."""
    _ask_processor_once()
    with sole_builder() as folder:
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        missing = [name for name in operators if not (folder / name / f"{name}.so").is_file()]
        if missing:
            print(f"compiling DeepSpeed's {', '.join(missing)} (once; a minute or two) in {folder}", flush=True)
        yield


def compile_for_communication() -> None:
    """What DeepSpeed's communication on the CPU compiles when ranks join, done before anybody waits for anybody."""
    from deepspeed.accelerator import get_accelerator

    with sole_compiler("deepspeed_shm_comm"):
        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
        if builder is not None and builder.is_compatible():
            builder.load(verbose=False)


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
