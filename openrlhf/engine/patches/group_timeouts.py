"""DeepSpeed's process groups wait as long as the user has said, as all others do.

Reason: DeepSpeed makes its groups without a timeout. torch gives such a group its default, ten minutes for nccl. The
watchdog takes as long to find a rank that hangs, so torch often ends the processes before the rank is named.

Change: `new_group` of DeepSpeed's one communication object passes the timeout. Its device mesh, of which tensor
parallelism would make groups, takes none: it answers as where meshes are not supported, and DeepSpeed asks `new_group`.

Upstream: none known.
Another version of DeepSpeed: applied; it needs no more than that DeepSpeed asks its communication object for groups.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from openrlhf.engine.patches.patch import Patch

PATCH = Patch("group_timeouts", "deepspeed", "0.19", applies_to_others=True, without_it="torch may end a run first")


def limit_groups(timeout: timedelta) -> None:
    """From now on. For the groups of this process that DeepSpeed makes; it must be initialised."""
    if not PATCH.is_on():
        return
    from deepspeed.comm import comm
    from deepspeed.utils.groups import _DEVICE_MESH_SPLIT_UNSUPPORTED

    def no_mesh(*args: Any) -> None:
        raise RuntimeError(_DEVICE_MESH_SPLIT_UNSUPPORTED)

    comm.cdb.new_group = lambda ranks: torch.distributed.new_group(ranks, timeout=timeout)
    comm.cdb.init_device_mesh = no_mesh
