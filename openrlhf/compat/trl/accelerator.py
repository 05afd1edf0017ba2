"""What scripts read of accelerate's Accelerator: which rank this is, and a wait for all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from openrlhf.compat.trl.arguments import TrlSFTConfig
from openrlhf.parallel.collectives import gather_objects
from openrlhf.strategy import DeepspeedStrategy


class _Accelerator(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"accelerator.{name} is not here, which has {', '.join(vars(self))}: the ranks are openrlhf's, and "
            "torch.distributed reaches them."
        )


def accelerator_of(strategy: DeepspeedStrategy, args: TrlSFTConfig) -> SimpleNamespace:
    """Of ranks that are joined."""
    return _Accelerator(
        is_main_process=strategy.is_rank_0(),
        is_local_main_process=args.local_process_index == 0,
        process_index=strategy.get_rank(),
        num_processes=strategy.world_size,
        device=strategy.device,
        wait_for_everyone=lambda: gather_objects(None, strategy.groups.control) and None,
        unwrap_model=lambda model, **_: model,
        print=strategy.print,
    )
