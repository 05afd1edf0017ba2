"""A recipe whose answers come from a real `transformers serve`, started anew with the weights of each iteration."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from openrlhf.config import RejectionConfig, parse_config
from openrlhf.rejection import iterate
from openrlhf.rejection.engines.engine import Generation, Request, Sampling
from openrlhf.rejection.engines.transformers_engine import TransformersEngine
from openrlhf.rejection.iterate import rejection_sampling
from openrlhf.rejection.prompts import Prompt
from tests.helpers.workbench import save_model
from tests.rejection.stand_in import stored
from tests.rejection.test_serving import free_port

MISSING = [name for name in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(name) is None]
TRAIN = """
import numpy, shutil, sys, yaml
from safetensors.numpy import load_file, save_file
config = yaml.safe_load(open(sys.argv[2]))
model = shutil.copytree(config["model"]["model_name_or_path"], config["ckpt"]["output_dir"]) + "/model.safetensors"
weights = {name: numpy.ascontiguousarray(value[::-1]) for name, value in load_file(model).items()}
save_file(weights, model, metadata={"format": "pt"})
"""


@pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {MISSING}: pip install -e '.[dev,serve]'")
def test_the_weights_of_each_iteration_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(iterate, "TRAIN_MODULE", str(tmp_path / "train.py"))
    model = save_model(tmp_path / "model")
    messages = [[{"role": "user", "content": text}] for text in ("the sum of three", "a coffee with oat milk")]
    rows = [{"messages": one, "label": ""} for one in messages]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text("def length(completions, **columns): return [1.0 for _ in completions]")
    port = free_port()
    given = {
        "model.model_name_or_path": model,
        "data.dataset": tmp_path / "prompts.jsonl",
        "generate.engine": "openai",
        "generate.url": f"http://127.0.0.1:{port}/v1",
        "generate.start_command": f"{sys.executable} -m transformers.cli.transformers serve {{model}} --port {port}",
        "generate.temperature": 0.0,
        "generate.max_new_tokens": 8,
        "score.reward": f"{tmp_path / 'rewards.py'}:length",
        "select.keep_truncated": "true",
        "iterate.iterations": 2,
        "iterate.output": tmp_path / "run",
        "iterate.launcher": sys.executable,
        "train.batch_size": 1,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    rejection_sampling(parse_config(RejectionConfig, words))
    answers = [answers_in(tmp_path / f"run/iteration_{number}/generations") for number in (1, 2)]
    assert answers[0] == answers_by(model, messages)
    assert answers[1] == answers_by(tmp_path / "run/iteration_1/model", messages)
    assert answers[0] != answers[1]


def answers_in(folder: Path) -> dict[str, str]:
    return {row["prompt"][0]["content"]: row["response"].strip() for row in stored(folder)}


def answers_by(model: Path, prompts: list[list[dict]]) -> dict[str, str]:
    """In this process, without the white space around an answer: the server takes it off."""
    engine = TransformersEngine(str(model), Sampling(0.0, 1.0, 8, None), 2)
    requests = (Request(Prompt(str(number), prompt), 0, 1) for number, prompt in enumerate(prompts))
    found = [answer for answer in engine.answers(requests) if isinstance(answer, Generation)]
    return {answer.request.prompt.content[0]["content"]: answer.response.strip() for answer in found}  # type: ignore[index]
