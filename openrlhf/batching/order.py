"""Global order: which row stands at which place of an epoch, computed per place, held nowhere.

`permute` is a keyed bijection of [0, num_rows): a balanced Feistel network over the next power of four, walked until it
lands inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
"""

from __future__ import annotations

import numpy as np

_NUM_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def epoch_order(places: np.ndarray, num_rows: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The rows that stand at `places` of an epoch; a function of (num_rows, seed, epoch) alone.

    Args:
        places: (n,) integers in [0, num_rows).
    Returns: (n,) int64 rows.
    """
    places = np.asarray(places, dtype=np.uint64)
    if not shuffle or num_rows < 2:
        return places.astype(np.int64)
    return permute(places, num_rows, _key(seed, epoch))


def permute(values: np.ndarray, num_values: int, key: np.uint64) -> np.ndarray:
    """The images of `values` under the permutation of [0, num_values) that `key` names; (n,) int64."""
    half_bits = np.uint64(max(1, ((num_values - 1).bit_length() + 1) // 2))
    images = _feistel(np.asarray(values, dtype=np.uint64), half_bits, key)
    outside = images >= num_values
    while outside.any():
        images[outside] = _feistel(images[outside], half_bits, key)
        outside = images >= num_values
    return images.astype(np.int64)


def _key(seed: int, epoch: int) -> np.uint64:
    return np.uint64(_mix(_mix(np.uint64(seed % 2**64)) ^ np.uint64(epoch))[()])


def _feistel(values: np.ndarray, half_bits: np.uint64, key: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for round_number in range(_NUM_ROUNDS):
        round_key = _mix(np.uint64(key) ^ np.uint64(round_number))
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << half_bits) | right


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))
