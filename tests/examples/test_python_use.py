"""Training from Python, as the examples show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

QUESTIONS = ["Add one and two.", "Add two and two.", "What is nine minus five?"]


@pytest.fixture
def untrained(quickstart_data, example):
    """The folder of the quickstart's untrained model."""
    example("quickstart/make_model").main(quickstart_data / "train.jsonl", quickstart_data / "untrained")
    return quickstart_data / "untrained"


def test_the_best_response_of_each_prompt_is_kept_if_it_is_good_enough(example):
    generations = [
        {"prompt": "a", "response": "poor", "reward": 0.6},
        {"prompt": "b", "response": "bad", "reward": 0.1},
        {"prompt": "a", "response": "best", "reward": 0.9},
        {"prompt": "a", "response": "as good, but later", "reward": 0.9},
        {"prompt": "c", "response": "not judged", "reward": None},
        {"prompt": [{"role": "user", "content": "d"}], "response": "to messages", "reward": 0.7},
    ]
    module = example("rejection_sampling")
    kept = module.best_of_each_prompt(generations, min_reward=0.5)
    assert [generation["response"] for generation in kept] == ["best", "to messages"]
    answered = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "to messages"}]
    assert module.as_chat(kept[1]) == {"messages": answered}


def test_rejection_sampling_trains_on_the_kept_responses(tmp_path, examples, untrained):
    generations = [
        {"prompt": question, "response": response, "reward": reward}
        for question in QUESTIONS
        for response, reward in (("four", 0.9), ("no idea", 0.2))
    ]
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in generations))
    command = [sys.executable, str(examples / "rejection_sampling.py"), str(untrained)]
    done = subprocess.run(
        [*command, str(tmp_path / "generations.jsonl"), str(tmp_path / "trained")],
        env=os.environ | {"PYTHONPATH": str(examples.parent), "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,  # a cold start compiles an optimizer
    )
    assert done.returncode == 0, done.stderr
    assert "6 generations for 3 prompts; 3 are trained on" in done.stdout
    (step,) = [json.loads(line) for line in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()]
    assert step["consumed_samples"] == 3
    assert step["num_target_tokens"] == 6, "'four' and the end of the turn, three times"
    assert (tmp_path / "trained" / "model.safetensors").is_file()
