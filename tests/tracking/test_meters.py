"""Meters: sums and counts, reduced as one tensor."""

import math

import pytest
import torch

from openrlhf.tracking import WeightedSums

NAMES = ("loss", "aux_loss", "num_tokens")


def test_mean_is_weighted_by_count_not_by_call():
    meters = WeightedSums(NAMES)
    meters.add("loss", torch.tensor(10.0), torch.tensor(1))
    meters.add("loss", 20.0, 9)
    assert meters.means()["loss"] == 3.0


def test_nothing_counted_is_nan_not_zero():
    assert math.isnan(WeightedSums(NAMES).means()["aux_loss"])


def test_one_reduction_of_one_tensor_serves_all_names():
    on_rank = [WeightedSums(NAMES), WeightedSums(NAMES)]
    on_rank[0].add("loss", 3.0, 1)
    on_rank[1].add("loss", 1.0, 3)
    on_rank[1].add("num_tokens", 50)
    over_ranks = WeightedSums.from_tensor(NAMES, on_rank[0].as_tensor() + on_rank[1].as_tensor())
    assert over_ranks.means()["loss"] == 1.0
    assert over_ranks.sums()["num_tokens"] == 50.0


def test_reduction_in_place_is_seen():
    meters = WeightedSums(NAMES)
    meters.add("loss", 3.0, 1)
    meters.as_tensor().mul_(4)
    assert meters.sums()["loss"] == 12.0


def test_small_amounts_are_not_lost_beside_large_ones():
    meters = WeightedSums(NAMES)
    meters.add("num_tokens", torch.tensor(2**24, dtype=torch.int64))
    for _ in range(10):
        meters.add("num_tokens", torch.tensor(1.0))
    assert meters.sums()["num_tokens"] == 2**24 + 10


def test_adding_keeps_no_graph():
    meters = WeightedSums(NAMES)
    meters.add("loss", torch.tensor(1.0, requires_grad=True) * 2, 1)
    assert not meters.as_tensor().requires_grad


def test_reset_forgets():
    meters = WeightedSums(NAMES)
    meters.add("loss", 3.0, 1)
    meters.reset()
    assert meters.sums() == dict.fromkeys(NAMES, 0.0)


def test_a_name_nobody_announced_is_an_error():
    with pytest.raises(KeyError, match="losss"):
        WeightedSums(NAMES).add("losss", 1.0)
