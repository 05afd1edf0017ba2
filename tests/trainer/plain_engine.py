"""As much of DeepSpeed's engine as a step needs, on plain torch and one rank: its gradients can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from openrlhf.batching import FixedSize, MicroBatchFormat, StepSchedule, StepWindowLoader, TokenBudget
from openrlhf.engine.step_guard import StepGuard
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.models import Actor
from openrlhf.objectives import AuxLossSettings, Objective, SFTObjective
from openrlhf.parallel.groups import alone
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.step import StepResult, WindowStep
from tests.helpers.tiny_models import tiny_model

Row = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class PlainEngine:
    """Gradients add up until somebody clears them."""

    def __init__(self, module: torch.nn.Module, lr: float = 0.0):
        self.module = module
        self.optimizer = self.basic_optimizer = torch.optim.SGD(module.parameters(), lr)

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None:
        pass

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


@dataclass(frozen=True)
class Recipe:
    """How one window is computed."""

    kind: str = "llama"
    dtype: torch.dtype = torch.float64
    layout: FixedSize | TokenBudget = FixedSize(2)
    packed: bool = False
    loss_reduction: str = "token"
    aux_loss: AuxLossSettings = AuxLossSettings()
    objective: type[Objective] = SFTObjective
    config: tuple[tuple[str, Any], ...] = ()


def make_rows(lengths: tuple[int, ...] = (9, 3, 14, 5), num_prompt: int = 2) -> list[Row]:
    """Rows of the contract: everything behind the first `num_prompt` tokens is a target."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 500, (length,), generator=draw)
        mask = torch.ones_like(ids)
        mask[: num_prompt - 1] = 0
        mask[-1] = 0
        rows.append((ids, torch.ones_like(ids), mask))
    return rows


def make_loader(rows: list[Row], recipe: Recipe, batch_size: int | None = None) -> StepWindowLoader:
    schedule = StepSchedule(len(rows), batch_size or len(rows), seed=0, shuffle=False)
    batch_format = MicroBatchFormat(recipe.packed, recipe.loss_reduction)
    return StepWindowLoader(rows, schedule, recipe.layout, batch_format, alone())


def trained_on_plain_torch(actor: Actor, lr: float = 0.0) -> TrainedModel:
    """What `strategy.prepare` would make of the actor."""
    engine = PlainEngine(actor.trainable_module, lr)
    actor.attach_engine(engine)
    schedule = torch.optim.lr_scheduler.ConstantLR(engine.optimizer, factor=1.0)
    return TrainedModel(engine, schedule, StepGuard())


def run_window(
    rows: list[Row], recipe: Recipe = Recipe(), optimizer_step: int = 0
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """One step over all rows as one window: its result, and the gradient of every parameter."""
    model = tiny_model(recipe.kind, recipe.dtype, **dict(recipe.config))
    actor = Actor(model, "per_sample" if recipe.packed else "auto", packing_samples=recipe.packed).train()
    trained = trained_on_plain_torch(actor)
    (window,) = make_loader(rows, recipe).windows(max_epochs=1)
    step = WindowStep(actor, trained, DeepspeedStrategy(), recipe.objective(), recipe.aux_loss)
    result = step.run(window, optimizer_step)
    return result, {name: parameter.grad for name, parameter in actor.model.named_parameters()}
