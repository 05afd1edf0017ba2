"""Planted bugs of chat templates, tokenizers and rows that come in more than one shape."""

from __future__ import annotations

from tests.planted.bug import Bug

_REFUSALS = "tests/datasets/test_refusals.py"
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
]
