"""A first step with Muon on real ranks, in any layout; runs inside a rank."""

from __future__ import annotations

import torch

MUON_LR = 0.02


def first_changes(zero_stage: int, param_dtype: str) -> dict[str, float]:
    """By matrix: the norm of the change of one step, as a share of the muon.lr times the norm of an orthogonal one."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, MuonConfig, TrainConfig
    from openrlhf.engine.parameters import whole_weights
    from openrlhf.models import Actor
    from openrlhf.strategy import DeepspeedStrategy
    from tests.helpers.tiny_models import tiny_model

    torch.compiler.set_stance("force_eager")  # Muon compiles its update, for minutes
    strategy = DeepspeedStrategy(
        max_norm=1e-3,
        train=TrainConfig(batch_size=4, micro_batch_size=1),
        ds=DeepspeedConfig(zero_stage=zero_stage, param_dtype=param_dtype),
        adam=AdamConfig(lr=1e-3),
        muon=MuonConfig(lr=MUON_LR),
    )
    strategy.setup_distributed()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[param_dtype]
    actor = Actor(tiny_model("llama", dtype=dtype))
    strategy.prepare((actor, strategy.create_optimizer(actor), None))
    actor.train()
    before = _matrices(whole_weights(actor.model, is_wanted_here=True))
    ids = torch.randint(3, 500, (4, 64), generator=torch.Generator().manual_seed(strategy.get_rank()))
    with actor.trained.micro_batch(is_last=True):
        actor.trained.backward_share(-actor(ids).mean() / 2)
    outcome = actor.trained.step()
    assert outcome.is_applied, outcome
    after = _matrices(whole_weights(actor.model, is_wanted_here=True))
    actor.engine.destroy()
    torch.compiler.set_stance("default")
    return {name: _share(after[name] - before[name]) for name in before}


def _matrices(weights) -> dict[str, torch.Tensor]:
    return {name: one.float().clone() for name, one in weights if one.ndim == 2 and ".layers." in name}


def _share(change: torch.Tensor) -> float:
    rows, columns = change.shape
    return float(change.norm()) / (MUON_LR * min(rows, columns) ** 0.5 * max(1, rows / columns) ** 0.5)
