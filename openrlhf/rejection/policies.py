"""Which answers are trained on, and why each of the others is not.

Filters come first: an answer falls to the first that it does not pass. Then the policy picks among those that are left.
No result depends on the order of the rows: answers of a prompt stand in a total order, by reward, then by hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openrlhf.config import SelectSettings
from openrlhf.rejection.candidates import Candidates, first_of_each, rank_in_prompt
from openrlhf.rejection.statistics import passes_by_prompt

SELECTED = "selected"
REPEATED = "the same answer twice"
NO_VERDICT = "no verdict"
EMPTY = "empty"
TRUNCATED = "truncated"
PASS_RATE = "prompt outside of the pass rates"
SAME = {"text": "same text as a better answer", "equations": "same equations as a better answer"}
BELOW = "below min_reward"
NOT_BEST = "others of the prompt are better"
NO_PARTNER = "no partner for a pair"
NOT_DRAWN = "not drawn"
REASONS = (
    *(SELECTED, REPEATED, NO_VERDICT, EMPTY, TRUNCATED, PASS_RATE),
    *(*SAME.values(), BELOW, NOT_BEST, NO_PARTNER, NOT_DRAWN),
)
NUM_LENGTH_BINS = 20


@dataclass(frozen=True)
class Selection:
    """What a policy has picked.

    Attributes:
        picked: numbers of answers, prompt by prompt, the best first; (N,), or (N, 2) of pairs: chosen, rejected.
        reason: (all answers,) int8, place in `REASONS`.
    """

    picked: np.ndarray
    reason: np.ndarray

    @property
    def is_kept(self) -> np.ndarray:
        return self.reason == REASONS.index(SELECTED)

    def left_out(self) -> dict[str, int]:
        """Number of answers by the reason why they are not selected."""
        counts = np.bincount(self.reason, minlength=len(REASONS))
        return {
            reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count and reason != SELECTED
        }


def select_answers(candidates: Candidates, settings: SelectSettings, like: np.ndarray | None = None) -> Selection:
    """Filters, then the policy.

    Args: like: lengths of the answers of the selection that `random` is a control of.
    """
    reason = np.zeros(len(candidates), np.int8)
    for words, falls in _filters(candidates, settings, reason):
        reason[np.flatnonzero(reason == 0)[falls]] = REASONS.index(words)
    open_ones = candidates.best_first(np.flatnonzero(reason == 0))
    if settings.policy == "pairs":
        picked, words = _pairs(candidates, settings, open_ones), NO_PARTNER
    elif settings.policy == "random":
        picked, words = candidates.best_first(_random(candidates, settings, open_ones, like)), NOT_DRAWN
    else:
        rank = rank_in_prompt(candidates.prompt[open_ones])
        picked, words = open_ones[rank < _per_prompt(settings)], NOT_BEST
    reason[open_ones] = REASONS.index(words)
    reason[picked.reshape(-1)] = REASONS.index(SELECTED)
    return Selection(picked, reason)


def pass_reward(settings: SelectSettings) -> float:
    """The reward from which an answer passes."""
    if settings.pass_reward is not None:
        return settings.pass_reward
    return 1.0 if settings.min_reward is None else settings.min_reward


def _filters(candidates: Candidates, settings: SelectSettings, reason: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A reason, and which of the answers that are still open fall to it; one after another."""

    def still(values: np.ndarray) -> np.ndarray:
        return values[reason == 0]

    yield REPEATED, ~_first_in_order(candidates, still(np.arange(len(candidates))), candidates.tie)
    yield NO_VERDICT, np.isnan(still(candidates.reward))
    rates = _pass_rates(candidates, still(np.arange(len(candidates))), pass_reward(settings))
    yield EMPTY, still(candidates.is_empty)
    if not settings.keep_truncated:
        yield TRUNCATED, still(candidates.is_truncated)
    of_prompt = rates[still(candidates.prompt)]
    yield PASS_RATE, (of_prompt < settings.pass_rate_min) | (of_prompt > settings.pass_rate_max)
    if settings.min_reward is not None and settings.policy != "pairs":
        yield BELOW, still(candidates.reward) < settings.min_reward
    if settings.dedupe != "none":
        keys = candidates.text if settings.dedupe == "text" else candidates.equations
        yield SAME[settings.dedupe], ~_first_in_order(candidates, still(np.arange(len(candidates))), keys)


