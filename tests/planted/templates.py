"""Planted bugs of chat templates, tokenizers and rows that come in more than one shape."""

from __future__ import annotations

from tests.planted.bug import Bug

_WORDS = "tests/datasets/test_words.py"

BUGS = [
    Bug(
        "padding_of_the_tokenizers_file_is_trained",
        "a tokenizer.json with padding puts pad tokens behind every word, and they are targets",
        "datasets/tokenization/text_tokenizer.py",
        "    backend.no_padding()\n",
        "",
        (f"{_WORDS}::test_padding_and_truncation_of_the_file_are_no_part_of_a_word",),
    ),
]
