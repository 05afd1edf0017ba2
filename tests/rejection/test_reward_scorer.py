"""A reward model at work: each item's reward, whatever is beside it; as the training encodes it; none where it is too
long."""

from __future__ import annotations

import random
import shutil
import time
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from openrlhf.datasets.tokenization.text_tokenizer import TextTokenizer
from openrlhf.errors import UserError
from openrlhf.models import RewardModel
from openrlhf.rejection.reward_scorer import RewardScorer
from tests.helpers.chat_templates import LAST_AFTER_LOOP, TRIMS, VICUNA
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


def of_trl():
    """As `setup_chat_format` leaves it: each token that the template prints begins or ends a text, or pads it."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    tokenizer.chat_template = CHATML
    return tokenizer


TOKENIZERS = {
    "chatml": lambda: tiny_tokenizer(CHATML),
    "of_trl": of_trl,
    "plain_words": lambda: VICUNA.tokenizer(marked=False),
    "two_ends": lambda: TRIMS.tokenizer(marked=False),
    "white_space_before_the_end": lambda: LAST_AFTER_LOOP.tokenizer(marked=False),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_rendered_text_has_the_reward_of_its_messages(folder, tmp_path, kind):
    """However much of the end that the template prints stands there, and whatever fills the text up to a length."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = TOKENIZERS[kind]()
    tokenizer.save_pretrained(tmp_path)
    scorer = RewardScorer(str(tmp_path))
    rendered, pad = tokenizer.apply_chat_template(MESSAGES, tokenize=False), tokenizer.pad_token
    answer, end = rendered[: rendered.rindex(ANSWER) + len(ANSWER)], rendered.rpartition(ANSWER)[2]
    ends = ["", end, end.rstrip(), end + pad * 3, end + tokenizer.eos_token]
    ends += [end[: end.index(">") + 1], end[: end.index(">") + 2]] if ">" in end else []
    expected, of_an_answer = scorer.scores([MESSAGES, (MESSAGES[:1], ANSWER)])
    assert of_an_answer == pytest.approx(expected, abs=1e-7)
    fronts = ["", pad * 2] if pad != tokenizer.bos_token else [""]
    texts = [front + answer + one for front in fronts for one in ends]
    assert scorer.scores(texts) == pytest.approx([expected] * len(texts), abs=1e-7)


def test_padding_in_front_of_a_plain_text_is_not_scored(scorer):
    one, *others = scorer.scores([ANSWER, f"<|pad|><|pad|>{ANSWER}", f"<|endoftext|>{ANSWER}"])
    assert others == [one, one]


def test_many_ends_take_little_time(scorer):
    begun = time.process_time()
    assert len(scorer.encoded(ANSWER + "<|endoftext|>" * 30_000)) == len(scorer.encoded(ANSWER))
    assert time.process_time() - begun < 1, "it takes time in the square of the ends"


def test_what_is_too_long_without_doubt_is_not_tokenized(folder, monkeypatch):
    scorer = RewardScorer(folder, max_len=12)
    monkeypatch.setattr(TextTokenizer, "tokenize", None)
    long = "b" * 100_000
    for item in (long, f"<|im_start|>user\n{long}", [*MESSAGES[:1], {"role": "assistant", "content": long}]):
        told = scorer.encoded(item)
        assert told.startswith("it has 100,")
        assert told.endswith(" characters, more than fit into the 12 tokens that the model is given")


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|endoftext|><|pad|>", "<|endoftext|>\n"])
def test_a_plain_text_ends_with_one_end_token(scorer, end):
    one, other = scorer.scores([ANSWER, ANSWER + end])
    assert other == one


def test_messages_are_a_template_for_prompts_of_text_where_asked(folder, scorer):
    asked = RewardScorer(folder, apply_chat_template=True)
    assert asked.scores([(QUESTION, ANSWER)]) == pytest.approx(scorer.scores([MESSAGES]), abs=1e-7)


def test_what_cannot_be_scored_has_a_reason_and_no_reward(folder):
    scorer = RewardScorer(folder, max_len=12)
    opened = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    no_answer = [{"role": "user", "content": "a"}]
    short, long, long_turn, empty, broken, half = scorer.judged(
        ["Sure.", ANSWER * 9, opened + ANSWER, "<|endoftext|>", no_answer, "<|im_start|>assistant\n\ud83d"]
    )
    assert short.value is not None
    assert short.reason is None
    for one in (long, long_turn):
        assert one.value is None
        assert one.reason.endswith(" tokens, more than fit into the 12 tokens that the model is given")
    assert empty == (None, "it is empty")
    assert broken == (None, "no assistant turn")
    assert "half a surrogate pair" in half.reason


def test_an_answer_with_a_token_that_the_model_lacks_has_no_reward(folder, tmp_path):
    """It was added to the tokenizer alone."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.add_tokens([*(f"zyzzy{n}" for n in range(512 - len(tokenizer))), "zyzzy"])
    tokenizer.save_pretrained(tmp_path)
    whole, pair, other = RewardScorer(str(tmp_path)).judged(["a zyzzy", (QUESTION, "zyzzy"), QUESTION])
    reason = "the tokenizer is of another model: its token id is 512, and the model's vocabulary has 512"
    assert [whole, pair] == [(None, reason)] * 2
    assert other.value is not None


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