def _first_in_order(candidates: Candidates, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each answer is the best of those of its prompt with its key; (N,) bool."""
    prompt, key = candidates.prompt[numbers], keys[numbers]
    order = np.lexsort((candidates.tie[numbers], -candidates.reward[numbers], key, prompt))
    is_first = np.empty(len(numbers), bool)
    is_first[order] = first_of_each(prompt[order], key[order])
    return is_first


def _pass_rates(candidates: Candidates, numbers: np.ndarray, least: float) -> np.ndarray:
    """(prompts,) the share of its judged answers that pass; 0 where none is judged."""
    num_judged, num_passed = passes_by_prompt(
        candidates.prompt[numbers], candidates.reward[numbers], least, len(candidates.prompt_ids)
    )
    return num_passed / np.maximum(num_judged, 1)


def _per_prompt(settings: SelectSettings) -> float:
    """How many of a prompt are picked at most."""
    most = settings.max_per_prompt or float("inf")
    if settings.policy == "threshold":
        return most
    return min(settings.k or settings.max_per_prompt or 1, most)


def _random(
    candidates: Candidates, settings: SelectSettings, open_ones: np.ndarray, like: np.ndarray | None
) -> np.ndarray:
    draw = _shuffled(candidates.tie[open_ones], settings.seed)
    by_draw = open_ones[np.lexsort((draw, candidates.prompt[open_ones]))]
    rank = rank_in_prompt(candidates.prompt[by_draw])
    if like is None:
        return by_draw[rank < _per_prompt(settings)]
    allowed = by_draw[rank < (settings.max_per_prompt or float("inf"))]
    allowed = allowed[np.argsort(_shuffled(candidates.tie[allowed], settings.seed))]
    if not settings.match_lengths:
        return allowed[: len(like)]
    return _of_like_lengths(allowed, candidates.length, like)


def _of_like_lengths(drawn: np.ndarray, lengths: np.ndarray, like: np.ndarray) -> np.ndarray:
    """As many answers as `like` has, and as many of them in each bin of lengths, where there are enough.

    The bins are the twentieths of the lengths that can be drawn; what a bin lacks is drawn from all others.
    """
    if not len(drawn):
        return drawn
    edges = np.unique(np.quantile(lengths[drawn], np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1], method="lower"))
    bins = np.searchsorted(edges, lengths[drawn], side="left")
    wanted = np.bincount(np.searchsorted(edges, like, side="left"), minlength=len(edges) + 1)
    order = np.argsort(bins, kind="stable")
    is_wanted = np.empty(len(drawn), bool)
    is_wanted[order] = rank_in_prompt(bins[order]) < wanted[bins[order]]
    rest = drawn[~is_wanted]
    return np.concatenate([drawn[is_wanted], rest[: max(0, len(like) - int(is_wanted.sum()))]])


def _shuffled(ties: np.ndarray, seed: int) -> np.ndarray:
    """Random numbers from the hashes of answers and the seed (the finalizer of splitmix64), (N,) uint64."""
    mixed = ties ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _pairs(candidates: Candidates, settings: SelectSettings, best_first: np.ndarray) -> np.ndarray:
    """(N, 2): the best answer of a prompt with the worst that has another reward and another text; then the next."""
    prompt, reward = candidates.prompt[best_first], candidates.reward[best_first]
    text, pairs = candidates.text[best_first], []
    borders = [*np.flatnonzero(first_of_each(prompt)).tolist(), len(prompt)]
    most = _per_prompt(settings)
    for start, end in itertools.pairwise(borders):
        best, worst, num_pairs = start, end - 1, 0
        while best < worst and num_pairs < most and reward[best] > reward[worst]:
            if settings.min_reward is not None and reward[best] < settings.min_reward:
                break
            if text[best] != text[worst]:
                pairs.append((best_first[best], best_first[worst]))
                best, num_pairs = best + 1, num_pairs + 1
            worst -= 1
    return np.array(pairs, np.int64).reshape(-1, 2)
