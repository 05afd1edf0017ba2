"""An objective for which rank 1, alone, runs out of memory once, in the middle of a step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from openrlhf.batching import MicroBatch
from openrlhf.objectives import Scorer, SFTObjective, Share
from openrlhf.trainer import shortage

NUM_PASSES_BEFORE = 4
shortage.SECONDS_TO_FAIL_TOGETHER = 2.0  # nobody else will fail


class ShortOnce(SFTObjective):
    def __init__(self) -> None:
        self._num_passes = 0

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        share = super().loss(scorer, batch, divisor)
        self._num_passes += 1
        has_failed = Path(sys.argv[sys.argv.index("--ckpt.output_dir") + 1]) / "has_failed"
        if os.environ["RANK"] == "1" and self._num_passes > NUM_PASSES_BEFORE and not has_failed.exists():
            has_failed.touch()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return share
