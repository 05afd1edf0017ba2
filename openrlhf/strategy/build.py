"""The typed configuration → the strategy with the few values that it takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

from openrlhf.config import SFTConfig, as_namespace
from openrlhf.engine.engine_config import EngineSettings
from openrlhf.engine.optimizers import AdamSettings, MuonSettings
from openrlhf.strategy.strategy import DeepspeedStrategy


def strategy_of(config: SFTConfig, args: Any = None) -> DeepspeedStrategy:
    """The strategy of a run. `strategy.args` is `args` where the caller has its own, else the configuration's names."""
    return DeepspeedStrategy(
        seed=config.train.seed,
        full_determinism=config.train.full_determinism_enable,
        train_batch_size=config.train.batch_size,
        micro_train_batch_size=config.train.micro_batch_size,
        engine=EngineSettings(
            zero_stage=config.ds.zero_stage,
            param_dtype=config.ds.param_dtype,
            grad_accum_dtype=config.ds.grad_accum_dtype,
            max_norm=config.max_norm,
            adam_offload=config.ds.adam_offload,
            zpg=config.ds.zpg,
            overlap_comm=config.ds.overlap_comm,
            tensor_parallel_size=config.ds.tensor_parallel_size,
            deepcompile=config.ds.deepcompile,
            use_universal_ckpt=config.ds.use_universal_ckpt,
            pin_memory=torch.cuda.is_available(),
        ),
        adam=AdamSettings(
            lr=config.adam.lr, betas=config.adam.betas, eps=config.adam.eps, weight_decay=config.adam.weight_decay
        ),
        muon=MuonSettings(lr=config.muon.lr, momentum=config.muon.momentum) if config.optim == "muon" else None,
        ring_attn_size=config.ds.ring_attn_size,
        packing_samples=config.ds.packing_samples,
        max_tokens_per_micro_batch=config.train.max_tokens_per_micro_batch,
        loss_reduction=config.train.loss_reduction,
        max_grad_norm_spike=config.train.max_grad_norm_spike,
        comm_timeout=timedelta(minutes=config.train.comm_timeout_minutes),
        hang_timeout=timedelta(minutes=config.train.hang_timeout_minutes),
        args=args if args is not None else as_namespace(config),
    )
