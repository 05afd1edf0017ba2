"""A reward model trained on real ranks, in any layout; runs inside a rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from openrlhf.batching import Unit
from openrlhf.objectives import RewardObjective
from tests.objectives.pair_cases import BATCH_SIZE, NUM_STEPS, Pairs

CENTER_COEF = 0.01
SUBSETS = ("chat", "code")


def tiny_classifier(kind: str = "llama", dtype: torch.dtype = torch.float32):
    """A tiny model of transformers for sequence classification, with seeded weights."""
    from transformers import AutoModelForSequenceClassification

    from tests.helpers.tiny_models import tiny_model

    config = tiny_model(kind).config
    config.num_labels = 1
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.to(dtype)


class PairsOfSubsets(Pairs):
    """Every third pair is of `code`."""

    def unit(self, row: int) -> Unit:
        unit = super().unit(row)
        return replace(unit, numbers={**unit.numbers, "subset": float(row % 3 == 0)})


def prepared(layout: dict[str, Any], folder: str = "", kind: str = "llama", **model_settings: Any):
    """(strategy, model, loader): a classifier of `kind` from memory, or the model in `folder`, ready to be trained."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import RewardModel
    from openrlhf.strategy import DeepspeedStrategy

    layout = {"param_dtype": "fp32", **layout}
    max_tokens = layout.pop("max_tokens", None)
    ring, packed = layout.get("ring_attn_size", 1), layout.get("packing_samples", False)
    strategy = DeepspeedStrategy(
        train=TrainConfig(batch_size=BATCH_SIZE, micro_batch_size=1, max_tokens_per_micro_batch=max_tokens),
        ds=DeepspeedConfig(**layout),
        adam=AdamConfig(lr=1e-3, eps=1e-6),
    )
    strategy.setup_distributed()
    torch.manual_seed(5)  # of adapters
    model = RewardModel(
        folder or tiny_classifier(kind),
        param_dtype=strategy.ds.param_dtype,
        packing_samples=packed,
        ring_attn_size=ring,
        ds_config=strategy.get_ds_train_config(),
        **model_settings,
    )
    optimizer = strategy.create_optimizer(model)
    strategy.prepare((model, optimizer, build_schedule(optimizer, "constant")))
    loader = strategy.setup_dataloader(PairsOfSubsets(), 1, shuffle=False)
    return strategy, model, loader


def curve(layout: dict[str, Any], aux_coef: float = 0.0, **model: Any) -> list[tuple[float, float, float]]:
    """(loss, accuracy, gradient norm) of each step."""
    from openrlhf.objectives import AuxLossSettings
    from openrlhf.trainer.step import WindowStep

    strategy, model, loader = prepared(layout, **model)
    model.train()
    objective = RewardObjective(with_margin=True, center_coef=CENTER_COEF)
    step = WindowStep(model, model.trained, strategy, objective, AuxLossSettings(aux_coef, "global"))
    results = [step.run(window, n) for n, window in zip(range(NUM_STEPS), loader.windows(max_epochs=2), strict=False)]
    model.engine.destroy()
    return [(r.loss, r.metrics["accuracy"], r.outcome.grad_norm) for r in results]


def evaluation(layout: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation before any training."""
    from openrlhf.trainer.evaluation import evaluate

    strategy, model, loader = prepared(layout)
    objective = RewardObjective()
    objective.tell_apart(SUBSETS)
    found = evaluate(model, loader.windows(max_epochs=1), strategy, objective)
    model.engine.destroy()
    return found


def head_at_start(folder: str, zero_stage: int) -> torch.Tensor:
    """(H,) of a base model's new head, whole."""
    from openrlhf.engine.parameters import whole_weights

    _, model, _ = prepared({"zero_stage": zero_stage}, folder)
    head = dict(whole_weights(model.model, is_wanted_here=True))["score.weight"]
    model.engine.destroy()
    return head[0]


def trained_and_exported(folder: str, output: str, zero_stage: int, lora_rank: int) -> None:
    """One step from the base model in `folder`; the model goes to `output`."""
    from openrlhf.trainer.step import WindowStep

    strategy, model, loader = prepared({"zero_stage": zero_stage}, folder, lora_rank=lora_rank)
    WindowStep(model, model.trained, strategy, RewardObjective()).run(next(iter(loader.windows(max_epochs=1))), 0)
    strategy.save_model(model, None, output)
    model.engine.destroy()
