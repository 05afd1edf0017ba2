"""DPOTrainer and RewardModelTrainer, called as scripts of OpenRLHF call them."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf.config import PairDataConfig
from openrlhf.datasets.pair_dataset import PairDataset, prepare_pair_dataset
from tests.helpers.tokenizers import CHATML, tiny_tokenizer
from tests.helpers.workbench import pair_flags, save_model, save_pairs, step_lines
from tests.objectives.reward_cases import tiny_classifier
from tests.trainer import pair_scripts

NUM_PAIRS, BATCH_SIZE = 12, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair_scripts")
    save_pairs(folder / "pairs.jsonl", NUM_PAIRS)
    save_model(folder / "model")
    weights = load_file(save_model(folder / "other") / "model.safetensors")
    other = {name: 1.5 * value for name, value in weights.items()}
    save_file(other, folder / "other" / "model.safetensors", {"format": "pt"})
    tiny_classifier("qwen3").save_pretrained(folder / "reward")
    tiny_tokenizer(CHATML).save_pretrained(folder / "reward")
    return folder


def test_dpo_trainer_trains_as_a_script_calls_it(one_rank, folder):
    small = one_rank.run(pair_scripts.train_dpo, folder=folder, beta=0.01)[0]
    large = one_rank.run(pair_scripts.train_dpo, folder=folder, beta=0.5)[0]
    assert [line["global_step"] for line in step_lines(folder / "out")][-1] == 3
    assert abs(large) > 5 * abs(small) > 0, "rewards are beta times the log-ratios"


def test_reward_model_trainer_trains_as_a_script_calls_it(one_rank, folder):
    metrics = one_rank.run(pair_scripts.train_reward_model, folder=folder)[0]
    assert metrics["margin"] == pytest.approx(metrics["chosen_reward"] - metrics["rejected_reward"])


def test_a_loader_that_knows_no_pairs_is_refused(one_rank, folder):
    told = one_rank.run(pair_scripts.told_of_foreign_loaders, folder=folder)[0]
    kinds = zip(told, ("list", "DataLoader", "DataLoader", "DataLoader"), strict=True)
    assert all(f"a loader that knows of no pairs ({kind})" in one for one, kind in kinds), told
    assert all("without sampler=" in one for one in told)


def test_the_base_is_no_reference_of_a_model_that_starts_from_an_adapter(one_rank, folder):
    said = one_rank.run(pair_scripts.told_of_a_start_from_an_adapter, folder=folder)[0]
    assert f"The model with the adapter {folder / 'adapter'} starts from an adapted model" in said
    assert "give the result as ref_model" in said


# --- from a flag to the loss: of train_dpo and train_rm, and of the trainers -----------------------------------------


class Answers(NamedTuple):
    """Of a pair (w: chosen, l: rejected): what a model says of each side, what the reference says, targets, margin."""

    w: float
    l: float  # noqa: E741 -- the papers' letter
    ref_w: float
    ref_l: float
    len_w: int
    len_l: int
    margin: float

    @property
    def h(self) -> float:
        return (self.w - self.ref_w) - (self.l - self.ref_l)

    @property
    def mean_h(self) -> float:
        return (self.w - self.ref_w) / self.len_w - (self.l - self.ref_l) / self.len_l


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def simpo(p: Answers, gamma: float) -> float:
    return softplus(gamma - 0.1 * (p.w / p.len_w - p.l / p.len_l))


def mean_length(window: list[Answers]) -> float:
    return sum(p.len_w for p in window) / len(window)


OF_DPO = {  # flags → the loss of a pair in its window, by plain numbers
    "": lambda p, window: softplus(-0.1 * p.h),
    "--model.beta 0.3": lambda p, window: softplus(-0.3 * p.h),
    "--model.label_smoothing 0.2": lambda p, window: 0.8 * softplus(-0.1 * p.h) + 0.2 * softplus(0.1 * p.h),
    "--model.ipo_enable": lambda p, window: (p.h - 1 / 0.2) ** 2,
    "--model.loss_type ipo": lambda p, window: (p.mean_h - 1 / 0.2) ** 2,
    "--model.loss_type simpo": lambda p, window: simpo(p, 0.5),
    "--model.loss_type simpo --model.simpo_gamma 1.5": lambda p, window: simpo(p, 1.5),
    "--model.nll_loss_coef 0.3": lambda p, window: softplus(-0.1 * p.h) - 0.3 * p.w / mean_length(window),
    "--model.loss_type sigmoid,hinge,sft --model.loss_weights 0.7,0.2,0.1": lambda p, window: (
        0.7 * softplus(-0.1 * p.h) + 0.2 * max(0.0, 1 - 0.1 * p.h) - 0.1 * p.w / mean_length(window)
    ),
}
OF_REWARDS = {
    "": lambda p, window: softplus(p.l - p.w),
    "--model.loss_type logexp": lambda p, window: softplus(p.l - p.w),
    "--model.margin_loss_enable true": lambda p, window: softplus(p.l - p.w + p.margin),
    "--model.center_rewards_coef 0.1": lambda p, window: softplus(p.l - p.w) + 0.1 * (p.w + p.l) ** 2,
}


def pairs_in(folder: Path) -> PairDataset:
    data = PairDataConfig(dataset=str(folder / "pairs.jsonl"), max_len=128, cache_dir=str(folder / "cache"))
    return prepare_pair_dataset(data, AutoTokenizer.from_pretrained(folder / "model"))


@torch.no_grad()
def sides(folder: Path, name: str) -> list[list[float]]:
    """By plain transformers in float64, of each pair's two answers: the reward by `reward`, log-probs by another."""
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(folder / name, dtype=torch.float64)

    def of_answer(ids: torch.Tensor, mask: torch.Tensor) -> float:
        if name == "reward":
            return model.score(model.model(input_ids=ids[None])[0])[0, -1].item()
        of_next = model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        return (of_next * mask[:-1]).sum().item()

    pairs = pairs_in(folder)
    return [[of_answer(one.input_ids, one.loss_mask) for one in pairs.unit(row).sequences] for row in range(NUM_PAIRS)]


