"""Planted bugs of chat templates, tokenizers and rows that come in more than one shape."""

from __future__ import annotations

from tests.planted.bug import Bug

_BAD = "tests/datasets/test_bad_input.py"
_FORMATS = "tests/datasets/test_formats.py"
_PROGRESS = "tests/datasets/test_progress.py"
_REFUSALS = "tests/datasets/test_refusals.py"
_SOURCES = "tests/datasets/test_sources.py"
_TURNS = "datasets/tokenization/turns.py"
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
    Bug(
        "results_of_tools_are_trained_as_the_answer",
        "a model is taught to make up what its tools answer, where the template prints results in the call's round",
        _TURNS,
        "        self._check_no_results(conversation, render, turns)\n",
        "",
        (f"{_REFUSALS}::test_results_of_tools_within_an_answer_are_not_trained",),
    ),
    Bug(
        "loops_over_no_message_print_marks",
        "a template that asks how long a text is that it made in a loop is refused with conversations of tools",
        "datasets/tokenization/marked_template.py",
        '            self._open_loops.append(False)\n            return ""\n',
        '            self._open_loops.append(True)\n            return _mark("L")\n',
        (f"{_REFUSALS}::test_a_template_may_ask_how_long_a_text_is_that_it_makes_in_a_loop",),
    ),
    Bug(
        "reasoning_behind_a_result_is_a_header",
        "answers that reason behind a tool's result are refused with Gemma 4's template",
        _TURNS,
        "if before.strip() and not _REASONING_SCAFFOLD.match(before) and not self._is_reasoning(before, message):",
        "if before.strip() and not _REASONING_SCAFFOLD.match(before):",
        (f"{_REFUSALS}::test_reasoning_that_goes_on_behind_a_result_is_a_part_of_the_answer",),
    ),
    Bug(
        "a_token_that_ends_a_call_closes_the_turn",
        "a model is not taught to stop behind its calls, and its exported copy stops at </tool_call>",
        _TURNS,
        "if token.special or token.content == self._eos}",
        "}",
        (f"{_REFUSALS}::test_a_token_that_ends_a_call_does_not_close_the_turn",),
    ),
    Bug(
        "content_beside_a_call_is_never_null",
        "all tool calls are refused with DeepSeek-R1-Distill's template",
        "datasets/tokenization/chat_template.py",
        "        if self.content_as_null:\n",
        "        if not messages:\n",
        (f"{_REFUSALS}::test_calls_are_printed_where_the_template_wants_null_beside_them",),
    ),
    Bug(
        "a_template_of_the_tokenizer_cannot_be_named",
        "--data.tokenizer_chat_template tool_use is refused as no file",
        "datasets/tokenization/chat_template.py",
        "names = {**NAMED_TEMPLATES, **templates_by_name(tokenizer)}",
        "names = {**NAMED_TEMPLATES}",
        (f"{_REFUSALS}::test_a_tokenizer_with_several_templates_is_asked_by_name",),
    ),
    Bug(
        "tools_are_rendered_by_a_template_without_them",
        "rows with tools are trained in the form of the default template, though there is one for tools",
        "datasets/tokenization/encoder.py",
        "if content.tools and self._passes_over_tools:",
        "if not content.messages and self._passes_over_tools:",
        (f"{_REFUSALS}::test_a_tokenizer_with_several_templates_is_asked_by_name",),
    ),
    Bug(
        "a_tokenizer_without_offsets_ends_in_a_traceback",
        "a SentencePiece tokenizer ends in an AttributeError in place of words",
        "datasets/prepare.py",
        "    check_gives_offsets(tokenizer)\n",
        "",
        (f"{_REFUSALS}::test_a_tokenizer_without_offsets_is_refused_in_words",),
    ),
    Bug(
        "preparing_data_shows_nothing",
        "a user sees nothing for the hour in which the data are prepared",
        "datasets/prepare.py",
        "        self.bar.update(result.num_rows_taken)\n",
        "",
        (f"{_PROGRESS}::test_rows_are_counted_on_a_bar",),
    ),
    Bug(
        "who_waits_says_so_again_and_again",
        "a log fills with lines of who waits for prepared data",
        "datasets/cache.py",
        "            self._tell_at = None\n",
        "",
        (f"{_PROGRESS}::test_who_waits_says_so_once",),
    ),
    Bug(
        "a_killed_tokenizing_process_ends_in_a_traceback",
        "a user whose memory ran out reads BrokenProcessPool",
        "datasets/workers.py",
        "except BrokenProcessPool as error:",
        "except ZeroDivisionError as error:",
        (f"{_PROGRESS}::test_a_process_that_the_system_kills_is_told_in_words",),
    ),
    Bug(
        "a_column_nobody_asked_for_hides_the_messages",
        "rows with messages and a column 'input' are all refused where input_key is OpenRLHF's default",
        "datasets/formats/chat.py",
        "(data.input_key != DEFAULT_INPUT_KEY or usual is None)",
        "True",
        (f"{_FORMATS}::test_messages_are_read_beside_a_column_that_nobody_asked_for_by_name",),
    ),
    Bug(
        "end_token_stands_twice",
        "texts that end with the end token are trained with two where the tokenizer adds one",
        "datasets/tokenization/encoder.py",
        "return int(ends_twice and not tokens.ending_behind(0)[-1])",
        "return 0",
        (f"{_FORMATS}::test_end_token_is_there_once_where_the_tokenizer_adds_one_too",),
    ),
    Bug(
        "the_key_does_not_see_that_special_tokens_are_split",
        "a tokenizer that reads special tokens as text is given the samples of one that does not",
        "datasets/fingerprint.py",
        'return hash_of([*facts, "split"] if tokenizer.split_special_tokens else facts)',
        "return hash_of(facts)",
        ("tests/datasets/test_cache.py::test_the_fingerprint_sees_how_a_tokenizer_splits",),
    ),
    Bug(
        "a_stream_is_read_to_its_end",
        "a streaming data set is read whole, and then ends in a traceback",
        "datasets/sources/find.py",
        'if not hasattr(dataset, "__len__"):',
        "if dataset is None:",
        (f"{_BAD}::test_a_stream_of_rows_is_refused_before_it_is_read",),
    ),
    Bug(
        "a_file_of_several_splits_gives_its_train",
        "an evaluation of the split test is one of the training rows, where both stand in one file",
        "datasets/sources/readers.py",
        "if len(filled) > 1:",
        "if len(filled) > 9:",
        (f"{_BAD}::test_a_file_of_several_splits_is_not_read_as_one_of_them",),
    ),
    Bug(
        "lines_with_a_list_data_are_broken_json",
        "JSONL in a file named .json, whose rows have a list column data, is told to be broken",
        "datasets/sources/readers.py",
        "not (is_alone and _lists_in(value, WRAPPER_KEYS))",
        "not _lists_in(value, WRAPPER_KEYS)",
        (f"{_SOURCES}::test_every_kind_of_file_gives_the_same_samples",),
    ),
    Bug(
        "a_compression_in_capitals_is_unknown",
        "rows.jsonl.GZ is refused as of an unknown kind",
        "config/disk.py",
        "path.suffix.lower() in COMPRESSIONS",
        "path.suffix in COMPRESSIONS",
        (f"{_SOURCES}::test_every_kind_of_file_gives_the_same_samples",),
    ),
    Bug(
        "a_tsv_in_capitals_has_commas",
        "rows.TSV is read with commas between its columns",
        "datasets/sources/readers.py",
        'if ".tsv" in path.name.lower() else',
        'if ".tsv" in path.name else',
        (f"{_SOURCES}::test_every_kind_of_file_gives_the_same_samples",),
    ),
    Bug(
        "a_picture_with_a_caption_is_its_caption",
        "a part with a picture, or a thought, is trained as the text beside it without a word",
        "datasets/formats/chat.py",
        "if not is_text or _filled(part).keys() - _KEYS_OF_TEXT:",
        'if not isinstance(part.get("text"), str):',
        (f"{_FORMATS}::test_a_row_that_cannot_be_used_says_why",),
    ),
    Bug(
        "pictures_beside_the_messages_are_no_news",
        "rows with pictures are trained without them, and nobody says so",
        "datasets/formats/chat.py",
        "for name in MEDIA if row.get(name) not in _NOTHING}",
        "for name in MEDIA if False}",
        (f"{_FORMATS}::test_pictures_beside_the_messages_are_told_not_to_be_read",),
    ),
]
