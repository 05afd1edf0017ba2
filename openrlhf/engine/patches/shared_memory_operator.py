"""DeepSpeed's operator for sums in shared memory, not compiled.

Reason: on a CPU, ranks that join make DeepSpeed compile and load it: a minute of a machine's first start, and 66 MiB of
each rank in /dev/shm that no run gives back. It serves inference alone, and training makes no use of it.

Change: DeepSpeed's table of operators that fit this machine says that it does not fit, as on a system without
/dev/shm.

Upstream: none known.
Another version of DeepSpeed: applied. Without such an operator there the entry has no effect.
"""

from __future__ import annotations

from openrlhf.engine.patches.patch import Patch

PATCH = Patch(
    "shared_memory_operator",
    "deepspeed",
    "0.19",
    applies_to_others=True,
    without_it="the first start takes a minute longer, and each run leaves 66 MiB of a rank in memory",
)


def leave_out_shared_memory() -> None:
    """Before ranks join."""
    if not PATCH.is_on():
        return
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
