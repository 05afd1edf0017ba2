"""DeepSpeed's comparison of the first inputs of a tensor-parallel group, left out.

Reason: before the first forward pass of an AutoTP engine DeepSpeed sends rank 0's inputs to the other ranks of the
group, to compare them. It pickles what is no tensor; process groups, which our models take as inputs, cannot be
pickled, and the run would end there. Our loader gives the ranks of a group the same inputs by construction.

Change: DeepSpeed's own forward hook is removed from the module.

Upstream: the check came with https://github.com/deepspeedai/DeepSpeed/pull/6922; no issue is known.
Another version of DeepSpeed: applied, where there is such a hook.
"""

from __future__ import annotations

from typing import Any

from openrlhf.engine.patches.patch import Patch

PATCH = Patch("tensor_data_check", "deepspeed", "0.19", applies_to_others=True, without_it="tensor parallelism fails")


def leave_out_data_check(engine: Any) -> None:
    """Removes the hook, which engines with tensor parallelism alone have."""
    hook = getattr(engine, "first_dataloader_check", None)
    if hook is not None and PATCH.is_on():
        hook.remove()
