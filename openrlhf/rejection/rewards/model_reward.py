"""A reward model's folder as a reward."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from openrlhf.config import ScoreSettings
from openrlhf.config.disk import local_path
from openrlhf.rejection.model_fingerprint import model_fingerprint
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.reward import Answered, Reward, RewardVerdict


class ModelReward(Reward):
    """What a model gives to the answers, packed by tokens; one call computes at a time."""

    rows_a_call = 1024

    def __init__(self, folder: str, settings: ScoreSettings):
        self.name = local_path(folder).resolve().name
        self.content = model_fingerprint(folder)
        self._folder, self._settings = folder, settings
        self._turn = threading.Lock()

    def start(self) -> None:
        """Raises UserError where the folder holds no reward model, or one of fewer positions than are asked for."""
        from openrlhf.rejection.reward_scorer import RewardScorer  # loads torch: no other reward needs it

        settings = self._settings
        self._scorer = RewardScorer(
            self._folder, max_tokens=settings.max_tokens_per_micro_batch, max_len=settings.max_len
        )

    def close(self) -> None:
        from openrlhf.engine.devices import give_back_memory

        if hasattr(self, "_scorer"):
            del self._scorer
            give_back_memory()

    def judge(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        with self._turn:
            return self._scorer.judged([Answered(row["prompt"], row["response"], row.get("tools")) for row in rows])
