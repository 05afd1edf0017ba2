"""The output layer of a causal language model, which can also answer with log-probs instead of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.models.head.logit_transform import LogitTransform
from openrlhf.models.head.target_log_probs import target_log_probs, weighted_log_probs


class LogProbHead(nn.Linear):
    """Takes the place of a plain linear head, sharing its parameters (tied ones stay tied).

    It is called as a module in both modes, so that whatever hangs on modules (ZeRO-3 gathers a module's weights before
    its forward and backward pass) works as it does with the head that it replaces.
    """

    def __init__(self, head: nn.Linear, transform: LogitTransform):
        nn.Module.__init__(self)  # nn.Linear's own would allocate another weight
        self.in_features = head.in_features
        self.out_features = head.out_features
        self.weight = head.weight
        self.bias = head.bias
        self.transform = transform

    def forward(self, hidden: Tensor, target_ids: Tensor | None = None, target_weights: Tensor | None = None) -> Any:
        """Logits (..., V) of hidden states (..., H); or, given target ids (N,), log-probs (N,) for hidden (N, H).

        Given weights (N,) too: log-probs to look at and their weighted sum, which alone may have a gradient.
        """
        if target_ids is None:
            return super().forward(hidden)
        if target_weights is None:
            return target_log_probs(hidden, self.weight, self.bias, target_ids, self.transform)
        if self.weight.dtype == torch.float16:  # see weighted_log_probs
            log_probs = target_log_probs(hidden, self.weight, self.bias, target_ids, self.transform)
            return log_probs, (log_probs * target_weights).sum()
        return weighted_log_probs(hidden, self.weight, self.bias, target_ids, target_weights, self.transform)
