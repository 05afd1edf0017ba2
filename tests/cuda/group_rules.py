"""The rules of nccl that gloo does not have, watched while ranks compute; runs inside a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch.distributed as dist

if TYPE_CHECKING:
    from tests.equivalence.cells import Layout

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "broadcast", "barrier")


class NcclRules:
    """While it lasts, `broken` collects what nccl would not forgive.

    - A group without a timeout of its own has torch's ten minutes.
    - The first operation on a group must have all its ranks: a collective, not two ranks that send to each other.
    """

    def __init__(self) -> None:
        self.broken: list[str] = []
        self._begun: set[Any] = set()
        self._patches = [patch.object(dist, name, self._marking(getattr(dist, name))) for name in COLLECTIVES]
        self._patches.append(patch.object(dist, "batch_isend_irecv", self._sending(dist.batch_isend_irecv)))
        for module in (dist, dist.device_mesh):
            self._patches.append(patch.object(module, "new_group", self._with_timeout(dist.new_group)))

    def _marking(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._begun |= {kwargs.get("group")} | {one for one in args if isinstance(one, dist.ProcessGroup)}
            return collective(*args, **kwargs)

        return call

    def _sending(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def call(operations: list[dist.P2POp]) -> Any:
            self.broken += [
                f"{one.op.__name__} is the first of its group" for one in operations if one.group not in self._begun
            ]
            return send(operations)

        return call

    def _with_timeout(self, new_group: Callable[..., Any]) -> Callable[..., Any]:
        def call(ranks: Any = None, timeout: Any = None, *args: Any, **kwargs: Any) -> Any:
            if timeout is None:
                self.broken.append(f"the group of ranks {ranks} has no timeout")
            return new_group(ranks, timeout, *args, **kwargs)

        return call

    def __enter__(self) -> NcclRules:
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for one in self._patches:
            one.stop()


def rules_broken_by_a_run(layout: Layout) -> list[str]:
    """By joining, making an engine and one step."""
    from deepspeed.utils import groups

    from tests.equivalence.cells import prepare_run
    from tests.equivalence.reference import Recipe

    groups._release_process_group_references()  # of an engine made before in this process
    with NcclRules() as rules:
        run = prepare_run(Recipe("qwen3"), layout)
        run.train(0, 1)
    run.actor.engine.destroy()
    return rules.broken
