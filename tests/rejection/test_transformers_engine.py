"""Answers in process: a refilled batch gives each request the tokens that it would get alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf.errors import UserError
from openrlhf.rejection.engines.encoding import PromptEncoder
from openrlhf.rejection.engines.engine import Generation, Refusal, Request, Sampling
from openrlhf.rejection.engines.sampler import draws_of, next_tokens
from openrlhf.rejection.engines.transformers_engine import TransformersEngine
from openrlhf.rejection.prompts import Prompt, seed_of
from tests.helpers.chat_templates import FAMILIES, Family
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TEXTS = ["Can I get a coffee", "Was", "Natalia sold 48/2 clips in May. How many", "x y z", "The sum of three and four"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    for kind in ("qwen3", "gemma2"):
        folder = str(tmp_path_factory.mktemp(kind))
        tiny_model(kind).save_pretrained(folder)
        tiny_tokenizer(chat_template=CHATML).save_pretrained(folder)
        made[kind] = folder
    return made


def requests(n: int = 4) -> list[Request]:
    prompts = [Prompt(f"p{number}", text) for number, text in enumerate(TEXTS)]
    return [Request(p, index, seed_of(1, p.prompt_id, index)) for p in prompts for index in range(n)]


def texts(engine: TransformersEngine, asked: list[Request]) -> dict[tuple[str, int], tuple[str, str, int | None]]:
    found = {}
    for answer in engine.answers(iter(asked)):
        assert isinstance(answer, Generation)
        key = (answer.request.prompt.prompt_id, answer.request.sample_index)
        assert key not in found
        found[key] = (answer.response, answer.finish_reason, answer.num_tokens)
    return found


def engine_of(folder: str, concurrency: int, **sampling: float) -> TransformersEngine:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 30, "max_prompt_len": None, **sampling}
    return TransformersEngine(folder, Sampling(**settings), concurrency, param_dtype="fp32")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_an_answer_does_not_depend_on_its_neighbours(folders: dict[str, str], kind: str, top_p: float) -> None:
    alone = texts(engine_of(folders[kind], 1, top_p=top_p), requests())
    assert len(alone) == 20
    assert len({text for text, _, _ in alone.values()}) > 15
    assert {reason for _, reason, _ in alone.values()} == {"stop", "length"}
    for concurrency in (3, 8, 64):
        assert texts(engine_of(folders[kind], concurrency, top_p=top_p), requests()) == alone


def test_plain_batches_draw_the_same_answers(folders: dict[str, str]) -> None:
    refilled, plain = engine_of(folders["qwen3"], 6), engine_of(folders["qwen3"], 6)
    plain._refills = False
    assert refilled._refills
    assert texts(plain, requests()) == texts(refilled, requests())


def test_a_pad_token_without_an_embedding_stands_in_no_batch(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = texts(engine_of(str(tmp_path), 4), requests(n=1))
    tokenizer.add_special_tokens({"pad_token": "<new pad>"})
    tokenizer.save_pretrained(tmp_path)
    engine = engine_of(str(tmp_path), 4)
    assert engine._refills
    assert texts(engine, requests(n=1)) == expected


def test_a_model_with_a_cache_of_its_own_is_run_in_plain_batches(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=2, pad_token_id=0
    )
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    engine = engine_of(str(tmp_path), 4)
    assert not engine._refills
    assert len(texts(engine, requests())) == 20


def test_at_temperature_0_tokens_are_those_of_model_generate(folders: dict[str, str]) -> None:
    found = texts(engine_of(folders["qwen3"], 3, temperature=0.0), requests(n=1))
    model = AutoModelForCausalLM.from_pretrained(folders["qwen3"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folders["qwen3"])
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        whole = model.generate(ids, do_sample=False, max_new_tokens=30, eos_token_id=tokenizer.eos_token_id)
        answer = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert found[f"p{number}", 0][0] == answer


def test_messages_are_rendered_with_the_prompt_for_an_answer(folders: dict[str, str]) -> None:
    engine = engine_of(folders["qwen3"], 2)
    ids = engine._encoder.encode(Prompt("a", [{"role": "user", "content": "hi"}]))
    text = AutoTokenizer.from_pretrained(folders["qwen3"]).decode(ids)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_messages_are_encoded_as_transformers_encodes_them(family: Family) -> None:
    tokenizer = family.tokenizer(marked=True)
    messages = [{"role": "user", "content": " what time\nis it? "}]
    if family.system:
        messages.insert(0, {"role": "system", "content": "Be short."})
    tools = [TOOL] if family.tools else None
    expected = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    assert PromptEncoder(tokenizer, None).encode(Prompt("a", messages, tools)) == expected


MANY_STEPS = "{% for a in range(1200) %}{% for b in range(1200) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (f"{{% if add_generation_prompt %}}{MANY_STEPS}{{% endif %}}{CHATML}", "1,000,000 steps"),
        ("{{ 'a' * 10**9 }}" + CHATML, "takes more than"),
        ("{{ 1 / 0 }}", "cannot be encoded: the chat template refuses the conversation: ZeroDivisionError"),
        ("{% for %}", "is no valid Jinja"),
    ],
)
def test_a_template_from_elsewhere_ends_in_words(template: str, words: str) -> None:
    encoder = PromptEncoder(tiny_tokenizer(chat_template=template), None)
    with pytest.raises(UserError, match=words):
        encoder.encode(Prompt("a", [{"role": "user", "content": "hi"}]))


def test_a_prompt_that_is_too_long_is_refused_and_room_ends_at_the_last_position(folders: dict[str, str]) -> None:
    prompts = [Prompt("fits", "x " * 250), Prompt("long", "x " * 400)]
    engine = engine_of(folders["qwen3"], 2, temperature=0.0, max_new_tokens=1000)
    num_ids = len(engine._encoder.encode(prompts[0]))
    found = {one.request.prompt.prompt_id: one for one in engine.answers(Request(p, 0, 1) for p in prompts)}
    fits, long = found["fits"], found["long"]
    assert isinstance(long, Refusal)
    assert isinstance(fits, Generation)
    assert fits.num_tokens is not None
    assert fits.num_tokens <= 512 - num_ids


def test_one_prompt_that_cannot_be_encoded_or_read_is_left_out(folders: dict[str, str], tmp_path: Path) -> None:
    """The template refuses one, and one has a token that was added to the tokenizer alone."""
    shutil.copytree(folders["qwen3"], tmp_path / "m")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
    tokenizer = tiny_tokenizer(chat_template=refuses + CHATML)
    tokenizer.add_tokens([*(f"zyzzy{n}" for n in range(512 - len(tokenizer))), "zyzzy"])
    tokenizer.save_pretrained(tmp_path / "m")
    system = {"role": "system", "content": "Be short."}
    texts = [("good", "tea", []), ("refused", "tea", [system]), ("added", "a zyzzy", [])]
    prompts = [Prompt(name, [*before, {"role": "user", "content": text}]) for name, text, before in texts]
    engine = engine_of(str(tmp_path / "m"), 2, max_new_tokens=2)
    found = {one.request.prompt.prompt_id: one for one in engine.answers(Request(p, 0, 1) for p in prompts)}
    assert isinstance(found["good"], Generation)
    assert [getattr(found[name], "reason", None) for name in ("refused", "added")] == [
        "the chat template refuses the conversation: No system",
        "the tokenizer is of another model: its token id is 512, and the model's vocabulary has 512",
    ]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_are_drawn_by_their_probabilities(top_p: float) -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 1.5, -torch.inf])
    probabilities = torch.softmax(logits / 0.7, dim=-1)
    kept = torch.zeros(5)
    total = 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total < top_p:
            kept[token] = probabilities[token]
        total += float(probabilities[token])
    expected = (kept / kept.sum()).numpy()
    count = 20_000
    draws = torch.tensor(np.concatenate([draws_of(seed, 100) for seed in range(count // 100)]))
    tokens = next_tokens(logits.expand(count, -1), draws, 0.7, top_p)
    shares = np.bincount(tokens.numpy(), minlength=5) / count
    assert np.abs(shares - expected).max() < 0.015
    assert set(tokens.unique().tolist()) == set(np.flatnonzero(expected).tolist())


def test_the_highest_draw_takes_a_token_that_can_be_drawn() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])
    draws = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert next_tokens(logits, draws, 1.0, 1.0).item() == 1
    assert next_tokens(logits, draws, 1.0, 0.5).item() == 1