@functools.cache
def answers(folder: Path, name: str, reference: str) -> list[Answers]:
    units = [pairs_in(folder).unit(row) for row in range(NUM_PAIRS)]
    lengths = [[int(one.loss_mask[:-1].sum()) for one in unit.sequences] for unit in units]
    of_both = zip(sides(folder, name), sides(folder, reference), lengths, units, strict=True)
    return [Answers(*ours, *theirs, *length, unit.numbers["margin"]) for ours, theirs, length, unit in of_both]


@pytest.mark.parametrize(
    ("losses", "of", "models"),
    [
        (OF_DPO, pair_scripts.losses_of_dpo, ("model", "other")),
        (OF_REWARDS, pair_scripts.losses_of_reward_model, ("reward", "reward")),
    ],
    ids=["dpo", "rm"],
)
def test_each_flag_of_the_loss_reaches_it(one_rank, folder, losses, of, models):
    commands = [
        [*pair_flags(folder / models[0], folder / "pairs.jsonl", folder / "o"), *flags.split()] for flags in losses
    ]
    pairs = answers(folder, *models)
    windows = [pairs[start : start + BATCH_SIZE] for start in range(0, NUM_PAIRS, BATCH_SIZE)]
    found = one_rank.run(of, folder=folder, commands=commands)[0]
    for (flags, formula), (of_command, of_trainer) in zip(losses.items(), found, strict=True):
        right = sum(formula(p, window) for window in windows for p in window) / NUM_PAIRS
        assert of_command == pytest.approx(right, rel=1e-5), f"the command with {flags!r}"
        assert of_trainer == pytest.approx(right, rel=1e-5), f"the trainer with {flags!r}"
