"""The typed configuration → the strategy with the few values that it takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from openrlhf.config import SFTConfig, as_namespace
from openrlhf.strategy.strategy import DeepspeedStrategy


def strategy_of(config: SFTConfig, args: Any = None) -> DeepspeedStrategy:
    """The strategy of a run. `strategy.args` is `args` where the caller has its own, else the configuration's names."""
    return DeepspeedStrategy(
        seed=config.train.seed,
        full_determinism=config.train.full_determinism_enable,
        train_batch_size=config.train.batch_size,
        micro_train_batch_size=config.train.micro_batch_size,
        max_norm=config.max_norm,
        engine=config.ds,
        adam=config.adam,
        muon=config.muon if config.optim == "muon" else None,
        ring_attn_size=config.ds.ring_attn_size,
        packing_samples=config.ds.packing_samples,
        max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch,
        loss_reduction=config.train.loss_reduction,
        max_grad_norm_spike=config.train.max_grad_norm_spike,
        comm_timeout=timedelta(minutes=config.train.comm_timeout_minutes),
        hang_timeout=timedelta(minutes=config.train.hang_timeout_minutes),
        args=args if args is not None else as_namespace(config),
    )
