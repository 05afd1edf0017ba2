"""A loss to call by oneself: the mean of -log p over the tokens of a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SFTLoss(nn.Module):
    """The masked mean of -log p over one batch: over its tokens, or (`token_level_loss` False) over its rows' means.

    The trainer does not call it: the SFT objective computes the same over a step window, whose sum of -log p on all
    ranks and micro-batches is divided by the window's number of target tokens. A mean of the micro-batches' means would
    weigh tokens of micro-batches with few targets too much.
    """

    def __init__(self, token_level_loss: bool = True):
        super().__init__()
        self.token_level_loss = token_level_loss

    def forward(self, per_token_logps: Tensor, loss_mask: Tensor) -> Tensor:
        """Args: both of one shape, such as (B, S-1). An entry of the mask is its token's weight: what it counts for in
            the mean. A mask without any target gives 0, with gradients of 0.

        A log-prob where the mask is 0 counts for nothing, be it infinite or not a number.

        Returns:
            A scalar, float32 at least.
        """
        log_probs = per_token_logps.masked_fill(loss_mask == 0, 0.0)
        log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
        over = None if self.token_level_loss else -1
        weight = loss_mask.sum(over)
        return -((log_probs * loss_mask).sum(over) / torch.where(weight > 0, weight, 1)).mean()
