"""The slow, obvious loop that every layout is held to: plain torch, float64, one sample at a time.

It shares no code with the package: no shift, no mask, no packing, no divisor, no optimizer of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What a run computes, whatever its layout."""

    model_kind: str
    num_rows: int = 22
    batch_size: int = 8
    num_steps: int = 20
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.1
    max_norm: float = 1.0
    warmup_ratio: float = 0.1
    min_lr_ratio: float = 0.1
    loss_reduction: str = "token"
    loss: str = "nll"  # a key of TOKEN_LOSSES
    has_weights: bool = False  # rows and targets count differently
    aux_loss_coef: float = 0.0
    aux_loss_over: str = "window"  # the tokens that the load-balancing loss is taken over: "window" or "sample"
    has_bf16_weights: bool = False  # passes see the optimizer's weights rounded to bf16; sums are exact all the same


TOKEN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "nll": lambda log_probs: -log_probs,
    "dft": lambda log_probs: -log_probs.exp().detach() * log_probs,
    "examples.own_objective:FocalObjective": lambda log_probs: -((1 - log_probs.exp()) ** 2) * log_probs,
}


@dataclass(frozen=True)
class Curve:
    """What a run showed."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]
    aux_losses: list[float]  # empty where there is none


def rows(recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """(token ids, is_target) of unlike lengths; is_target[t] says whether token t itself is trained."""
    draw = torch.Generator().manual_seed(5)
    made = []
    for _ in range(recipe.num_rows):
        length = int(torch.randint(3, 41, (1,), generator=draw))
        ids = torch.randint(3, 500, (length,), generator=draw)
        is_target = torch.rand(length, generator=draw) < 0.6
        is_target[0] = False
        is_target[-1] = True
        made.append((ids, is_target))
    return made


def weights(recipe: Recipe) -> list[tuple[float, Tensor]]:
    """(row weight, weight of each token as a target), for each row; all 1 where the recipe has none."""
    draw = torch.Generator().manual_seed(6)
    made = []
    for ids, _ in rows(recipe):
        row = float(torch.rand((), generator=draw)) + 0.5 if recipe.has_weights else 1.0
        turn = 0.5 + (torch.arange(len(ids)) % 2) if recipe.has_weights else torch.ones(len(ids))
        made.append((row, turn.double()))
    return made


def train(model: nn.Module, recipe: Recipe) -> Curve:
    """Trains `model` (float64) on the rows in their own order, epoch after epoch."""
    samples = list(zip(rows(recipe), weights(recipe), strict=True))
    token_loss = TOKEN_LOSSES[recipe.loss]
    masters = {p: p.detach().clone() for p in model.parameters()}
    decayed = [p for p in masters if p.ndim >= 2 and p is not model.get_input_embeddings().weight]
    others = [p for p in masters if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [
            dict(params=[masters[p] for p in decayed], weight_decay=recipe.weight_decay),
            dict(params=[masters[p] for p in others], weight_decay=0.0),
        ],
        lr=recipe.lr, betas=recipe.betas, eps=recipe.eps,
    )  # fmt: skip
    routers = _Routers(model)
    losses, grad_norms, aux_losses = [], [], []
    for step, window in enumerate(_windows(samples, recipe)):
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        objective = torch.zeros((), dtype=torch.float64)
        routed = []
        divisor = 0.0
        for (ids, is_target), (row_weight, turn_weights) in window:
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
            routed.append(routers.take())
            log_probs = logits.log_softmax(-1)
            losses_of_row = token_loss(
                torch.stack([log_probs[t - 1, ids[t]] for t in range(1, len(ids)) if is_target[t]])
            )
            total = total + losses_of_row.sum()
            counts = turn_weights[is_target]
            if recipe.loss_reduction == "token":
                objective = objective + row_weight * (counts * losses_of_row).sum()
                divisor += row_weight * float(counts.sum())
            else:
                objective = objective + row_weight * (counts * losses_of_row).sum() / counts.sum()
                divisor += row_weight
        num_targets = sum(int(is_target.sum()) for (_, is_target), _ in window)
        objective = objective / divisor
        if recipe.aux_loss_coef:
            aux_loss = _aux_loss(routed, model.config.num_experts_per_tok, recipe.aux_loss_over)
            aux_losses.append(aux_loss.item())
            objective = objective + recipe.aux_loss_coef * aux_loss
        objective.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
        clip = min(1.0, recipe.max_norm / norm)
        for parameter, master in masters.items():
            master.grad = parameter.grad * clip
        for group in optimizer.param_groups:
            group["lr"] = _lr(step, recipe)
        optimizer.step()
        for parameter, master in masters.items():
            parameter.data.copy_(master.to(torch.bfloat16) if recipe.has_bf16_weights else master)
        losses.append(total.item() / num_targets)
        grad_norms.append(norm.item())
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Curve(losses, grad_norms, trained, aux_losses)


class _Routers:
    """Notes what every router of the model scores, token by token, expert by expert."""

    def __init__(self, model: nn.Module):
        self._noted: list[Tensor] = []
        for module in model.modules():
            if hasattr(module, "experts"):
                module.gate.register_forward_hook(self._note)

    def _note(self, router: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        self._noted.append(hidden @ router.weight.T)

    def take(self) -> list[Tensor]:
        """(tokens, experts) of each layer, since the last call."""
        noted, self._noted = self._noted, []
        return noted


def _aux_loss(routed: list[list[Tensor]], experts_per_token: int, over: str) -> Tensor:
    """Switch Transformers' loss over the tokens of all layers; `routed` by sample, by layer: (tokens, experts)."""
    if over == "window":
        return _balance(torch.cat([layer for layers in routed for layer in layers]), experts_per_token)
    num_tokens = [len(layers[0]) for layers in routed]
    by_sample = [_balance(torch.cat(layers), experts_per_token) for layers in routed]
    return sum(n * loss for n, loss in zip(num_tokens, by_sample, strict=True)) / sum(num_tokens)


def _balance(scores: Tensor, experts_per_token: int) -> Tensor:
    """scores (tokens, experts): experts * sum over experts of share of tokens * mean probability."""
    num_tokens, num_experts = scores.shape
    probabilities = scores.softmax(-1)
    share = torch.zeros(num_experts, dtype=scores.dtype)
    for token in probabilities.detach():
        for expert in token.argsort(descending=True)[:experts_per_token]:
            share[expert] += 1 / num_tokens
    return num_experts * (share * probabilities.mean(0)).sum()


def _windows(samples, recipe):
    done = 0
    while True:
        for start in range(0, len(samples), recipe.batch_size):
            if done == recipe.num_steps:
                return
            done += 1
            yield samples[start : start + recipe.batch_size]


def _lr(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to min_lr_ratio."""
    steps_per_epoch = math.ceil(recipe.num_rows / recipe.batch_size)
    horizon = math.ceil(recipe.num_steps / steps_per_epoch) * steps_per_epoch
    warmup = math.ceil(horizon * recipe.warmup_ratio)
    if step < warmup:
        return recipe.lr * step / warmup
    share = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (horizon - warmup)))
    return recipe.lr * (recipe.min_lr_ratio + (1 - recipe.min_lr_ratio) * share)
