"""Numbers about scored answers: pass@k with its interval, rewards, lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from openrlhf.rejection.candidates import Candidates

NUM_RESAMPLES, CONFIDENCE = 2000, 0.95
PERCENTILES = {"median": 50, "percentile_95": 95}


def passes_by_prompt(
    prompt: np.ndarray, reward: np.ndarray, least: float, num_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """(prompts,) the number of judged answers, and of those with a reward of at least `least`; nan is not judged."""
    judged = ~np.isnan(reward)
    num_judged = np.bincount(prompt[judged], minlength=num_prompts)
    return num_judged, np.bincount(prompt[judged & (reward >= least)], minlength=num_prompts)


def pass_at_k(num_answers: np.ndarray, num_passed: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate for each prompt, 1 - C(n-c, k) / C(n, k); (prompts,) float64.

    It is the chance that of k of its answers, drawn without putting back, at least one passes. n >= k is needed.
    """
    chance_of_none = np.ones(len(num_answers))
    for drawn in range(k):  # a product of small factors: the binomials themselves would overflow
        chance_of_none *= np.clip(num_answers - num_passed - drawn, 0, None) / (num_answers - drawn)
    return 1 - chance_of_none


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean by the bootstrap over values: percentiles of the means of resamples.

    Resamples are drawn as counts of the distinct values, so their cost does not grow with the number of values.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), NUM_RESAMPLES)
    low, high = np.quantile(drawn @ distinct / len(values), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def pass_statistics(num_answers: np.ndarray, num_passed: np.ndarray) -> dict[str, Any]:
    """`pass@1`, `pass@2`, `pass@4`, … and their intervals, each over the prompts that have that many judged answers.

    A k is left out where fewer than half of the judged prompts have so many: the others would not be like them.
    """
    found: dict[str, Any] = {}
    intervals = {}
    most = int(num_answers.max(initial=0))
    for k in sorted({1 << power for power in range(most.bit_length())} | {most} - {0}):
        enough = num_answers >= k
        if 2 * enough.sum() < (num_answers > 0).sum():
            break
        values = pass_at_k(num_answers[enough], num_passed[enough], k)
        found[f"pass@{k}"] = float(values.mean())
        intervals[f"pass@{k}"] = [*mean_interval(values)]
    return {**found, "intervals": intervals}


def answer_statistics(candidates: Candidates, least: float, is_kept: np.ndarray) -> dict[str, Any]:
    """What scores and selections both tell of their answers.

    Args:
        least: reward from which an answer passes.
        is_kept: (N,) bool.
    """
    reward, length = candidates.reward, candidates.length
    return {
        "num_responses": len(candidates),
        "num_prompts": len(candidates.prompt_ids),
        **pass_statistics(*passes_by_prompt(candidates.prompt, reward, least, len(candidates.prompt_ids))),
        "pass_reward": least,
        "mean_reward": mean_reward(reward),
        "length_unit": candidates.length_unit,
        "lengths": {"kept": length_statistics(length[is_kept]), "left_out": length_statistics(length[~is_kept])},
    }


def mean_reward(rewards: np.ndarray) -> float | None:
    """Of those that are judged; None where none is."""
    judged = rewards[~np.isnan(rewards)]
    return float(judged.mean()) if len(judged) else None


def length_statistics(lengths: np.ndarray) -> dict[str, Any]:
    """Number, mean and percentiles; without answers the number alone."""
    if not len(lengths):
        return {"num_responses": 0}
    percentiles = {name: float(np.percentile(lengths, percent)) for name, percent in PERCENTILES.items()}
    return {"num_responses": len(lengths), "mean": float(lengths.mean()), **percentiles, "max": int(lengths.max())}
