"""The short way over words gives what the tokenizer itself gives, for every kind of tokenizer and any text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from openrlhf.datasets.tokenization import text_tokenizer
from openrlhf.datasets.tokenization.control_tokens import ControlTokens
from openrlhf.datasets.tokenization.text_tokenizer import TextTokenizer, TokenizedText
from tests.helpers.tokenizers import BOS, CORPUS, EOS, IM_END, IM_START, PAD, tiny_tokenizer

TEXTS = (
    "", " ", "a", "\n", "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "it's IT'S we'll 'tis don''t",
    "  two  spaces\t\ttabs \n \n\r\n end  ", "\n \n", "x\n\n\n  y", "1234567 12 3.50$", "a_b--c;;  ?!\n\n)",
    "Ça coûte 3€ – “très” cher… it’s ½ µm ª1", "これはペンです。 ok", "e\u0301 é", "\u00a0nbsp\u2003em", "😀 emoji",
    f"{IM_START}user\nhi{IM_END}\n{IM_START}assistant\nyo{IM_END}\n", f"x{EOS}", f"{EOS}{EOS} {BOS}", "<| im_start |>",
    "\x00\x01\x1c\x1f \x7f", "word" * 40, "= \n= \n",
)  # fmt: skip


def split_by(pattern: str) -> pre_tokenizers.Sequence:
    """Words as later tokenizers cut them: by an expression, then bytes as characters."""
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    post_processor: processors.PostProcessor | None = None,
    extra_tokens: tuple[AddedToken, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges over spaces and line ends, so that tokens lie across many borders."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    specials = [AddedToken(token, special=True, normalized=False) for token in (EOS, PAD, BOS, IM_START, IM_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator([*CORPUS * 2, *["\n \n  x = \n\n\t\ty", "Ça – “it’s”…"] * 9], trainer)
    backend.add_tokens(list(extra_tokens))
    if normalizer is not None:
        backend.normalizer = normalizer
    if post_processor is not None:
        backend.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=PAD, bos_token=BOS)


def trimming(add_prefix_space: bool) -> processors.PostProcessor:
    return processors.ByteLevel(trim_offsets=True, add_prefix_space=add_prefix_space)


def with_start_and_end() -> processors.PostProcessor:
    template = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B", special_tokens=[(BOS, 2), (EOS, 0)]
    )
    return processors.Sequence([trimming(add_prefix_space=False), template])


def sentencepiece_like() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", BOS, EOS]))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, bos_token=BOS, unk_token="<unk>")


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BY_WORDS = {
    "gpt2": lambda: byte_level(GPT2),
    "gpt2_trimmed": lambda: byte_level(GPT2, post_processor=trimming(add_prefix_space=False)),
    "qwen2": lambda: byte_level(split_by(text_tokenizer.QWEN2_PATTERN), normalizers.NFC(), with_start_and_end()),
    "llama3": lambda: byte_level(split_by(text_tokenizer.LLAMA3_PATTERN), post_processor=with_start_and_end()),
    "tiny_with_bos": lambda: tiny_tokenizer(with_bos=True),
    "awkward_added_tokens": lambda: byte_level(
        GPT2, extra_tokens=(AddedToken("clips", lstrip=True), AddedToken("IT", single_word=True), AddedToken("= \n"))
    ),
}
AS_A_WHOLE = {
    "trims_the_first_word_otherwise": lambda: byte_level(GPT2, post_processor=trimming(add_prefix_space=True)),
    "prefix_space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "unknown_pattern": lambda: byte_level(split_by(r"\p{L}+|\p{N}")),
    "lower_case": lambda: byte_level(GPT2, normalizers.Lowercase()),
    "sentencepiece_like": sentencepiece_like,
    "spaces": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), GPT2])),
}  # fmt: skip
MADE = {name: make() for name, make in (BY_WORDS | AS_A_WHOLE).items()}


def check_same(tokenizer: PreTrainedTokenizerFast, text: str, fast: TokenizedText, add_special_tokens: bool) -> None:
    """`fast` against what calling the tokenizer gives."""
    slow = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    offsets = np.array(slow["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    assert fast.ids.tolist() == slow["input_ids"], text
    assert fast.offsets()[:, 1].tolist() == offsets[:, 1].tolist(), text
    assert true_starts(fast.offsets()) == true_starts(offsets), text
    for position in range(len(text) + 1):
        assert fast.ending_behind(position).tolist() == (offsets[:, 1] > position).tolist(), (text, position)


def true_starts(offsets: np.ndarray) -> list[int]:
    """Starts without the trimming of white space, which is all that the offsets may differ in."""
    return np.minimum(offsets[:, 0], np.append(0, offsets[:-1, 1])).tolist()


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_texts_are_tokenized_as_by_the_tokenizer(name: str, add_special_tokens: bool):
    texts = TextTokenizer(MADE[name])
    for text in TEXTS:
        check_same(MADE[name], text, texts.tokenize(text, add_special_tokens), add_special_tokens)


@pytest.mark.parametrize("name", BY_WORDS)
def test_known_kinds_go_by_words(name: str):
    tokenizer = text_tokenizer.word_tokenizer_of(MADE[name].backend_tokenizer)
    assert tokenizer is not None
    assert tokenizer.encode("Ça coûte 3€ – “très” cher…", True) is not None


@pytest.mark.parametrize("name", AS_A_WHOLE)
def test_other_kinds_go_as_a_whole(name: str):
    assert text_tokenizer.word_tokenizer_of(MADE[name].backend_tokenizer) is None


@pytest.mark.parametrize("name", ["gpt2_trimmed", "qwen2", "llama3"])
def test_every_safe_character_is_of_the_kind_that_the_tokenizer_takes_it_for(name: str):
    """Beside letters, numbers, white space, punctuation and itself, so that every kind it may be of shows."""
    pre_tokenizer = MADE[name].backend_tokenizer.pre_tokenizer
    cut = text_tokenizer.word_tokenizer_of(MADE[name].backend_tokenizer)._cut
    safe = [chr(code) for code in range(0x3000) if text_tokenizer._is_safe(chr(code))]
    assert len(safe) > 250
    for character in safe:
        for before, behind in itertools.product(("", "a", "1", " ", "\n", "!", "'"), repeat=2):
            text = f"{before}{character}{character}{behind}b {character}2{character}\n"
            spans = [span for _, span in pre_tokenizer.pre_tokenize_str(text)]
            assert [text[start:end] for start, end in spans] == cut.findall(text), (character, text)


ANY_TEXT = st.lists(
    st.one_of(
        st.text(st.characters(max_codepoint=0x7F), max_size=6),
        st.text(st.sampled_from(" \n\r\t'sltSL1a.="), max_size=8),
        st.text(st.characters(max_codepoint=0x2100, exclude_categories=["Cs"]), max_size=3),
        st.sampled_from([EOS, BOS, IM_START, IM_END, "clips", " IT ", "= \n", "  "]),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", MADE)
def test_any_text_is_tokenized_as_by_the_tokenizer(name: str):
    texts = TextTokenizer(MADE[name])

    @settings(max_examples=120, deadline=None)
    @given(ANY_TEXT)
    def check(text: str) -> None:
        check_same(MADE[name], text, texts.tokenize(text, True), True)

    check()


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(text_tokenizer, "MAX_WORDS_KEPT", 4)
    texts = TextTokenizer(MADE["gpt2"])
    for text in TEXTS * 2:
        check_same(MADE["gpt2"], text, texts.tokenize(text, True), True)
    assert len(texts._words._tokens_by_word) <= 4


def test_a_class_that_does_more_than_its_backend_is_asked_itself():
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: str, **choices):
            return super().__call__(text.upper(), **choices)

    tokenizer = Shouting(tokenizer_object=MADE["gpt2"].backend_tokenizer, eos_token=EOS)
    assert TextTokenizer(tokenizer).tokenize("abc", True).ids.tolist() == tokenizer("abc")["input_ids"]


def test_truncation_left_on_by_another_call_cuts_nothing():
    for name in ("gpt2", "prefix_space"):
        texts = TextTokenizer(MADE[name])
        MADE[name].backend_tokenizer.enable_truncation(3)
        assert len(texts.tokenize("one word, another word, これは", True).ids) > 6


def test_an_unknown_token_is_no_control_token():
    """Text that is `<s>`, of whose characters the tokenizer knows none, is that of the row."""
    words = [("<unk>", 0.0), ("<s>", 0.0), ("▁hi", -1.0), ("hi", -1.5)]
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    controls = ControlTokens(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>"))
    assert controls.tokenize("hi<s>", False, lambda begin, end: True).ids.tolist() == [2, 1]
    assert controls.tokenize("hi<s>", False, lambda begin, end: False).ids.tolist() == [2, 0]
    assert controls.tokenize("hi<unk>", False, lambda begin, end: True).ids.tolist() == [2, 0]


@pytest.mark.parametrize("spans", [{"length": 16}, {"pad_to_multiple_of": 8}])
def test_padding_and_truncation_of_the_file_are_no_part_of_a_word(spans: dict):
    tokenizer = byte_level(split_by(text_tokenizer.QWEN2_PATTERN), post_processor=with_start_and_end())
    plain = tokenizer("Oat milk, please?", return_offsets_mapping=True)
    texts = TextTokenizer(tokenizer)
    backend = tokenizer.backend_tokenizer
    for made in (texts, TextTokenizer(tokenizer)):
        backend.enable_padding(**spans)
        backend.enable_truncation(1)
        tokens = made.tokenize("Oat milk, please?", True)
        assert isinstance(tokens, text_tokenizer.WordTokens)
        assert tokens.ids.tolist() == plain["input_ids"]
        assert tokens.offsets().tolist() == [list(span) for span in plain["offset_mapping"]]
