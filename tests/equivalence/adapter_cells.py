"""Adapters and frozen weights in the matrix: plain PEFT in a float64 loop, and their training in a layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tests.equivalence.cells import Layout, RowsInMemory
from tests.equivalence.reference import Curve, Recipe, rows
from tests.helpers.tiny_models import tiny_model
from tests.helpers.zero3 import gather_all_weights

NUM_STEPS, BATCH_SIZE, LR, EPS = 5, 8, 2e-4, 1e-6
BREAK = 2  # the step after which a run is broken off


@dataclass(frozen=True)
class AdapterRecipe:
    """What is trained.

    Attributes:
        lora: settings of our LoraConfig beside the rank; the same by PEFT's names in `peft`.
        trainable: a pattern of names, in place of adapters.
    """

    name: str
    model_kind: str
    lora: dict[str, Any] = field(default_factory=dict, hash=False)
    peft: dict[str, Any] = field(default_factory=dict, hash=False)
    trainable: str | None = None


def set_trained(model: nn.Module) -> None:
    """Numbers of their own in all that is trained, so that an adapted model is not its base."""
    draw = torch.Generator().manual_seed(11)
    trained = sorted((name, one) for name, one in model.named_parameters() if one.requires_grad)
    for name, parameter in trained:
        noise = 0.05 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        with torch.no_grad():
            parameter.copy_(noise if is_drawn(name) else parameter + noise)


def is_drawn(name: str) -> bool:
    """Whether PEFT begins the weight by chance."""
    return "lora_" in name and "magnitude" not in name


def train_plainly(recipe: AdapterRecipe) -> Curve:
    """By PEFT and transformers alone, in float64, a sample at a time."""
    from peft import LoraConfig, TaskType, get_peft_model

    model: Any = tiny_model(recipe.model_kind, dtype=torch.float64)
    if recipe.trainable is None:
        settings = {"target_modules": "all-linear", "lora_alpha": 16} | recipe.peft
        model = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, **settings))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(re.search(recipe.trainable, name)))
    set_trained(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    samples, losses, grad_norms = rows(Recipe(recipe.model_kind)), [], []
    for step in range(NUM_STEPS):
        start = step * BATCH_SIZE % (-(-len(samples) // BATCH_SIZE) * BATCH_SIZE)
        window = samples[start : start + BATCH_SIZE]
        loss = -torch.cat([_log_probs(model, *sample) for sample in window]).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norms.append(float(nn.utils.clip_grad_norm_(trained.values(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    return Curve(losses, grad_norms, {name: value.detach().clone() for name, value in trained.items()}, [])


def _log_probs(model: Any, ids: Tensor, is_target: Tensor) -> Tensor:
    log_probs = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return log_probs.gather(1, ids[1:, None])[:, 0][is_target[1:]]


def train_in_layout(recipe: AdapterRecipe, layout: Layout) -> Curve | None:
    """Inside a rank: the curve, with the whole trained weights on rank 0; None on other ranks."""
    strategy, actor, steps = _training(recipe, layout)
    return _curve(strategy, actor, list(islice(steps, NUM_STEPS)))


def resume_in_layout(recipe: AdapterRecipe, layout: Layout, folder: str) -> Curve | None:
    """The same, broken off after step `BREAK`: another model goes on from the checkpoint."""
    strategy, actor, steps = _training(recipe, layout)
    results = list(islice(steps, BREAK))
    strategy.save_ckpt(actor, folder, f"global_step{BREAK}")
    actor.engine.destroy()
    strategy, actor, steps = _training(recipe, layout, first_step=BREAK)
    strategy.load_ckpt(actor, folder)
    return _curve(strategy, actor, results + list(islice(steps, NUM_STEPS - BREAK)))


def _training(recipe: AdapterRecipe, layout: Layout, first_step: int = 0) -> tuple[Any, Any, Iterator[Any]]:
    """The strategy, the model, and the results of the steps, which are computed as they are asked for."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, LoraConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.models.lora import freeze_all_but
    from openrlhf.objectives import objective_named
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep

    sizes = dict(micro_batch_size=layout.micro_batch_size, max_tokens_per_micro_batch=layout.max_tokens)
    laid_out = dict(packing_samples=layout.packed, ring_attn_size=layout.ring)
    strategy = DeepspeedStrategy(
        train=TrainConfig(batch_size=BATCH_SIZE, **sizes),
        ds=DeepspeedConfig(
            zero_stage=layout.zero_stage,
            param_dtype="fp32",
            tensor_parallel_size=layout.tensor_parallel,
            **laid_out,
        ),
        adam=AdamConfig(lr=LR, eps=EPS),
    )
    strategy.setup_distributed()
    lora = LoraConfig() if recipe.trainable else LoraConfig(rank=4, **recipe.lora)
    actor = Actor(tiny_model(recipe.model_kind), lora=lora, **laid_out)
    if recipe.trainable:
        freeze_all_but(actor.model, [recipe.trainable])
    set_trained(actor.model)
    if layout.checkpointing:
        actor.gradient_checkpointing_enable()
    loader = strategy.setup_dataloader(RowsInMemory(Recipe(recipe.model_kind)), layout.micro_batch_size, shuffle=False)
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    gather_all_weights(actor.engine)
    actor.train()
    step = WindowStep(actor, actor.trained, strategy, objective_named("nll"))
    windows = enumerate(loader.windows(max_epochs=9))
    return strategy, actor, (step.run(window, n) for n, window in islice(windows, first_step, None))


def _curve(strategy: Any, actor: Any, results: list[Any]) -> Curve | None:
    from openrlhf.engine.parameters import whole_weights

    trained = {name for name, parameter in actor.model.named_parameters() if parameter.requires_grad}
    whole = dict(whole_weights(actor.model, strategy.is_rank_0()))
    actor.engine.destroy()
    if not strategy.is_rank_0():
        return None
    weights = {name: value for name, value in whole.items() if name in trained}
    return Curve([r.loss for r in results], [r.outcome.grad_norm for r in results], weights, [])
