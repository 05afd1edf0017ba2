"""One cell of the matrix: the recipe, trained by the package in one layout; runs inside a rank."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.equivalence.reference import Curve, Recipe, rows, weights
from tests.helpers.tiny_models import tiny_model
from tests.helpers.zero3 import gather_all_weights

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Layout:
    """How a recipe is laid out."""

    zero_stage: int = 0
    micro_batch_size: int = 2
    max_tokens: int | None = None
    packed: bool = False
    ring: int = 1
    checkpointing: bool = False
    offload: bool = False
    compiled: bool = False
    dtype: str = "fp32"
    tensor_parallel: int = 1
    aux_loss_scope: str = "micro_batch"

    def __str__(self) -> str:
        parts = [f"zero{self.zero_stage}", f"mb{self.micro_batch_size}"]
        parts += [f"budget{self.max_tokens}"] if self.max_tokens else []
        parts += ["packed"] if self.packed else ["padded"]
        parts += [f"ring{self.ring}"] if self.ring > 1 else []
        parts += [f"tp{self.tensor_parallel}"] if self.tensor_parallel > 1 else []
        parts += ["checkpointing"] if self.checkpointing else []
        parts += ["compiled"] if self.compiled else []
        parts += ["offload"] if self.offload else []
        parts += ["aux_global"] if self.aux_loss_scope == "global" else []
        return "-".join([*parts, self.dtype])


class RowsInMemory:
    """A data set of the contract's rows: `loss_mask[t]` judges token t+1."""

    def __init__(self, recipe: Recipe):
        self._rows = rows(recipe)
        self._weights = weights(recipe)
        self._has_weights = recipe.has_weights

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int):
        ids, is_target = self._rows[index]
        mask = torch.cat([is_target[1:], is_target.new_zeros(1)]).long()
        if self._has_weights:
            row_weight, turn_weights = self._weights[index]
            mask = (mask * torch.cat([turn_weights[1:], turn_weights.new_zeros(1)]) * row_weight).float()
        return ids, torch.ones_like(ids), mask

    def row_weight(self, index: int) -> float:
        return self._weights[index][0]


@dataclass
class Run:
    """A recipe in a layout, prepared and not yet begun."""

    strategy: Any
    actor: Any
    windows: Callable[[int], Iterator[Any]]  # from that many consumed samples on
    step: Any  # WindowStep
    loader: Any = None

    def train(self, first_step: int, last_step: int, consumed_samples: int = 0) -> list[Any]:
        """The results of steps `[first_step, last_step)`."""
        windows = self.windows(consumed_samples)
        numbered = zip(range(first_step, last_step), windows, strict=False)
        return [self.step.run(window, number) for number, window in numbered]


def train_in_layout(recipe: Recipe, layout: Layout) -> Curve | None:
    """The curve, with the whole weights on rank 0; None on other ranks."""
    from openrlhf.engine.parameters import whole_weights

    run = prepare_run(recipe, layout)
    results = run.train(0, recipe.num_steps)
    weights = dict(whole_weights(run.actor.model, run.strategy.is_rank_0()))
    run.actor.engine.destroy()
    if not run.strategy.is_rank_0():
        return None
    aux_losses = [r.metrics["aux_loss"] for r in results if "aux_loss" in r.metrics]
    return Curve([r.loss for r in results], [r.outcome.grad_norm for r in results], weights, aux_losses)


def prepare_run(recipe: Recipe, layout: Layout) -> Run:
    """Everything up to the first step, on this rank."""
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.objectives import AuxLossSettings, objective_named
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep

    strategy = DeepspeedStrategy(
        max_norm=recipe.max_norm,
        train=TrainConfig(
            batch_size=recipe.batch_size,
            micro_batch_size=layout.micro_batch_size,
            max_tokens_per_micro_batch=layout.max_tokens,
            loss_reduction=recipe.loss_reduction,
        ),
        ds=DeepspeedConfig(
            zero_stage=layout.zero_stage,
            param_dtype=layout.dtype,
            adam_offload=layout.offload,
            tensor_parallel_size=layout.tensor_parallel,
            packing_samples=layout.packed,
            ring_attn_size=layout.ring,
        ),
        adam=AdamConfig(recipe.lr, recipe.betas, recipe.eps, recipe.weight_decay),
    )
    strategy.setup_distributed()
    model = tiny_model(recipe.model_kind, dtype=_DTYPES[layout.dtype])
    actor = Actor(model, packing_samples=layout.packed, ring_attn_size=layout.ring)
    if layout.checkpointing:
        actor.gradient_checkpointing_enable()
    if layout.compiled:
        actor.compile_layers()
    if layout.zero_stage < 3 and layout.tensor_parallel == layout.ring == 1:
        actor.leave_out_unread()
    dataset = RowsInMemory(recipe)
    loader = strategy.setup_dataloader(dataset, layout.micro_batch_size, shuffle=False)
    num_epochs = math.ceil(recipe.num_steps / loader.schedule.steps_per_epoch)
    optimizer = strategy.create_optimizer(actor)
    horizon = num_epochs * loader.schedule.steps_per_epoch
    schedule = build_schedule(optimizer, "cosine_with_min_lr", horizon, recipe.warmup_ratio, recipe.min_lr_ratio)
    strategy.prepare((actor, optimizer, schedule))
    gather_all_weights(actor.engine)
    actor.train()
    aux_loss = AuxLossSettings(recipe.aux_loss_coef, layout.aux_loss_scope)
    step = WindowStep(actor, actor.trained, strategy, objective_named(recipe.loss), aux_loss)
    windows = functools.partial(loader.windows, max_epochs=num_epochs)
    return Run(strategy, actor, windows, step, loader)
