"""The settings of train_rm and train_dpo."""

from __future__ import annotations

import pytest

from openrlhf.config import DPOConfig, RMConfig, parse_config
from openrlhf.config.pair_settings import PreferenceModelConfig
from openrlhf.config.schema import build, settings
from openrlhf.errors import UserError


@pytest.fixture
def needed(tmp_path):
    """Flags of a model and of a file of pairs that are there."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    return ["--pretrain", str(tmp_path), "--dataset", str(tmp_path / "pairs.jsonl"), "--save_path", str(tmp_path / "o")]


def problems(root, flags):
    with pytest.raises(UserError) as caught:
        parse_config(root, flags)
    return " ".join(caught.value.problems)


def test_the_flat_names_of_openrlhf_are_read(needed):
    flags = "--beta 0.2 --label_smoothing 0.1 --nll_loss_coef 0.3 --ref_offload --prompt_key p --chosen_key c"
    config = parse_config(DPOConfig, [*needed, *flags.split(), "--rejected_key", "r", "--ref_pretrain", needed[1]])
    assert (config.model.beta, config.model.label_smoothing, config.model.nll_loss_coef) == (0.2, 0.1, 0.3)
    assert (config.data.prompt_key, config.data.chosen_key, config.data.rejected_key) == ("p", "c", "r")
    assert (config.ref.model_name_or_path, config.ref.offload) == (needed[1], True)
    reward = parse_config(RMConfig, [*needed, "--loss", "logexp", "--value_head_prefix", "value"])
    assert (reward.model.loss_type, reward.ds.value_head_prefix) == ("logexp", "value")


@pytest.mark.parametrize(
    ("flags", "losses"),
    [
        ("", {"sigmoid": 1.0}),
        ("--ipo", {"ipo": 1.0}),
        ("--model.loss_type ipo", {"ipo": 1.0}),
        ("--model.loss_type sigmoid,sft --model.loss_weights 0.8,.2", {"sigmoid": 0.8, "sft": 0.2}),
    ],
)
def test_losses_have_weights(needed, flags, losses):
    assert parse_config(DPOConfig, [*needed, *flags.split()]).model.losses() == losses


def test_a_loss_without_its_weight_is_told_in_python_too():
    with pytest.raises(UserError, match="loss_weights 1 must give one number for each of sigmoid, sft"):
        PreferenceModelConfig(loss_type="sigmoid,sft", loss_weights="1").losses()


@pytest.mark.parametrize(
    ("root", "flags", "said"),
    [
        (DPOConfig, "--model.loss_type sigmoid,ipo --model.loss_weights 1", "gives 1 numbers, but .* names 2"),
        (DPOConfig, "--model.loss_type sigmoid --model.loss_weights x", "must be numbers above 0"),
        (DPOConfig, "--model.loss_type ipo,sft --model.loss_weights 1,1e400", "above 0, at most 1e.09, by commas"),
        (DPOConfig, "--model.loss_type sft,sft", "names sft twice"),
        (DPOConfig, "--model.loss_type sigmoid,,ipo", "sigmoid,,ipo names nothing beside a comma; give losses"),
        (DPOConfig, "--model.loss_type Sigmoid", "--model.loss_type Sigmoid names Sigmoid; give .* sft"),
        (DPOConfig, "--model.loss_type robust --model.label_smoothing 0.5", "must be below 0.5"),
        (DPOConfig, "--model.loss_type hinge,sft --model.label_smoothing 0.1", "loss_type hinge,sft does not read it"),
        (DPOConfig, "--ipo --label_smoothing 0.1", "loss_type sigmoid, with --model.ipo_enable, does not read it"),
        (DPOConfig, "--model.simpo_gamma 1", "--model.simpo_gamma 1 changes nothing: .* sigmoid does not read it"),
        (DPOConfig, "--model.loss_type simpo,sft --ref.offload", "--ref.offload changes nothing: .* with no reference"),
        (DPOConfig, "--model.loss_type hinge --model.ipo_enable", "must name one of the two"),
        (DPOConfig, "--ds.lora.rank 4 --ref.offload", "the reference is the base under the adapters"),
        (DPOConfig, "--ref.model_name_or_path ./nowhere", "--ref.model_name_or_path ./nowhere does not exist"),
        (DPOConfig, "--train.max_tokens_per_micro_batch 3000", "no room for the two answers of a pair"),
        (RMConfig, "--model.loss_type logexp --model.margin_loss_enable", "logexp has no margin"),
        (RMConfig, "--model.beta 0.1", "--model.beta is unknown"),
        (DPOConfig, "--train.loss nll", "--train.loss is unknown"),
        (DPOConfig, "--rpo_alpha 1.0", "the loss of the chosen answers is added by --model.nll_loss_coef"),
        (DPOConfig, "--model.f_divergence_type js_divergence", "the tie to the reference is the reverse KL divergence"),
        (DPOConfig, "--data.multiturn", "--data.multiturn is unknown"),
    ],
)
def test_what_cannot_be_is_told(needed, root, flags, said):
    import re

    assert re.search(said, problems(root, [*needed, *flags.split()]))


def test_nothing_is_asked_of_what_is_not_here(needed, tmp_path):
    (tmp_path / "run.yaml").write_text("model: {f_divergence_type: null}\n")
    assert parse_config(DPOConfig, [*needed, f"@{tmp_path / 'run.yaml'}"]).model.beta == 0.1
    (tmp_path / "run.yaml").write_text("model: {f_divergence_type: js_divergence}\n")
    assert "reverse KL divergence" in problems(DPOConfig, [*needed, f"@{tmp_path / 'run.yaml'}"])


def test_the_objective_must_match_in_a_resume():
    table = settings(DPOConfig) | settings(RMConfig)
    objective = "loss_type beta label_smoothing nll_loss_coef ipo_enable margin_loss_enable center_rewards_coef"
    assert {table[f"model.{name}"].resume for name in objective.split()} == {"must_match"}


def test_a_command_has_defaults_of_its_own():
    assert settings(DPOConfig)["ckpt.path"].default == build(DPOConfig, {}).ckpt.path == "./ckpt/checkpoints_dpo"
    assert build(RMConfig, {"ckpt.max_num": 7}).ckpt.path == "./ckpt/checkpoints_rm"
