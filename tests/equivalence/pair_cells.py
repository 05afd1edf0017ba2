"""Pairs in the matrix: a recipe of DPO or of a reward model, its float64 loop, and its training in a layout.

The loop shares no code with the package: a pair at a time through transformers, then the formula and plain AdamW.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.equivalence.cells import Layout
from tests.equivalence.reference import Curve
from tests.helpers.tiny_models import tiny_model
from tests.helpers.zero3 import gather_all_weights
from tests.objectives.pair_cases import NUM_PAIRS, LongPrompts, Pairs, log_prob_of_answer
from tests.objectives.reward_cases import tiny_classifier

BATCH_SIZE, NUM_STEPS, BETA, LR, EPS = 4, 6, 0.1, 2e-4, 1e-6
SMOOTHING, CENTER_COEF = 0.1, 0.01


@dataclass(frozen=True)
class PairRecipe:
    """What a run on pairs computes, whatever its layout."""

    command: str  # "dpo" or "rm"
    model_kind: str
    has_adapters: bool = False
    loss: str = "sigmoid"  # or of DPO "sigmoid_norm", with label smoothing; of a reward model "margin", with centering
    shares_prompts: bool = False  # prompts of a length worth sharing, computed once for both answers

    def __str__(self) -> str:
        more = [word for word, is_so in (("lora", self.has_adapters), ("shared", self.shares_prompts)) if is_so]
        more += [self.loss] if self.loss != "sigmoid" else []
        return "-".join([self.command, self.model_kind, *more])

    @property
    def pairs(self) -> Pairs:
        return LongPrompts() if self.shares_prompts else Pairs()


# --- the slow loop ---------------------------------------------------------------------------------------------------


def train_pairs(recipe: PairRecipe) -> Curve:
    """In float64, in the rows' own order, epoch after epoch."""
    model, pairs = _plain_model(recipe), recipe.pairs
    reference = [None if recipe.command == "rm" else _reference(model, ids, recipe) for ids in pairs.ids]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    losses, grad_norms = [], []
    for step in range(NUM_STEPS):
        epoch_step = step % -(-NUM_PAIRS // BATCH_SIZE)
        rows = range(epoch_step * BATCH_SIZE, min((epoch_step + 1) * BATCH_SIZE, NUM_PAIRS))
        loss = torch.stack([_loss(model, pairs, row, reference[row], recipe) for row in rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(float(nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        losses.append(loss.item())
    weights = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    return Curve(losses, grad_norms, weights, [])


def _plain_model(recipe: PairRecipe) -> Any:
    if recipe.command == "rm":
        return tiny_classifier(recipe.model_kind, torch.float64)
    model: Any = tiny_model(recipe.model_kind, torch.float64)
    if recipe.has_adapters:
        from peft import LoraConfig, TaskType, get_peft_model

        settings = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(model, settings)
        set_adapters(model)
    return model


def set_adapters(model: nn.Module) -> None:
    """Numbers of their own, so that the adapted model is not its base."""
    draw = torch.Generator().manual_seed(11)
    for _, parameter in sorted((name, one) for name, one in model.named_parameters() if "lora_" in name):
        with torch.no_grad():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))


def _reference(model: Any, ids: list[Tensor], recipe: PairRecipe) -> Tensor:
    """(2,) log-probs by the model before training, or by the base under the adapters."""
    with torch.no_grad(), model.disable_adapter() if recipe.has_adapters else nullcontext():
        return _log_probs(model, ids)


def _log_probs(model: Any, ids: list[Tensor]) -> Tensor:
    return torch.stack([log_prob_of_answer(model, one) for one in ids])


def _loss(model: Any, pairs: Pairs, row: int, reference: Tensor | None, recipe: PairRecipe) -> Tensor:
    ids, is_plain = pairs.ids[row], recipe.loss == "sigmoid"
    if reference is None:
        chosen, rejected = (model.score(model.model(input_ids=one[None])[0][0, -1])[0] for one in ids)
        if is_plain:
            return -nn.functional.logsigmoid(chosen - rejected)
        return (
            -nn.functional.logsigmoid(chosen - rejected - pairs.margins[row]) + CENTER_COEF * (chosen + rejected) ** 2
        )
    ratios = _log_probs(model, ids) - reference
    if is_plain:
        return -nn.functional.logsigmoid(BETA * (ratios[0] - ratios[1]))
    difference = BETA * (ratios[0] / (len(ids[0]) - 3) - ratios[1] / (len(ids[1]) - 3))
    prefers = torch.sigmoid(difference)
    return -(1 - SMOOTHING) * prefers.log() - SMOOTHING * (1 - prefers).log()


# --- in a layout, inside a rank --------------------------------------------------------------------------------------


def train_pairs_in_layout(recipe: PairRecipe, layout: Layout) -> Curve | None:
    """The curve, with the whole trained weights on rank 0; None on other ranks."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.engine.parameters import whole_weights
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep

    strategy = DeepspeedStrategy(
        train=TrainConfig(
            batch_size=BATCH_SIZE,
            micro_batch_size=layout.micro_batch_size,
            max_tokens_per_micro_batch=layout.max_tokens,
        ),
        ds=DeepspeedConfig(
            zero_stage=layout.zero_stage,
            param_dtype="fp32",
            tensor_parallel_size=layout.tensor_parallel,
            packing_samples=layout.packed,
            ring_attn_size=layout.ring,
        ),
        adam=AdamConfig(lr=LR, eps=EPS),
    )
    strategy.setup_distributed()
    model, objective = _model_and_objective(recipe, layout, strategy)
    if layout.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = strategy.create_optimizer(model)
    strategy.prepare((model, optimizer, build_schedule(optimizer, "constant")))
    gather_all_weights(model.engine)
    model.train()
    loader = strategy.setup_dataloader(
        recipe.pairs, layout.micro_batch_size, shuffle=False, shares_prompts=recipe.shares_prompts
    )
    step = WindowStep(model, model.trained, strategy, objective)
    results = [step.run(window, n) for n, window in zip(range(NUM_STEPS), loader.windows(max_epochs=9), strict=False)]
    trained = {name for name, parameter in model.model.named_parameters() if parameter.requires_grad}
    whole = dict(whole_weights(model.model, strategy.is_rank_0()))
    model.engine.destroy()
    if not strategy.is_rank_0():
        return None
    weights = {name: value for name, value in whole.items() if name in trained}
    return Curve([r.loss for r in results], [r.outcome.grad_norm for r in results], weights, [])


def _model_and_objective(recipe: PairRecipe, layout: Layout, strategy: Any) -> tuple[Any, Any]:
    from openrlhf.models import Actor, RewardModel
    from openrlhf.objectives import PreferenceObjective, RewardObjective
    from openrlhf.objectives.pair_losses import PairLossSettings
    from openrlhf.objectives.reference import BaseUnderAdapters, FrozenReference

    attention = "ring" if recipe.shares_prompts else "auto"
    laid_out = dict(attn_implementation=attention, packing_samples=layout.packed, ring_attn_size=layout.ring)
    if recipe.command == "rm":
        of_margins = RewardObjective("sigmoid", True, CENTER_COEF)
        objective = RewardObjective() if recipe.loss == "sigmoid" else of_margins
        return RewardModel(tiny_classifier(recipe.model_kind), **laid_out), objective
    if recipe.has_adapters:
        actor = Actor(tiny_model(recipe.model_kind), lora_rank=4, lora_alpha=16, **laid_out)
        set_adapters(actor.model)
        reference: Any = BaseUnderAdapters()
    else:
        actor = Actor(tiny_model(recipe.model_kind), **laid_out)
        frozen = strategy.prepare(Actor(tiny_model(recipe.model_kind), **laid_out))
        gather_all_weights(frozen.engine)
        reference = FrozenReference(frozen)
    settings = PairLossSettings(BETA, 0.0 if recipe.loss == "sigmoid" else SMOOTHING)
    return actor, PreferenceObjective({recipe.loss: 1.0}, settings, reference=reference)
