"""vLLM in process, by a stand-in module of the few names that are used: what it is given, and what is made of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig

from openrlhf.errors import UserError
from openrlhf.rejection.engines.engine import Generation, Refusal, Request, Sampling
from openrlhf.rejection.engines.vllm_engine import VLLMEngine
from openrlhf.rejection.prompts import Prompt
from tests.helpers.tokenizers import tiny_tokenizer

MODULE = '''
from types import SimpleNamespace as Bag

class SamplingParams:
    def __init__(self, **given):
        self.given = given

class LLM:
    """Answers with the prompt's own ids, the newest request first, one a step."""

    def __init__(self, **given):
        self.given, self.waiting, self.most_waiting, self.seen = given, [], 0, []
        self.llm_engine = self
        self.model_config = Bag(max_model_len=20)

    def add_request(self, name, prompt, parameters):
        self.waiting.append((name, prompt["prompt_token_ids"]))
        self.seen.append(parameters.given)
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def step(self):
        unfinished = [Bag(finished=False, request_id=name) for name, _ in self.waiting[:1]]
        name, ids = self.waiting.pop()
        answer = Bag(token_ids=tuple(ids), finish_reason="stop")
        return [*unfinished, Bag(finished=True, request_id=name, outputs=[answer])]
'''


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMEngine]:
    (tmp_path / "vllm.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    yield VLLMEngine(str(tmp_path / "model"), Sampling(0.5, 0.9, 100, None), concurrency=2, param_dtype="bf16")
    del sys.modules["vllm"]


def test_requests_are_added_as_answers_leave(engine: VLLMEngine) -> None:
    prompts = [Prompt(f"p{number}", f"x {number}") for number in range(5)] + [Prompt("long", "x " * 30)]
    found = list(engine.answers(Request(prompt, 0, 7 + number) for number, prompt in enumerate(prompts)))
    answers = {one.request.prompt.prompt_id: one for one in found if isinstance(one, Generation)}
    assert [one.request.prompt.prompt_id for one in found if isinstance(one, Refusal)] == ["long"]
    assert {name: one.response for name, one in answers.items()} == {f"p{n}": f"x {n}" for n in range(5)}
    assert engine._llm.most_waiting == 2
    assert sorted(given["seed"] for given in engine._llm.seen) == [7, 8, 9, 10, 11]
    num_prompt_tokens = len(engine._encoder.encode(prompts[4]))
    last = engine._llm.seen[-1]
    assert (last["n"], last["temperature"], last["top_p"]) == (1, 0.5, 0.9)
    assert last["max_tokens"] == 20 - num_prompt_tokens
    assert (engine._llm.given["dtype"], engine._llm.given["max_num_seqs"]) == ("bfloat16", 2)


def test_prompts_that_are_too_long_end_nothing(engine: VLLMEngine) -> None:
    """As many as vLLM would take at once, before the first one that fits."""
    prompts = [Prompt(f"long{number}", "x " * 30) for number in range(3)] + [Prompt("short", "x")]
    found = list(engine.answers(Request(prompt, 0, 7) for prompt in prompts))
    assert [one.request.prompt.prompt_id for one in found] == ["long0", "long1", "long2", "short"]
    assert isinstance(found[-1], Generation)


def test_a_prompt_that_the_template_refuses_ends_nothing(engine: VLLMEngine) -> None:
    prompts = [Prompt("bad", [{"role": "user", "content": "hi"}]), Prompt("text", "x")]
    engine._encoder._tokenizer.chat_template = "{{ raise_exception('No') }}"
    bad, text = engine.answers(Request(prompt, 0, 7) for prompt in prompts)
    assert isinstance(bad, Refusal)
    assert bad.reason.endswith("refuses the conversation: No")
    assert isinstance(text, Generation)


@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_weights_keep_the_type_that_they_are_saved_in(engine: VLLMEngine, tmp_path: Path, saved: str) -> None:
    """vLLM's own auto makes bfloat16 of float32."""
    LlamaConfig(dtype=saved).save_pretrained(tmp_path / "model")
    made = VLLMEngine(str(tmp_path / "model"), Sampling(0.5, 0.9, 100, None), concurrency=2)
    assert made._llm.given["dtype"] == saved


def test_without_vllm_it_is_told_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install vllm"):
        VLLMEngine(str(tmp_path), Sampling(1.0, 1.0, 1, None), concurrency=1)


def test_ranks_do_not_each_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them would take the first GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="is for one process, and this run has several ranks: .*--generate.runner ray"):
        VLLMEngine(str(tmp_path), Sampling(0.5, 0.9, 100, None), concurrency=2)
