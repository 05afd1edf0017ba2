"""What every cell is held to: plain transformers, eager attention, float64, one unpadded sample at a time.

It imports nothing of the package. The rows are tokenized, of 20 to 112 tokens, with holes in the targets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.zoo.shrink import ORDINARY_TOKENS

NUM_ROWS, BATCH_SIZE, NUM_STEPS = 10, 5, 3
ADAMW = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
AUX_LOSS_COEF = 0.5

Row = tuple[Tensor, Tensor]  # token ids; is_target[t] says whether token t itself is trained


@dataclass(frozen=True)
class Curve:
    """What a few optimizer steps showed."""

    losses: list[float]
    grad_norms: list[float]
    aux_losses: list[float]  # empty where there is none

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, [*self.losses, *self.grad_norms, *self.aux_losses]))


def rows() -> list[Row]:
    draw = torch.Generator().manual_seed(7)
    made = []
    for length in (97, 20, 64, 33, 112, 48, 25, 80, 21, 57):
        first, last = ORDINARY_TOKENS
        ids = first + torch.randperm(last - first, generator=draw)[:length]  # no token twice, lest a top-k meets a tie
        is_target = torch.rand(length, generator=draw) < 0.6
        is_target[0], is_target[-1] = False, True
        made.append((ids, is_target))
    assert len(made) == NUM_ROWS
    return made


def load(folder: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.to(dtype)


def train(model: Any, aux_loss_coef: float = 0.0) -> Curve:
    """A few AdamW steps. With a coefficient, the model's own load-balancing loss counts, sample by sample."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **ADAMW)
    curve = Curve([], [], [])
    for step in range(NUM_STEPS):
        start = step * BATCH_SIZE % NUM_ROWS
        optimizer.zero_grad()
        loss, aux_loss = _backward(model, rows()[start : start + BATCH_SIZE], aux_loss_coef)
        curve.losses.append(loss)
        curve.aux_losses.extend([aux_loss] if aux_loss_coef else [])
        curve.grad_norms.append(float(sum((p.grad**2).sum() for p in trained if p.grad is not None)) ** 0.5)
        optimizer.step()
    return curve


def _backward(model: Any, window: list[Row], aux_loss_coef: float) -> tuple[float, float]:
    """The loss of a window, and its load-balancing loss; gradients are in the parameters."""
    num_targets = sum(int(is_target.sum()) for _, is_target in window)
    num_tokens = sum(len(ids) for ids, _ in window)
    loss = aux_loss = 0.0
    for ids, is_target in window:
        _forget_long_rows(model)
        outputs = _outputs(model, ids, bool(aux_loss_coef))
        log_probs = outputs.logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        share = -log_probs[is_target[1:]].sum() / num_targets
        loss += share.item()
        if aux_loss_coef:
            aux_share = outputs.aux_loss * len(ids) / num_tokens
            aux_loss += aux_share.item()
            share = share + aux_loss_coef * aux_share
        share.backward()
    return loss, aux_loss


@torch.no_grad()
def has_aux_loss(model: Any) -> bool:
    """Whether transformers computes a load-balancing loss for this model."""
    try:
        return isinstance(getattr(_outputs(model, rows()[0][0], True), "aux_loss", None), Tensor)
    except (TypeError, IndexError):  # it does not know the argument; it has routers in no layer
        return False


def _outputs(model: Any, ids: Tensor, with_router: bool) -> Any:
    return model(input_ids=ids[None], use_cache=False, **({"output_router_logits": True} if with_router else {}))


@torch.no_grad()
def _forget_long_rows(model: Any) -> None:
    """Dynamic rotary frequencies are those of the longest row so far, until a short one comes."""
    _outputs(model, torch.tensor(ORDINARY_TOKENS[:1]), False)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """(tokens, vocabulary) of all rows."""
    return torch.cat([_outputs(model.eval(), ids, False).logits[0] for ids, _ in rows()])
