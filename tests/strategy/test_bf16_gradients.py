"""Gradients in DeepSpeed's float32 sums: the numbers of DeepSpeed's own ways, without their copies."""

from __future__ import annotations

import pytest
import torch

from openrlhf.utils.deepspeed import bf16_gradients


class Sums:
    """The part of DeepSpeed's BF16_Optimizer that holds one parameter's float32 sum."""

    autoep_folding_tp_group = None

    def __init__(self, numel):
        self.fp32_groups_gradients = [[torch.zeros(numel)]]
        self.fp32_groups_has_gradients = [[False]]


@pytest.mark.parametrize("clear", [False, True])
def test_micro_batches_add_up_in_float32(monkeypatch, clear):
    monkeypatch.setattr(bf16_gradients, "_PIECE", 7)  # the last piece is not full
    parameter = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.bfloat16))
    gradients = [torch.randn(4, 5).bfloat16() for _ in range(3)]
    sums = Sums(20)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        bf16_gradients._add_gradient(sums, None, parameter, 0, 0, clear_lp_grads=clear)
        assert parameter.grad.any() != clear
    expected = gradients[0].float() + gradients[1].float() + gradients[2].float()
    assert torch.equal(sums.fp32_groups_gradients[0][0], expected.flatten())
    assert sums.fp32_groups_has_gradients == [[True]]


def test_a_parameter_without_gradient_is_left_to_deepspeed():
    asked = []
    parameter = torch.nn.Parameter(torch.zeros(3))
    bf16_gradients._add_gradient(Sums(3), lambda *words: asked.append(words), parameter, 0, 0, clear_lp_grads=False)
    assert len(asked) == 1


def test_one_rank_averages_nothing():
    sums = torch.ones(3)
    bf16_gradients._average([sums], group=None, num_ranks=1.0)
    assert torch.equal(sums, torch.ones(3))


def average_on_this_rank(size):
    from torch import distributed

    sums = torch.full((size,), float(distributed.get_rank() + 1))
    bf16_gradients._average([sums], distributed.group.WORLD, float(distributed.get_world_size()))
    return sums.tolist()


def test_ranks_get_their_mean(two_ranks):
    assert two_ranks.run(average_on_this_rank, 3) == [[1.5] * 3] * 2


def test_deepspeeds_own_names_are_still_there():
    """What is replaced must exist in DeepSpeed: a new name would leave ours unused without a word."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.engine import DeepSpeedEngine

    assert callable(BF16_Optimizer._update_hp_grad)
    assert callable(DeepSpeedEngine.allreduce_and_copy)
