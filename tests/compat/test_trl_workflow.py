"""Open-R1's workflow end to end: a script and a recipe of its style, alone, on two ranks, and resumed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.hub import Hub
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.helpers.workbench import step_lines

SCRIPT = Path(__file__).parent / "recipe_script.py"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model without a chat template, two sources of chats, and a recipe."""
    folder = tmp_path_factory.mktemp("bench")
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, word in (("sums", "three and four"), ("orders", "coffee with oat milk")):
        rows = [
            {"messages": [_said("user", f"{word} {n}"), _said("assistant", f"{word} is {n} {n % 7}")], "source": name}
            for n in range(16)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "torch_dtype": "float32",
        "attn_implementation": "sdpa",
        "dataset_mixture": {
            "datasets": [
                {"id": str(folder / "sums.jsonl"), "columns": ["messages"], "weight": 1.0},
                {"id": str(folder / "orders.jsonl"), "columns": ["messages"], "weight": 0.5},
            ],
            "seed": 0,
            "test_split_size": 4,
        },
        "bf16": False,
        "do_eval": True,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "learning_rate": "1e-3",
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 2,
        "logging_steps": 2,
        "max_length": 64,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 2,
        "seed": 42,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _run(
    bench: Path, out: Path, *words: str, num_ranks: int = 1, hub: Hub | None = None
) -> subprocess.CompletedProcess:
    launcher = [sys.executable]
    if num_ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    command = [*launcher, str(SCRIPT), "--config", str(bench / "recipe.yaml"), "--output_dir", str(out), *words]
    own = {
        name: value for name, value in os.environ.items() if name not in OF_RANKS
    }  # tests in this process leave them
    environ = own | {"OPENRLHF_CACHE": str(bench / "cache"), "HF_DATASETS_CACHE": str(bench / "hf")}
    environ["PYTHONPATH"] = str(SCRIPT.parents[2])
    if hub is not None:
        environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=300)


@pytest.fixture(scope="module")
def unbroken(bench: Path) -> tuple[Path, subprocess.CompletedProcess]:
    out = bench / "unbroken"
    done = _run(bench, out, "--push_to_hub", "true", "--hub_model_id", "somebody/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done


def _events(out: Path) -> dict[str, Any]:
    return json.loads((out / "events.json").read_text())


def test_files_that_the_workflow_leaves(unbroken: tuple[Path, Any]) -> None:
    out, _ = unbroken
    state = json.loads((out / "trainer_state.json").read_text())
    train, everything = (json.loads((out / f"{name}_results.json").read_text()) for name in ("train", "all"))
    evaluation = json.loads((out / "eval_results.json").read_text())
    assert train["train_samples"] == 20
    assert everything == train | evaluation
    assert evaluation["eval_samples"] == 4
    assert state["global_step"] == state["max_steps"] == 10
    assert state["epoch"] == 2.0
    logged = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert logged == [2, 4, 6, 8, 10]
    assert AutoModelForCausalLM.from_pretrained(out).config.use_cache is True
    assert AutoTokenizer.from_pretrained(out).chat_template is not None
    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["openrlhf", "sft", "open-r1"]
    assert card.data.to_dict()["library_name"] == "transformers"
    assert "| optimizer steps | 10 |" in card.text
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    AutoModelForCausalLM.from_pretrained(out / "checkpoint-5")


def test_callbacks_run_in_transformers_order(unbroken: tuple[Path, Any]) -> None:
    out, _ = unbroken
    seen = [tuple(event) for event in _events(out)["seen"]]
    assert seen[:2] == [("on_train_begin", 0), ("on_step_end", 1)]
    assert [event for event, step in seen if step == 4] == ["on_step_end", "on_log", "on_log", "on_evaluate"]
    assert [event for event, step in seen if step == 5] == ["on_step_end", "on_save"]
    assert seen[seen.index(("on_train_end", 10)) - 1] == ("on_log", 10)
    assert [step for event, step in seen if event == "on_evaluate"] == [4, 8, 10, 10]


def test_result_is_that_of_the_steps(unbroken: tuple[Path, Any]) -> None:
    out, _ = unbroken
    losses = [line["loss"] for line in step_lines(out)]
    assert len(losses) == 10
    assert _events(out)["step"] == 10
    assert _events(out)["loss"] == pytest.approx(sum(losses) / 10, rel=1e-12)
    state = json.loads((out / "trainer_state.json").read_text())
    first = next(entry for entry in state["log_history"] if "loss" in entry)
    assert first["loss"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-12)


def test_what_became_of_the_names_is_told(unbroken: tuple[Path, Any]) -> None:
    _, done = unbroken
    assert "train.batch_size 4" in done.stderr
    assert "2 × 2 × 1" in " ".join(done.stderr.split())


def test_a_push_that_fails_is_told_and_loses_nothing(unbroken: tuple[Path, Any]) -> None:
    out, done = unbroken
    assert "could not be pushed to somebody/tiny" in done.stdout
    assert "python -m openrlhf.cli.push" in done.stdout
    assert (out / "model.safetensors").is_file()


@pytest.fixture(scope="module")
def resumed(bench: Path) -> tuple[Path, Hub]:
    """Broken off after step 7 and gone on with; then it is pushed."""
    out = bench / "resumed"
    broken = _run(bench, out, "--stop_after", "7")
    assert broken.returncode == 0, broken.stdout + broken.stderr
    assert _events(out)["step"] == 7
    (out / "README.md").unlink()
    with Hub() as hub:
        wish = ("--push_to_hub", "true", "--hub_model_id", "me/tiny", "--hub_revision", "v1")
        done = _run(bench, out, *wish, hub=hub)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    return out, hub


def test_resumed_in_the_middle_is_the_unbroken_run_to_the_bit(
    resumed: tuple[Path, Hub], unbroken: tuple[Path, Any]
) -> None:
    _assert_same_run(resumed[0], unbroken[0])


def test_a_push_has_the_model_its_tags_and_no_checkpoint(resumed: tuple[Path, Hub]) -> None:
    out, hub = resumed
    pushed = hub.files["me/tiny", "v1"]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "all_results.json"):
        assert pushed[name] == (out / name).read_bytes(), name
    assert ModelCard(pushed["README.md"].decode()).data.tags == ["openrlhf", "sft", "open-r1"]
    assert not [name for name in pushed if name.startswith("checkpoint")]
    assert hub.files["me/tiny", "main"] == {}, "it went to a branch of its own"


def _assert_same_run(out: Path, other: Path) -> None:
    theirs, ours = load_file(other / "model.safetensors"), load_file(out / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert _events(out)["loss"] == _events(other)["loss"]
    histories = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (out, other)]
    assert [entry for entry in histories[0] if "train_runtime" not in entry] == [
        entry for entry in histories[1] if "train_runtime" not in entry
    ]


@pytest.mark.slow
def test_two_ranks_resumed_in_the_middle_train_as_one(bench: Path, unbroken: tuple[Path, Any]) -> None:
    out = bench / "two"
    for more in (["--stop_after", "7"], []):
        done = _run(bench, out, "--gradient_accumulation_steps", "1", *more, num_ranks=2)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    assert [line["global_step"] for line in step_lines(out)] == list(range(1, 11))
    alone, together = ([line["loss"] for line in step_lines(folder)] for folder in (unbroken[0], out))
    assert together == pytest.approx(alone, rel=2e-5)
    assert json.loads((out / "all_results.json").read_text())["train_samples"] == 20
