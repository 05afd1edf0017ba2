"""Ranks that differ are refused before they train, on every rank, with the difference and the ranks that have it."""

from __future__ import annotations

import pytest

from tests.strategy import cases


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("zero_stage", "--ds.zero_stage: 2 on rank 0, 1 on rank 1"),
        ("seed", "--train.seed: 1 on rank 0, 2 on rank 1"),
        ("max_norm", "--max_norm: 1.0 on rank 0, 0.5 on rank 1"),
        ("train_batch_size", "--train.batch_size: 8 on rank 0, 4 on rank 1"),
        (
            "layers",
            "layers.1.self_attn.q_proj.weight: (64, 64) torch.float32 on rank 0",
        ),
        ("rope", "its config.json: rope_parameters: {'rope_theta': 10000.0, 'rope_type': 'default'} on rank 0, "),
        ("rate", "lr of group 0: 0.001 on rank 0, 0.002 on rank 1"),
        ("row", "the training data: content:"),
        ("order", "the training data: order: seed 1, shuffled on rank 0, seed 1, as it is on rank 1"),
        ("epochs", "max_epochs: 2 on rank 0, 3 on rank 1"),
    ],
)
def test_a_rank_that_differs_is_named(two_ranks, tmp_path, what, words):
    said = two_ranks.run(cases.refused_ranks, str(tmp_path), what)
    assert said[0] == said[1]
    assert words in said[0]


def test_ranks_that_are_alike_train(two_ranks, tmp_path):
    assert two_ranks.run(cases.refused_ranks, str(tmp_path), "nothing") == ["", ""]
