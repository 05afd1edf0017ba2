"""Mixing several sources by probability: how many rows of each, and which.

With probabilities p over sources of n rows, the mix is the largest that repeats no row: N = min(n / p) rows, of which
source i gives p_i · N (rounded so that the sum is N). Which rows a source gives is drawn without replacement by a
generator keyed by (seed, source number), so the same call gives the same rows. Without probabilities every row of
every source is taken, once.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from openrlhf.config.checks import SHARES_IN_WORDS, is_share
from openrlhf.errors import UserError


def parse_probabilities(text: str | None, num_sources: int) -> list[Fraction] | None:
    """Shares of the sources, summing to 1; None without probabilities.

    Raises UserError unless there is one positive number for each source.
    """
    if not text:
        return None
    words = text.split(",")
    if not all(map(is_share, words)):
        raise UserError(f"--data.dataset_probs {text!r} must be {SHARES_IN_WORDS}; leave a source without a share out.")
    if len(words) != num_sources:
        raise UserError(f"--data.dataset_probs has {len(words)} numbers for {num_sources} sources: give one for each.")
    shares = [Fraction(word.strip()) for word in words]
    return [share / sum(shares) for share in shares]


def rows_to_take(
    num_rows: list[int], shares: list[Fraction], stopping_strategy: str = "first_exhausted", most: int | None = None
) -> list[int]:
    """The number of rows that each source gives: the largest mix in these shares that repeats no row, or the smallest
    one that uses every source up (`all_exhausted`); of `most` rows, if that is fewer."""
    # Rows left by rounding down go to the largest remainders.
    totals = [Fraction(count) / share for count, share in zip(num_rows, shares, strict=True)]
    total = math.ceil(max(totals)) if stopping_strategy == "all_exhausted" else math.floor(min(totals))
    total = total if most is None else min(total, most)
    exact = [share * total for share in shares]
    taken = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (taken[i] - exact[i], i))
    for index in by_remainder[: total - sum(taken)]:
        taken[index] += 1
    return taken


def drawn_rows(
    num_rows: list[int],
    shares: list[Fraction],
    seed: int,
    stopping_strategy: str = "first_exhausted",
    most: int | None = None,
) -> list[list[np.ndarray]]:
    """The rows that each source gives to a mix (see `rows_to_take`, `chosen_rows`), pass after pass.

    A source with fewer rows than it gives is taken whole in the first passes; in each, a row comes once.
    """
    left, passes = rows_to_take(num_rows, shares, stopping_strategy, most), list[list[np.ndarray]]()
    while any(left) or not passes:
        now = [min(count, total) for count, total in zip(left, num_rows, strict=True)]
        passes.append([chosen_rows(total, now[i], seed, i) for i, total in enumerate(num_rows)])
        left = [count - taken for count, taken in zip(left, now, strict=True)]
    return passes


def chosen_rows(num_rows: int, num_taken: int, seed: int, source_number: int) -> np.ndarray:
    """The rows (counted from 0) that a source gives, in its own order, `(num_taken,)` int64."""
    generator = np.random.Generator(np.random.Philox(key=[seed, source_number]))
    return np.sort(generator.permutation(num_rows)[:num_taken])
