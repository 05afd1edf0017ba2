"""Random conversations: whatever is said, its tokens and no others are trained."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf.datasets.formats import FORMATS
from openrlhf.datasets.sources.mixing import parse_probabilities, rows_to_take
from openrlhf.datasets.tokenization.encoder import SampleEncoder
from tests.datasets.test_masks import ALL_TURNS, expected_text, trained_text
from tests.helpers.chat_templates import CHATML, DEEPSEEK, HERMES_TOOLS, LLAMA3, STRIPS_REASONING, Family

FAMILIES = [CHATML, LLAMA3, HERMES_TOOLS, STRIPS_REASONING, DEEPSEEK]
ENCODERS = {
    (family.name, marked): SampleEncoder(family.tokenizer(marked), ALL_TURNS)
    for family in FAMILIES
    for marked in (False, True)
}
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Words that look like the templates' own text are part of what people write.
words = st.sampled_from(
    ["assistant", "\n", "user", "<b>", "{{ x }}", "### ", "Yes", "Coffee, and tea.", "é", "🙂", " "]
)
said = st.lists(st.one_of(words, st.text(st.characters(exclude_categories=["Cs"]), max_size=12)), max_size=6)
text = said.map("".join).filter(lambda value: value.strip() and "<|" not in value and "think>" not in value)
turns = st.lists(st.tuples(text, text), min_size=1, max_size=4)


def messages_of(pairs: list[tuple[str, str]]) -> list[dict]:
    return [
        {"role": role, "content": content}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@QUICK
@given(pairs=turns)
def test_marked_and_unmarked_agree_and_train_what_is_said(family: Family, pairs: list[tuple[str, str]]):
    messages = messages_of(pairs)
    row = {"messages": messages}
    plain, marked = (
        ENCODERS[family.name, which].encode(FORMATS["messages"](row, ALL_TURNS)) for which in (False, True)
    )
    assert plain.input_ids.tolist() == marked.input_ids.tolist()
    assert plain.loss_mask.tolist() == marked.loss_mask.tolist()
    trained = trained_text(plain, family.tokenizer(marked=False))
    # A token over the border may bring in white space of the header, as two line breaks in one token.
    assert "".join(trained.split()) == "".join(expected_text(family, messages).split())


@QUICK
@given(prompt=text, answer=text)
def test_plain_answers_end_with_the_end_token(prompt: str, answer: str):
    tokenizer = CHATML.tokenizer(marked=False)
    row = {"prompt": prompt, "completion": answer}
    encoder = SampleEncoder(tokenizer, ALL_TURNS)
    sample = encoder.encode(FORMATS["prompt_completion"](row, ALL_TURNS))
    assert tokenizer.decode(sample.input_ids) == prompt + answer + "<|endoftext|>"
    assert trained_text(sample, tokenizer).endswith(answer + "<|endoftext|>")


@QUICK
@given(
    counts=st.lists(st.integers(1, 10_000), min_size=1, max_size=6),
    weights=st.lists(st.integers(1, 50), min_size=6, max_size=6),
)
def test_a_mix_takes_no_more_than_there_is_and_is_as_large_as_can_be(counts: list[int], weights: list[int]):
    shares = parse_probabilities(",".join(map(str, weights[: len(counts)])), len(counts))
    assert shares is not None
    taken = rows_to_take(counts, shares)
    assert all(0 <= taken[i] <= counts[i] for i in range(len(counts)))
    total = sum(taken)
    assert all(abs(taken[i] - total * shares[i]) < 1 for i in range(len(counts)))
    assert any((total + 1) * shares[i] > counts[i] for i in range(len(counts)))
