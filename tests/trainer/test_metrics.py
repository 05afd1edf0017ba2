"""Sums and counts of metrics, reduced as one tensor."""

import pytest
import torch

from openrlhf.objectives import SFTObjective
from openrlhf.trainer.metrics import MetricSums


class Counting(SFTObjective):
    metrics = ("loss", "num_words")


def new_sums():
    return MetricSums(Counting(), torch.device("cpu"), with_aux_loss=True)


def means_of(sums):
    return sums.means_over(None)


def test_mean_is_weighted_by_count_not_by_call():
    sums = new_sums()
    sums.add("loss", torch.tensor(10.0), torch.tensor(1))
    sums.add("loss", 20.0, 9)
    assert means_of(sums)["loss"] == 3.0


def test_one_reduction_of_one_tensor_serves_all_names():
    on_rank = [new_sums(), new_sums()]
    on_rank[0].add("loss", 3.0, 1)
    on_rank[1].add("loss", 1.0, 3)
    on_rank[1].add("num_words", 50, 0)
    on_rank[0].pairs += on_rank[1].pairs
    assert means_of(on_rank[0]) == {"loss": 1.0, "num_words": 50.0, "token_accuracy": 0.0, "aux_loss": 0.0}


def test_small_amounts_are_not_lost_beside_large_ones():
    sums = new_sums()
    sums.add("num_words", torch.tensor(2**24, dtype=torch.int64), 0)
    for _ in range(10):
        sums.add("num_words", torch.tensor(1.0), 0)
    assert means_of(sums)["num_words"] == 2**24 + 10


def test_adding_keeps_no_graph():
    sums = new_sums()
    sums.add("loss", torch.tensor(1.0, requires_grad=True) * 2, 1)
    assert not sums.pairs.requires_grad


def test_a_name_nobody_announced_is_an_error():
    with pytest.raises(ValueError, match="not in tuple"):
        new_sums().add("losss", 1.0)
