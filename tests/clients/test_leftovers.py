"""What OpenRLHF's users bring along: checkpoints, adapters, folders of an iteration."""

from __future__ import annotations

import argparse

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import openrlhf.datasets
from openrlhf.checkpoint.checkpointer import Checkpointer
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.cli.batch_inference import main as batch_inference
from openrlhf.cli.lora_combiner import main as combine
from openrlhf.config import SFTConfig, parse_config
from openrlhf.config.hub_settings import PushConfig
from openrlhf.config.merge_settings import MergeConfig
from openrlhf.config.serve_settings import ServeConfig
from openrlhf.config.settings import LoggerConfig, WandbConfig
from openrlhf.datasets.utils import blending_datasets
from openrlhf.errors import UserError
from openrlhf.models import SFTLoss
from openrlhf.strategy.checkpoints import newest
from openrlhf.tracking.tracker import open_tracker
from openrlhf.utils import get_tokenizer
from openrlhf.utils.config import hierarchize
from openrlhf.utils.utils import convert_to_torch_dtype, zero_pad_sequences
from tests.helpers.workbench import save_model, save_rows


def test_what_batch_inference_did_is_pointed_to():
    with pytest.raises(UserError, match=r"openrlhf.cli.generate.*openrlhf.cli.score.*openrlhf.cli.rejection_sampling"):
        batch_inference(["--eval_task", "generate_vllm"])
    with pytest.raises(
        ImportError, match=r"openrlhf.cli.generate, and in Python by openrlhf.rejection.prompts.Prompts"
    ):
        from openrlhf.datasets import PromptDataset  # noqa: F401
    assert not hasattr(openrlhf.datasets, "PromptDatasets")


@pytest.mark.parametrize("has_model", [True, False])
def test_a_checkpoint_of_deepspeed_is_named(tmp_path, has_model):
    (tmp_path / "global_step20").mkdir()
    (tmp_path / "global_step20" / "mp_rank_00_model_states.pt").write_bytes(b"theirs")
    if has_model:
        (tmp_path / "global_step20_hf").mkdir()
    with pytest.raises(UserError) as caught:
        newest(Checkpointer(CheckpointStore(tmp_path)), print)
    assert "is a checkpoint of DeepSpeed's, as OpenRLHF writes them" in str(caught.value)
    assert ("which OpenRLHF writes with --save_hf_ckpt" in str(caught.value)) is not has_model
    assert (tmp_path / "global_step20" / "mp_rank_00_model_states.pt").read_bytes() == b"theirs"


def test_a_merged_adapter_equals_pefts(tmp_path):
    base = save_model(tmp_path / "base", "qwen3")
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(tmp_path / "adapter")
    words = ["--model_path", str(base), "--lora_path", str(tmp_path / "adapter"), "--output_path"]
    combine([*words, str(tmp_path / "merged")])
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert found["lm_head.weight"].dtype == torch.float32
    assert list((tmp_path / "merged").glob("*.safetensors"))
    with pytest.raises(UserError, match="is --model_path too"):
        combine([*words, str(base)])


def test_a_merge_replaces_no_model_of_somebody_elses_and_tells_what_it_moves(tmp_path, caplog):
    base, theirs, out = (save_model(tmp_path / name) for name in ("base", "theirs", "out"))
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "adapter")
    line = ["--model_path", str(base), "--lora_path", str(tmp_path / "adapter"), "--output_path"]
    with pytest.raises(UserError, match=r"--output_path .*theirs.* holds a model that is no run's output"):
        combine([*line, str(theirs)])
    (out / "manifest.json").write_text("{}")  # as another run's
    combine([*line, str(out)])
    assert f"it is in {out / 'earlier_run_1'}" in caplog.text


def test_the_next_round_may_train_into_the_folder_that_it_reads(tmp_path):
    model, rows = save_model(tmp_path / "round"), save_rows(tmp_path / "rows.jsonl", 4)
    words = ["--data.dataset", str(rows), "--model.model_name_or_path", str(model), "--ckpt.output_dir", str(model)]
    words += ["--ckpt.path", str(tmp_path / "ck")]
    with pytest.raises(UserError, match="would be overwritten"):
        parse_config(SFTConfig, words)
    (model / "run_config.yaml").write_text("# an earlier round")
    parse_config(SFTConfig, words)
    with pytest.raises(UserError, match="would be overwritten"):
        parse_config(SFTConfig, [*words, "--ds.lora.rank", "4"])


