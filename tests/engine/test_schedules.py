"""One horizon for the whole run: the learning rate warms up once and falls to its least at the last step."""

from __future__ import annotations

import pytest
import torch

from openrlhf.config import DeepspeedConfig, SFTConfig
from openrlhf.config.schema import build
from openrlhf.config.trl_translation import Translator
from openrlhf.engine.engine_config import engine_config
from openrlhf.engine.optimizers import build_schedule, fit_schedule
from openrlhf.run.sft_run import SFTRun


def rates(num_steps: int, warmup_ratio: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, "cosine_with_min_lr", num_steps, warmup_ratio, 0.1)
    found = []
    for _ in range(num_steps + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_it_warms_up_once_and_never_rises_again():
    found = rates(num_steps=40, warmup_ratio=0.1)
    assert found[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("num_warmup_steps", [3, 4, 5, 100])
def test_a_warm_up_in_steps_is_that_of_transformers(num_warmup_steps):
    """Also one that is as long as the run, or longer."""
    share = Translator({"max_steps": 4}, (), num_data_ranks=1, num_rows=None).warmup_share(num_warmup_steps)
    assert rates(4, share)[:4] == pytest.approx([step / num_warmup_steps for step in range(4)])


@pytest.mark.parametrize("rate", [1e-3, 1e-8])
def test_a_polynomial_schedule_ends_below_any_rate_and_needs_no_default_rate(rate):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    del optimizer.defaults["lr"]  # as Muon, whose groups alone have rates
    schedule = build_schedule(optimizer, "polynomial", 4, 0.0, 0.1)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(min(1e-7, 0.1 * rate))


@pytest.mark.parametrize("name", ["constant", "inverse_sqrt", "linear"])
def test_a_resume_takes_the_rate_of_its_own_schedule(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, name, 4, 0.0)
    optimizer.param_groups[0]["lr"] = 0.123  # of the checkpoint's schedule
    fit_schedule(schedule, 4, 0)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_the_horizon_of_a_run_is_all_its_epochs():
    values = {"train.batch_size": 4, "train.max_epochs": 3, "model.model_name_or_path": "x", "data.dataset": "y"}
    config = build(SFTConfig, values)
    assert SFTRun(config, None, [], tokenizer=None, train_data=[None] * 22, eval_data=None).num_steps == 18


def test_gradients_are_clipped_at_the_users_norm():
    assert engine_config(DeepspeedConfig(), max_norm=0.7, pin_memory=False)["gradient_clipping"] == 0.7


def test_fp16_finds_its_loss_scale_by_itself():
    scale = engine_config(DeepspeedConfig(param_dtype="fp16"), max_norm=1.0, pin_memory=False)["fp16"]
    assert scale["enabled"]
    assert scale["loss_scale"] == 0, "0 is DeepSpeed's word for a scale that follows the gradients"
