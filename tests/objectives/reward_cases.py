"""A reward model trained on real ranks, in any layout; runs inside a rank."""

from __future__ import annotations

import torch

from openrlhf.objectives import RewardObjective
from tests.objectives.pair_cases import BATCH_SIZE, NUM_STEPS, Pairs

CENTER_COEF = 0.01


def tiny_classifier(kind: str = "llama", dtype: torch.dtype = torch.float32):
    """A tiny model of transformers for sequence classification, with seeded weights."""
    from transformers import AutoModelForSequenceClassification

    from tests.helpers.tiny_models import tiny_model

    config = tiny_model(kind).config
    config.num_labels = 1
    torch.manual_seed(4)
    return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).to(dtype)


def curve(
    ring: int, zero_stage: int, packed: bool, max_tokens: int | None = None, lora_rank: int = 0
) -> list[tuple[float, float, float]]:
    """(loss, accuracy, gradient norm) of each step."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import RewardModel
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep

    strategy = DeepspeedStrategy(
        train=TrainConfig(batch_size=BATCH_SIZE, micro_batch_size=1, max_tokens_per_micro_batch=max_tokens),
        ds=DeepspeedConfig(zero_stage=zero_stage, param_dtype="fp32", packing_samples=packed, ring_attn_size=ring),
        adam=AdamConfig(lr=1e-3, eps=1e-6),
    )
    strategy.setup_distributed()
    model = RewardModel(tiny_classifier(), packing_samples=packed, ring_attn_size=ring, lora_rank=lora_rank)
    optimizer = strategy.create_optimizer(model)
    strategy.prepare((model, optimizer, build_schedule(optimizer, "constant")))
    model.train()
    step = WindowStep(model, model.trained, strategy, RewardObjective(with_margin=True, center_coef=CENTER_COEF))
    windows = strategy.setup_dataloader(Pairs(), 1, shuffle=False, pad_token_id=0).windows(max_epochs=2)
    results = [step.run(window, number) for number, window in zip(range(NUM_STEPS), windows, strict=False)]
    model.engine.destroy()
    return [(r.loss, r.metrics["accuracy"], r.outcome.grad_norm) for r in results]
