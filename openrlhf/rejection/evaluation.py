"""The share of held-out answers that pass, and how it differs between two models, with intervals."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.rejection.records import StoredRows
from openrlhf.rejection.statistics import mean_interval

PassRates = dict[str, float]  # by prompt


def pass_rates(scores: Path, pass_reward: float) -> PassRates:
    """For each prompt the share of its judged answers with a reward of at least `pass_reward`."""
    passes: defaultdict[str, list[bool]] = defaultdict(list)
    for row in StoredRows(scores):
        if row["reward"] is not None:
            passes[row["prompt_id"]].append(row["reward"] >= pass_reward)
    return {prompt: sum(passed) / len(passed) for prompt, passed in passes.items()}


def measured(rates: PassRates) -> dict[str, Any]:
    """The mean over prompts, with the interval of a bootstrap over prompts."""
    values = np.array(list(rates.values()))
    return {"pass_rate": float(values.mean()), "interval": list(mean_interval(values)), "num_prompts": len(values)}


def compared(rates: PassRates, others: PassRates) -> dict[str, Any]:
    """By how much the first model passes more often, over the prompts that both have answered, each against itself."""
    values = np.array([rate - others[prompt] for prompt, rate in rates.items() if prompt in others])
    if not len(values):
        return {"difference": None, "interval": None, "num_prompts": 0}
    return {"difference": float(values.mean()), "interval": list(mean_interval(values)), "num_prompts": len(values)}
