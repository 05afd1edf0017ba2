"""The loss of supervised fine-tuning, from the log-probs of target tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weighted_nll_sum(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Sum of weight * -log p: log_probs (N,), weights (N,) → a scalar, float32 at least; 0 for N = 0.

    The caller divides it by the step window's divisor: a sum adds up over micro-batches and ranks, a mean does not.
    """
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    return -(log_probs * weights).sum()


class SFTLoss(nn.Module):
    """The masked mean of -log p over one batch."""

    def forward(self, per_token_logps: Tensor, loss_mask: Tensor) -> Tensor:
        """Args: both of one shape, such as (B, S-1). A mask without any target gives 0, with gradients of 0.

        What stands where the mask is 0 counts for nothing, be it infinite or not a number.
        """
        log_probs = per_token_logps.masked_fill(loss_mask == 0, 0.0)
        return weighted_nll_sum(log_probs, loss_mask) / loss_mask.sum().clamp(min=1)