def test_arguments_with_dots_become_groups():
    args = hierarchize(argparse.Namespace(**{"ds.lora.rank": 4, "ds.zero_stage": 2, "optim": "adam"}))
    assert (args.ds.lora.rank, args.ds.zero_stage, args.optim) == (4, 2, "adam")
    with pytest.raises(UserError, match="optim is a value already"):
        hierarchize({"optim": "adam", "optim.lr": 1})


def test_a_way_to_mix_that_is_not_here_is_refused(tmp_path):
    rows = save_rows(tmp_path / "rows.jsonl", 4)
    with pytest.raises(UserError, match="first_exhausted and all_exhausted are here"):
        blending_datasets(f"{rows},{rows}", "0.5,0.5", stopping_strategy="all_exhausted_without_replacement")


def test_padding_and_dtypes():
    rows = [torch.tensor([[1, 2, 3]]), torch.tensor([[4]])]
    assert zero_pad_sequences(rows).tolist() == [[1, 2, 3], [0, 0, 4]]
    assert zero_pad_sequences(rows, "right", value=9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert zero_pad_sequences(rows, stack=True).shape == (2, 1, 3)
    assert convert_to_torch_dtype("bf16") == torch.bfloat16
    with pytest.raises(UserError):
        convert_to_torch_dtype("int8")


def test_a_loss_over_rows_or_over_tokens():
    log_probs, mask = -torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1, 1, 0], [0, 0, 1]])
    assert SFTLoss()(log_probs, mask).item() == pytest.approx((1 + 2 + 6) / 3)
    assert SFTLoss(token_level_loss=False)(log_probs, mask).item() == pytest.approx((1.5 + 6) / 2)


def test_a_tokenizer_pads_on_the_left_unless_told_otherwise(tmp_path):
    model = save_model(tmp_path / "model")
    assert get_tokenizer(str(model), None).padding_side == "left"
    assert get_tokenizer(str(model), None, "right").padding_side == "right"


def test_tensorboard_has_a_folder_for_each_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = LoggerConfig(
        tensorboard_dir=str(tmp_path / "tb"), openrlhf_names=True, wandb=WandbConfig(name="sft_0101T0101")
    )
    tracker = open_tracker(settings, tmp_path / "out", num_steps=1, is_rank_0=True)
    tracker.log_step({"global_step": 1, "loss": 2.5, "lr": 1e-4})
    tracker.close()
    read = EventAccumulator(str(tmp_path / "tb" / "sft_0101T0101")).Reload()
    assert {"train/gpt_loss", "train/loss_mean", "train/lr"} <= {*read.Tags()["scalars"]}
    assert read.Scalars("train/gpt_loss")[0].value == 2.5


def test_public_lines_of_small_commands_are_taken(tmp_path, monkeypatch, capsys):
    model = save_model(tmp_path / "model")
    line = (
        f"--reward_pretrain {model} --port 5000 --bf16 --flash_attn --normalize_reward --max_len 8192 --batch_size 16"
    )
    config = parse_config(ServeConfig, line.split())
    assert (config.reward.param_dtype, config.reward.max_len) == ("bf16", 8192)
    assert config.reward.attn_implementation == "flash_attention_2"
    assert "--batch_size changes nothing here" in capsys.readouterr().err
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    line = f"--model_path {model} --lora_path {tmp_path / 'lora'} --output_path {tmp_path / 'out'} --is_rm --bf16"
    assert parse_config(MergeConfig, line.split()).param_dtype == "bf16"
    assert "--is_rm changes nothing here" in capsys.readouterr().err
    with pytest.raises(UserError, match="--batch_size is unknown"):
        parse_config(MergeConfig, [*line.split(), "--batch_size", "4"])


def test_a_push_writes_no_card(tmp_path):
    with pytest.raises(UserError, match="a push uploads the card as it is: say it in .*README.md"):
        parse_config(PushConfig, ["--hub.model_id", "me/tiny", "--hub.license", "mit"])
