"""An objective whose loss is no number for rows that hold one of the tokens in `bad_tokens.txt` beside the data."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from openrlhf.batching import MicroBatch
from openrlhf.objectives import Scorer, SFTObjective, Share

BAD_TOKENS = "bad_tokens.txt"


class NanOfBadTokens(SFTObjective):
    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        share = super().loss(scorer, batch, divisor)
        rows = Path(sys.argv[sys.argv.index("--data.dataset") + 1])
        bad = torch.tensor([int(token) for token in rows.with_name(BAD_TOKENS).read_text().split()])
        if not torch.isin(batch.input_ids.cpu(), bad).any():
            return share
        return Share(
            share.loss * math.nan, {name: (total * math.nan, count) for name, (total, count) in share.sums.items()}
        )
