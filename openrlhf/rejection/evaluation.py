"""The share of held-out answers that pass, and how it differs between two models, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf.rejection.records import StoredRows, read_stats
from openrlhf.rejection.statistics import mean_interval

PassRates = dict[str, float]  # by prompt


def pass_rates(scores: Path, pass_reward: float) -> PassRates:
    """For each prompt the share of its judged answers with a reward of at least `pass_reward`."""
    passes: defaultdict[str, list[bool]] = defaultdict(list)
    for row in StoredRows(scores):
        if row["reward"] is not None:
            passes[row["prompt_id"]].append(row["reward"] >= pass_reward)
    return {prompt: sum(passed) / len(passed) for prompt, passed in passes.items()}


def measured(rates: PassRates, scores: Path) -> dict[str, Any]:
    """The mean over prompts, with the interval of a bootstrap over prompts; and of the rewards what the scores say."""
    values, stats = np.array(list(rates.values())), read_stats(scores)
    return {
        "pass_rate": float(values.mean()),
        "interval": list(mean_interval(values)),
        "num_prompts": len(values),
        "mean_reward": stats["mean_reward"],
        "pass_reward": stats["pass_reward"],
    }


def compared(rates: PassRates, others: PassRates) -> dict[str, Any]:
    """By how much the first model passes more often, over the prompts that both have answered, each against itself."""
    values = np.array([rate - others[prompt] for prompt, rate in rates.items() if prompt in others])
    if not len(values):
        return {"difference": None, "interval": None, "num_prompts": 0}
    return {"difference": float(values.mean()), "interval": list(mean_interval(values)), "num_prompts": len(values)}


def told(iteration: Mapping[str, Any]) -> dict[str, str]:
    """The statistics of an iteration in words, by name."""
    found = {} if iteration["num_rows"] is None else {"rows trained on": f"{iteration['num_rows']:,}"}
    for name, key in (("held-out", "model"), ("control", "control")):
        if key in iteration:
            found[name] = _share(iteration[key])
            if _is_of_another_scale(iteration[key]):
                found[f"mean reward, {name}"] = f"{iteration[key]['mean_reward']:.4g}"
    return found | {f"against {other}": difference for other, difference in _differences(iteration)}


def gained(iterations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What the last iteration was good for, as names and values."""
    last = iterations[-1]
    if "model" in last and last["iteration"]:
        yield f"held-out after iteration {last['iteration']}", f"{_share(last['model'])} pass"
        if _is_of_another_scale(last["model"]):
            yield (
                "its mean reward",
                f"{last['model']['mean_reward']:.4g}: no answer has the reward from which it passes, "
                f"--score.pass_reward {last['model']['pass_reward']:g}; give one that parts good answers from bad",
            )
        yield from ((f"against its {other}", difference) for other, difference in _differences(last))


def _differences(iteration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for other in ("start", "control"):
        found = iteration.get(f"against_{other}")
        if found is not None and found["difference"] is not None:
            if not found["difference"] and _is_of_another_scale(iteration["model"]):
                continue
            low, high = found["interval"]
            chance = ", which may be chance" if low <= 0 <= high else ""
            yield other, f"{100 * found['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}){chance}"


def _is_of_another_scale(found: Mapping[str, Any]) -> bool:
    """Whether no answer passes although there are rewards: a reward model's, say, where a 1 was to pass."""
    return not found["pass_rate"] and bool(found["mean_reward"])


def _share(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['pass_rate']:.1%} ({low:.1%} to {high:.1%})"
