"""Gradients in DeepSpeed's float32 sums, and those of a single rank: DeepSpeed's numbers without its copies."""

from __future__ import annotations

import pytest
import torch

from openrlhf.engine.patches import gradient_copies


class Sums:
    """The part of DeepSpeed's BF16_Optimizer that holds one parameter's float32 sum."""

    autoep_folding_tp_group = None

    def __init__(self, numel):
        self.fp32_groups_gradients = [[torch.zeros(numel)]]
        self.fp32_groups_has_gradients = [[False]]


@pytest.mark.parametrize("clear", [False, True])
def test_micro_batches_add_up_in_float32(monkeypatch, clear):
    monkeypatch.setattr(gradient_copies, "_PIECE", 7)  # the last piece is not full
    parameter = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.bfloat16))
    gradients = [torch.randn(4, 5).bfloat16() for _ in range(3)]
    sums = Sums(20)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        gradient_copies._add_gradient(sums, None, parameter, 0, 0, clear_lp_grads=clear)
        assert parameter.grad.any() != clear
    expected = gradients[0].float() + gradients[1].float() + gradients[2].float()
    assert torch.equal(sums.fp32_groups_gradients[0][0], expected.flatten())
    assert sums.fp32_groups_has_gradients == [[True]]


def test_a_parameter_without_gradient_is_left_to_deepspeed():
    asked = []
    parameter = torch.nn.Parameter(torch.zeros(3))
    gradient_copies._add_gradient(Sums(3), lambda *words: asked.append(words), parameter, 0, 0, clear_lp_grads=False)
    assert len(asked) == 1


def test_one_rank_averages_nothing():
    sums = torch.ones(3)
    gradient_copies._average([sums], group=None, num_ranks=1.0)
    assert torch.equal(sums, torch.ones(3))


@pytest.mark.parametrize(("num_ranks", "num_calls"), [(1.0, 0), (2.0, 1)])
def test_gradients_that_no_other_rank_has_are_not_copied(num_ranks, num_calls):
    asked = []
    gradient_copies._average_with_others(lambda *words: asked.append(words), [torch.ones(3)], None, num_ranks)
    assert len(asked) == num_calls


def average_on_this_rank(size):
    from torch import distributed

    sums = torch.full((size,), float(distributed.get_rank() + 1))
    gradient_copies._average([sums], distributed.group.WORLD, float(distributed.get_world_size()))
    return sums.tolist()


def test_ranks_get_their_mean(two_ranks):
    assert two_ranks.run(average_on_this_rank, 3) == [[1.5] * 3] * 2


def losses_and_calls(folder, is_replaced, dtype, zero_stage):
    """Losses of ten steps, and how often each of our ways was taken."""
    from unittest.mock import patch

    from openrlhf.engine import trained_model
    from tests.strategy import cases

    with (
        patch.object(gradient_copies, "_add_gradient", wraps=gradient_copies._add_gradient) as adding,
        patch.object(gradient_copies, "_average", wraps=gradient_copies._average) as averaging,
        patch.object(
            gradient_copies, "_average_with_others", wraps=gradient_copies._average_with_others
        ) as averaging_without_zero,
        patch.object(
            trained_model,
            "add_without_copies",
            gradient_copies.add_without_copies if is_replaced else lambda engine: None,
        ),
    ):
        losses = cases.losses_with(folder, dtype=dtype, zero_stage=zero_stage)
    return losses, adding.call_count, averaging.call_count, averaging_without_zero.call_count


def test_an_engine_takes_them_and_trains_to_the_bit_as_with_deepspeeds_own(two_ranks, tmp_path):
    ours, num_added, num_averaged, _ = two_ranks.run(losses_and_calls, str(tmp_path), True, "bf16", 1)[0]
    theirs, *unused = two_ranks.run(losses_and_calls, str(tmp_path), False, "bf16", 1)[0]
    assert unused == [0, 0, 0]
    assert num_added > num_averaged >= 10
    assert ours == theirs


def test_a_rank_without_zero_trains_to_the_bit_as_with_deepspeeds_copies(one_rank, tmp_path):
    ours, _, _, num_averaged = one_rank.run(losses_and_calls, str(tmp_path), True, "fp32", 0)[0]
    theirs, *_ = one_rank.run(losses_and_calls, str(tmp_path), False, "fp32", 0)[0]
    assert num_averaged >= 10
    assert ours == theirs
