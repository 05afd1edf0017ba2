"""An optimizer's update held back while DeepSpeed calls it.

Reason, when an engine is made: without ZeRO, in 16 bits, DeepSpeed takes an optimizer step with zero gradients to
allocate the optimizer's state. The step counts in Adam's bias correction and decays the weights.
Reason, at a step: DeepSpeed itself skips an update whose gradient norm is not finite in fp16, in bf16 with
`check_grad_overflow` and under ZeRO, but not in fp32 without ZeRO, and it has no threshold for spikes. It computes the
norm inside its own step, right before the update, and offers no place to say no.

Change: `optimizer.step` of that one optimizer is replaced for as long as the context lasts.

Upstream: https://github.com/deepspeedai/DeepSpeed/issues/5151 and
https://github.com/deepspeedai/DeepSpeed/pull/5104 (mended for ZeRO, not for the 16-bit optimizers without it).
Another version of DeepSpeed: applied; it needs no more of DeepSpeed than that it calls `optimizer.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from openrlhf.engine.patches.patch import Patch

PATCH = Patch("held_updates", "deepspeed", "0.19", applies_to_others=True, without_it="harmful updates are not held")


@contextmanager
def updates_only_if(optimizer: Any, is_allowed: Callable[[], bool]) -> Iterator[None]:
    """While it lasts, `optimizer.step` does nothing unless `is_allowed()`."""
    if not PATCH.is_on():
        yield
        return
    own_step = optimizer.step
    optimizer.step = lambda *args, **kwargs: own_step(*args, **kwargs) if is_allowed() else None
    try:
        yield
    finally:
        optimizer.step = own_step
