"""An objective whose loss is no number for rows that hold one of the tokens in $BAD_TOKENS."""

from __future__ import annotations

import math
import os

import torch

from openrlhf.batching import MicroBatch
from openrlhf.objectives import Scorer, SFTObjective, Share


class NanOfBadTokens(SFTObjective):
    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        share = super().loss(scorer, batch, divisor)
        bad = torch.tensor([int(one) for one in os.environ["BAD_TOKENS"].split()], device=batch.input_ids.device)
        if not torch.isin(batch.input_ids, bad).any():
            return share
        return Share(
            share.loss * math.nan, {name: (total * math.nan, count) for name, (total, count) in share.sums.items()}
        )
