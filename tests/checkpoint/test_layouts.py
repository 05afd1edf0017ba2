"""Any number of ranks and ZeRO stage goes on from any other, with exactly what was saved."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoint import engines
from tests.helpers.ranks import RankPool

PoolOf = Callable[[int], RankPool]

# (dtype, ranks, stage) of who saved; each is loaded by all layouts below that can run its dtype
SAVED = [
    *(("fp32", num_ranks, stage) for num_ranks, stage in ((1, 0), (2, 1), (2, 3), (4, 2))),
    *(("bf16", num_ranks, stage) for num_ranks, stage in ((1, 3), (2, 0), (2, 2), (4, 3))),
    ("bf16_fp32_gradients", 2, 1),
]
LOADED = [(1, 0), (1, 1), (1, 3), (2, 0), (2, 2), (2, 3), (4, 1), (4, 3)]


def _assert_same(got: dict[str, Tensor], meant: dict[str, Tensor], what: str) -> None:
    assert got.keys() == meant.keys(), what
    different = [key for key, value in meant.items() if not torch.equal(got[key], value)]
    assert different == [], what


@pytest.mark.parametrize(("dtype", "num_ranks", "stage"), SAVED)
def test_weights_moments_and_steps_are_exactly_those_saved(
    dtype: str, num_ranks: int, stage: int, pool_of: PoolOf, tmp_path: Path
) -> None:
    saved, *_ = pool_of(num_ranks).run(engines.train_and_save, stage, dtype, str(tmp_path))
    assert saved["exp_avg|first.weight"].abs().sum() > 0
    for new_num_ranks, new_stage in LOADED:
        new_dtype = "bf16" if dtype != "fp32" and new_stage == 0 else dtype
        for got in pool_of(new_num_ranks).run(engines.load_in_new_engine, new_stage, new_dtype, str(tmp_path)):
            _assert_same(got, saved, f"{new_num_ranks} ranks, stage {new_stage}")


@pytest.mark.parametrize(
    ("dtype", "num_ranks", "stage"),
    [
        ("fp32", 1, 0),
        ("fp32", 2, 1),
        ("fp32", 2, 3),
        ("bf16", 2, 0),
        ("bf16", 2, 2),
        ("bf16", 2, 3),
        ("bf16", 4, 3),
    ],
)
def test_on_the_same_layout_training_goes_on_to_the_bit_with_dropout(
    dtype: str, num_ranks: int, stage: int, pool_of: PoolOf, tmp_path: Path
) -> None:
    pool = pool_of(num_ranks)
    unbroken = pool.run(engines.train_on_unbroken, stage, dtype, str(tmp_path), with_dropout=True)
    resumed = pool.run(engines.load_and_train_on, stage, dtype, str(tmp_path), with_dropout=True)
    for (losses, state), (losses_again, state_again) in zip(unbroken, resumed, strict=True):
        assert losses_again == losses
        _assert_same(state_again, state, "after two more steps")


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (4, 3)])
def test_on_another_layout_losses_are_the_unbroken_run_s(
    num_ranks: int, stage: int, pool_of: PoolOf, tmp_path: Path
) -> None:
    unbroken = pool_of(2).run(engines.train_on_unbroken, 2, "fp32", str(tmp_path), with_dropout=False)
    resumed = pool_of(num_ranks).run(engines.load_and_train_on, stage, "fp32", str(tmp_path), with_dropout=False)
    assert _mean_losses(resumed) == pytest.approx(_mean_losses(unbroken), rel=1e-6)


@pytest.mark.parametrize(("stage", "new_stage"), [(2, 3), (3, 1)])
def test_adam_on_the_cpu_counts_its_steps(stage: int, new_stage: int, pool_of: PoolOf, tmp_path: Path) -> None:
    saved, *_ = pool_of(2).run(engines.train_and_save, stage, "bf16", str(tmp_path), optimizer="offloaded")
    for got in pool_of(1).run(engines.load_in_new_engine, new_stage, "bf16", str(tmp_path), optimizer="offloaded"):
        _assert_same(got, saved, f"stage {new_stage}")
    assert saved["step|first.bias"] == 3


@pytest.mark.parametrize(
    ("stage", "dtype", "layouts"),
    [
        (1, "fp32", ((1, 0), (1, 2), (2, 2), (2, 3))),
        (3, "fp32", ((1, 0), (1, 2), (2, 2), (2, 3))),
        (1, "bf16_fp32_gradients", ((1, 1), (1, 2))),
    ],
)
def test_muon_keeps_its_momentum(stage: int, dtype: str, layouts: Any, pool_of: PoolOf, tmp_path: Path) -> None:
    saved, *_ = pool_of(2).run(engines.train_and_save, stage, dtype, str(tmp_path), optimizer="muon")
    assert saved["momentum_buffer|second.weight"].abs().sum() > 0
    for num_ranks, new_stage in layouts:
        loaded = pool_of(num_ranks).run(engines.load_in_new_engine, new_stage, dtype, str(tmp_path), optimizer="muon")
        for got in loaded:
            _assert_same(got, saved, f"{num_ranks} ranks, stage {new_stage}")


def test_another_optimizer_begins_anew_on_the_saved_weights(pool_of: PoolOf, tmp_path: Path) -> None:
    saved, *_ = pool_of(2).run(engines.train_and_save, 2, "fp32", str(tmp_path), optimizer="muon")
    for got, losses in pool_of(2).run(engines.train_on_with_another_optimizer, 2, str(tmp_path)):
        assert {key.partition("|")[0] for key in got} == {"master", "weights", "buffer", "lr"}, "no state, no steps"
        torch.testing.assert_close(got["master|second.weight"], saved["master|second.weight"], atol=0, rtol=0)
        assert all(math.isfinite(loss) for loss in losses)


def test_a_model_of_another_shape_is_an_error(pool_of: PoolOf, tmp_path: Path) -> None:
    pool_of(2).run(engines.train_and_save, 2, "fp32", str(tmp_path))
    for message in pool_of(2).run(engines.error_of_loading_a_wider_model, 2, str(tmp_path)):
        assert "first.weight has shape (7, 5) in the checkpoint, (9, 5) in the model" in message


def _mean_losses(by_rank: list[tuple[list[float], dict[str, Tensor]]]) -> list[float]:
    """Each rank's loss is its part times the number of ranks; their mean is the loss of the whole batch."""
    losses = torch.tensor([losses for losses, _ in by_rank], dtype=torch.float64)
    return losses.mean(0).tolist()
