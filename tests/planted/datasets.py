"""Bugs of the room datasets/: rows, targets, the cache."""

from __future__ import annotations

from tests.planted.bug import Bug

_FORMATS = "tests/datasets/test_formats.py"
_MASKS = "tests/datasets/test_masks.py"
_CACHE = "tests/datasets/test_cache.py"
_ENCODER = "datasets/tokenization/encoder.py"
_WORDS = "datasets/tokenization/words.py"
_SPANS = "datasets/tokenization/turn_spans.py"

BUGS = [
    Bug(
        "end_token_is_no_target",
        "the model never learns to stop",
        _ENCODER,
        "targets[-1] = True  # the end token",
        "targets[-1] = False  # the end token",
        (f"{_FORMATS}::test_a_row_becomes_its_text_and_targets[columns]",),
    ),
    Bug(
        "end_token_written_as_text",
        "an answer that ends with the end token gets two",
        _ENCODER,
        "return ids if len(ids) and ids[-1] == self._eos_id else np.append",
        "return np.append",
        (f"{_FORMATS}::test_end_token_is_appended_as_an_id_and_once",),
    ),
    Bug(
        "first_answer_token_is_no_target",
        "the first token of each answer gets no loss",
        _ENCODER,
        "targets |= (starts < span.end) & (ends > span.start)",
        "targets |= (starts < span.end) & (starts > span.start)",
        (f"{_MASKS}::test_targets_are_what_the_assistant_says",),
    ),
    Bug(
        "mask_of_rows_not_shifted",
        "the mask stands beside its tokens: each prompt's last token is trained, each end token is not",
        _ENCODER,
        "mask[:-1] = targets[1:]",
        "mask[:-1] = targets[:-1]",
        (f"{_FORMATS}::test_a_row_becomes_its_text_and_targets",),
    ),
    Bug(
        "labels_not_shifted",
        "rows of a rollout engine are trained one token off",
        "datasets/formats/tokenized.py",
        "return [*targets[1:], 0]",
        "return [*targets[:-1], 0]",
        (f"{_FORMATS}::test_tokens_come_through_unchanged_with_labels",),
    ),
    Bug(
        "end_of_turn_is_no_target",
        "the model answers, and then goes on with the user's next turn",
        _SPANS,
        "end = region.start + len(said.rstrip())",
        'end = region.start + len(said.rstrip().removesuffix("<|im_end|>"))',
        (f"{_FORMATS}::test_a_row_becomes_its_text_and_targets[messages]",),
    ),
    Bug(
        "user_turns_are_trained",
        "the model learns to ask the user's questions",
        "datasets/tokenization/turn_choice.py",
        'if message["role"] == "assistant"]\n    if not assistant',
        'if message["role"] in ("assistant", "user")]\n    if not assistant',
        (f"{_MASKS}::test_targets_are_what_the_assistant_says",),
    ),
    Bug(
        "turn_header_is_trained",
        "the assistant's header is trained with its answer",
        _SPANS,
        "return region.start + position + len(head)",
        "return region.start + position",
        (f"{_MASKS}::test_targets_are_what_the_assistant_says",),
    ),
    Bug(
        "last_turn_trains_all",
        "without --data.multiturn, earlier answers are trained too",
        "datasets/tokenization/turn_choice.py",
        "return assistant[-1:]",
        "return assistant",
        (f"{_MASKS}::test_last_turn_alone",),
    ),
    Bug(
        "untrained_messages_are_trained",
        "messages marked with train: false are trained",
        "datasets/tokenization/turn_choice.py",
        "chosen = [index for index in chosen if conversation.trained[index]]",
        "chosen = [index for index in chosen if index >= 0]",
        (f"{_FORMATS}::test_messages_marked_as_untrained_are_context_only",),
    ),
    Bug(
        "start_token_twice",
        "a text that begins with the start token gets two",
        _ENCODER,
        "return int(bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos)",
        "return 0",
        (f"{_FORMATS}::test_start_token_is_there_once_even_if_the_text_begins_with_it",),
    ),
    Bug(
        "words_cut_at_other_spaces",
        "texts with rare control characters get ids that the tokenizer would not give",
        _WORDS,
        r'_SPACES = r"\t-\r\x20"',
        r'_SPACES = r"\t-\r\x1c-\x20"',
        ("tests/datasets/test_words.py::test_every_safe_character_is_of_the_kind_that_the_tokenizer_takes_it_for",),
    ),
    Bug(
        "first_word_of_an_answer_is_no_target",
        "the word that each answer begins with gets no loss",
        _WORDS,
        "first = bisect_right(ends, position)",
        "first = bisect_right(ends, position) + 1",
        ("tests/datasets/test_words.py::test_texts_are_tokenized_as_by_the_tokenizer",),
    ),
    Bug(
        "cut_text_gets_an_end_token",
        "the model learns to stop in the middle of a sentence",
        _ENCODER,
        "        if len(ids):\n            sample.loss_mask[-1] = 0\n",
        "        if cut:\n            sample.input_ids[-1] = self._eos_id\n"
        "        if len(ids):\n            sample.loss_mask[-1] = 0\n",
        (f"{_CACHE}::test_overlong_samples",),
    ),
    Bug(
        "overlong_rows_are_cut_silently",
        "answers end in the middle though --data.overlong drop is the default",
        _ENCODER,
        'if cut and self._settings.overlong != "truncate":',
        'if cut and self._settings.overlong == "error":',
        (f"{_CACHE}::test_overlong_samples",),
    ),
    Bug(
        "overlong_rows_not_counted",
        "rows are left out, and the report says nothing of it",
        "datasets/prepare.py",
        "self.report.left_out[reason] = self.report.left_out.get(reason, 0) + count",
        "self.report.left_out.get(reason, 0)",
        (f"{_CACHE}::test_overlong_samples",),
    ),
    Bug(
        "bad_rows_skipped_silently",
        "broken rows are left out without a word",
        "datasets/prepare.py",
        "for number, reason in result.bad_rows:",
        "for number, reason in ():",
        ("tests/datasets/test_bad_input.py::test_allowed_bad_rows_are_left_out_and_counted",),
    ),
    Bug(
        "cache_key_without_template",
        "after a change of the chat template the run trains on what the old one rendered",
        "datasets/fingerprint.py",
        'asdict(settings) | {"tokenizer_chat_template": template_text(tokenizer, settings)}',
        'asdict(settings) | {"tokenizer_chat_template": None}',
        (f"{_CACHE}::test_the_fingerprint_sees_every_change",),
    ),
    Bug(
        "cache_key_without_content",
        "after a change of the rows the run trains on the old ones",
        "datasets/fingerprint.py",
        "[[table.name, table.content_hash(known)] for",
        "[[table.name] for",
        (f"{_CACHE}::test_the_fingerprint_sees_every_change",),
    ),
    Bug(
        "mix_repeats_rows",
        "a mix of sources trains some rows twice and others never",
        "datasets/sources/mixing.py",
        "return np.sort(generator.permutation(num_rows)[:num_taken])",
        "return np.sort(generator.integers(0, num_rows, num_taken))",
        ("tests/datasets/test_sources.py::test_a_mix_repeats_and_loses_no_row",),
    ),
]
