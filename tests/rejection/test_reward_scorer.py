"""A reward model at work: each item's reward, whatever is beside it; as the training encodes it; none where it is too
long."""

from __future__ import annotations

import random
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf.errors import UserError
from openrlhf.models import RewardModel
from openrlhf.rejection.reward_scorer import RewardScorer
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import CHATML, CORPUS, tiny_tokenizer
from tests.objectives.reward_cases import tiny_classifier

QUESTION, ANSWER = "What is the sum of three and four?", "It is seven."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward_model")
    model, tokenizer = tiny_classifier("qwen3"), tiny_tokenizer(CHATML)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def scorer(folder):
    return RewardScorer(folder)


def by_transformers(folder: str, ids: list[int]) -> float:
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder)(torch.tensor([ids])).logits.item()


def test_rewards_are_those_of_transformers_at_the_end_token(folder, scorer):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(QUESTION + ANSWER)["input_ids"]
    expected = by_transformers(folder, [*ids, tokenizer.eos_token_id])
    assert scorer.scores([QUESTION + ANSWER, (QUESTION, ANSWER)]) == pytest.approx([expected] * 2, abs=1e-6)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_rewards_depend_on_nothing_beside_them(folder, attention):
    scorer = RewardScorer(folder, max_tokens=300, attn_implementation=attention)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(CORPUS, k=draw.randint(1, 4))) for _ in range(12)]
    expected = [scorer.scores([text])[0] for text in texts]
    assert max(expected) - min(expected) > 1e-2
    for _ in range(4):
        rows = draw.sample(range(12), draw.randint(2, 12))
        assert scorer.scores([texts[row] for row in rows]) == pytest.approx([expected[row] for row in rows], abs=1e-6)


@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n<|endoftext|>", "<|pad|><|pad|>"])
def test_a_rendered_text_has_the_reward_of_its_messages(scorer, end):
    text = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n{ANSWER}"
    one, other, third = scorer.scores([MESSAGES, text + end, (MESSAGES[:1], ANSWER)])
    assert one == pytest.approx(other, abs=1e-7)
    assert one == pytest.approx(third, abs=1e-7)


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|endoftext|><|pad|>", "<|endoftext|>\n"])
def test_a_plain_text_ends_with_one_end_token(scorer, end):
    one, other = scorer.scores([ANSWER, ANSWER + end])
    assert other == one


def test_messages_are_a_template_for_prompts_of_text_where_asked(folder, scorer):
    asked = RewardScorer(folder, apply_chat_template=True)
    assert asked.scores([(QUESTION, ANSWER)]) == pytest.approx(scorer.scores([MESSAGES]), abs=1e-7)


def test_what_cannot_be_scored_has_a_reason_and_no_reward(folder):
    scorer = RewardScorer(folder, max_len=12)
    short, long, empty, broken = scorer.judged(
        ["Sure.", ANSWER * 9, "<|endoftext|>", [{"role": "user", "content": "a"}]]
    )
    assert short.value is not None
    assert short.reason is None
    assert long.value is None
    assert long.reason.endswith("tokens, more than the 12 that the model is given")
    assert empty == (None, "it is empty")
    assert broken == (None, "no assistant turn")


def test_normal_rewards(folder, scorer, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.mean, model.config.std = 0.5, 2.0
    model.save_pretrained(tmp_path)
    tiny_tokenizer(CHATML).save_pretrained(tmp_path)
    (plain,) = scorer.scores([ANSWER])
    assert RewardScorer(str(tmp_path), normalizes=True).scores([ANSWER]) == pytest.approx([(plain - 0.5) / 2.0])


def test_a_base_model_is_no_reward_model(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no reward model: it has no head `score`"):
        RewardScorer(str(tmp_path))


def test_more_tokens_than_positions_are_refused(folder):
    with pytest.raises(UserError, match="max_len 1,000 is more than the 512 positions of the model"):
        RewardScorer(folder, max_len=1000)


def test_memory_that_runs_out_cuts_a_micro_batch_and_changes_no_reward(folder, monkeypatch, caplog):
    scorer = RewardScorer(folder, max_tokens=10_000)
    texts = [" ".join(CORPUS[: 1 + number]) for number in range(6)]
    expected, values, sizes = scorer.scores(texts), scorer._values, []

    def short_of_memory(token_ids):
        sizes.append(sum(map(len, token_ids)))
        if sizes[-1] > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return values(token_ids)

    monkeypatch.setattr(scorer, "_values", short_of_memory)
    most_tokens = max(len(scorer.encoded(text)) for text in texts)
    assert scorer.scores(texts) == pytest.approx(expected, abs=1e-6)
    assert "Memory ran out with" in caplog.text
    most_before = max(sizes)
    sizes.clear()
    assert scorer.scores(texts) == pytest.approx(expected, abs=1e-6)
    assert max(sizes) < most_before, "the next micro-batches are as large as the one that did not fit"
    most_tokens = 1
    with pytest.raises(UserError, match="does not hold a sequence of .* tokens: give a lower max_len"):
        scorer.scores(texts)


def test_a_model_that_cannot_take_packs_is_not_held_twice(folder, monkeypatch):
    """The first one goes before the second is loaded."""
    check, alive = RewardModel.check_layout, weakref.WeakSet()

    def refuses_packs(self, is_packed, *more):
        alive.add(self)
        if is_packed:
            raise UserError("no packs")
        assert len(alive) == 1, "the model of the packs is still there"
        return check(self, is_packed, *more)

    monkeypatch.setattr(RewardModel, "check_layout", refuses_packs)
    assert RewardScorer(folder).scores([QUESTION])
