"""Bugs of pairs as data: two answers of one row, what is judged of them, and what is left out."""

from __future__ import annotations

from tests.planted.bug import Bug

_TESTS = "tests/datasets/test_pairs.py"
_DATASET_TESTS = "tests/datasets/test_pair_dataset.py"
_FORMAT = "datasets/formats/pairs.py"
_ENCODER = "datasets/tokenization/pairs.py"
_DATASET = "datasets/pair_dataset.py"
_LOOK = "tests/inspection/test_pairs.py"
_TEXTS = "rejection/reward_scorer.py"
_TEXT_TESTS = "tests/rejection/test_reward_scorer.py"

BUGS = [
    Bug(
        "answers_of_a_pair_swapped",
        "the model learns to prefer the worse answers",
        _ENCODER,
        "return of_chosen, of_rejected",
        "return of_rejected, of_chosen",
        (f"{_TESTS}::test_the_targets_are_the_answers_and_their_end",),
    ),
    Bug(
        "shared_beginning_cut_by_characters",
        "the two answers of a text are judged behind different tokens",
        _ENCODER,
        "first = min(num_shared, *first_targets)",
        "first = first_targets[0]",
        (f"{_TESTS}::test_a_shared_beginning_is_the_same_tokens_on_both_sides",),
    ),
    Bug(
        "texts_without_a_shared_token_are_trained",
        "the first tokens of both answers are taken for their prompt",
        _ENCODER,
        "if first == 0:",
        "if num_both == 0:",
        (f"{_TESTS}::test_a_pair_that_cannot_be_used_is_told_with_its_row",),
    ),
    Bug(
        "identical_answers_are_trained",
        "pairs that say nothing count as pairs",
        _ENCODER,
        "if np.array_equal(chosen.input_ids, rejected.input_ids):",
        "if pair.chosen is pair.rejected:",
        (f"{_TESTS}::test_identical_answers_are_left_out_and_counted",),
    ),
    Bug(
        "weight_of_a_pair_counts_twice",
        "a pair of weight 0.25 weighs 0.0625",
        _ENCODER,
        "sample = encoder.encode(content)",
        "sample = encoder.encode(content, 0.25)",
        (f"{_DATASET_TESTS}::test_a_unit_holds_margin_weight_and_place",),
    ),
    Bug(
        "message_weights_of_pairs_are_ignored",
        "a message that should count half counts whole, without a word",
        _ENCODER,
        "if sample.is_weighted:",
        "if sample.row_weight != 1:",
        (f"{_TESTS}::test_a_pair_that_cannot_be_used_is_told_with_its_row",),
    ),
    Bug(
        "margin_of_the_neighbour",
        "a pair is held to the margin of another",
        _DATASET,
        '{"margin": self.samples.margin(first)}',
        '{"margin": self.samples.margin(int(row))}',
        (f"{_DATASET_TESTS}::test_several_blocks_and_processes_keep_both_sides_together",),
    ),
    Bug(
        "margins_that_are_no_number_pass",
        "one NaN margin makes the loss of its whole step NaN",
        "datasets/prepared.py",
        "return 0.0 if math.isnan(margin) else margin",
        "return margin",
        (f"{_TESTS}::test_a_margin_that_nobody_reads_and_a_system_beside_texts_are_told",),
    ),
    Bug(
        "prompt_of_other_conversations",
        "answers to one question are trained as answers to another",
        _FORMAT,
        'all((message["role"], message["content"].strip()) in known for message in before)',
        "not before or bool(known)",
        (f"{_TESTS}::test_a_pair_that_cannot_be_used_is_told_with_its_row",),
    ),
    Bug(
        "messages_as_json_are_trained_as_text",
        "a model learns to write JSON where a table holds its messages as text",
        _FORMAT,
        "        if is_message_list(messages) and ",
        "        if False and ",
        (f"{_TESTS}::test_the_targets_are_the_answers_and_their_end",),
    ),
    Bug(
        "sides_of_a_pair_counted_as_rows",
        "the report tells twice as many pairs as there are",
        "datasets/prepared.py",
        "num_rows=len(set(rows)),",
        "num_rows=len(rows),",
        (f"{_TESTS}::test_identical_answers_are_left_out_and_counted",),
    ),
    Bug(
        "lengths_of_one_side",
        "micro-batches are laid out by the chosen answers alone, and overflow",
        _DATASET,
        "return chosen, rejected\n\n    def sample_name",
        "return chosen, chosen\n\n    def sample_name",
        (f"{_DATASET_TESTS}::test_a_unit_holds_margin_weight_and_place",),
    ),
    Bug(
        "padding_of_pairs_counted_as_of_rows",
        "inspect_data tells that pairs waste nothing, and half of what is computed is padding",
        "inspection/statistics.py",
        "one.max() * one.size",
        "one.max() * len(one)",
        (f"{_LOOK}::test_the_padding_is_that_of_both_sides",),
    ),
    Bug(
        "longer_answers_counted_the_other_way",
        "inspect_data hides that the longer answers are the chosen ones",
        "inspection/statistics.py",
        "(answers[:, 0] > answers[:, 1]).mean()",
        "(answers[:, 0] < answers[:, 1]).mean()",
        (f"{_LOOK}::test_the_facts_tell_whose_answers_are_longer_and_what_is_left_out",),
    ),
    Bug(
        "what_differs_is_counted_from_the_prompt",
        "inspect_data marks other words than those that differ",
        "inspection/samples.py",
        "piece.first - first + token in places",
        "piece.first + token in places",
        (f"{_LOOK}::test_the_terminal_shows_the_prompt_once_and_what_differs",),
    ),
    Bug(
        "rows_of_fine_tuning_taken_for_pairs",
        "inspect_data shows other samples than train_sft trains",
        _DATASET,
        "        return True\n    return False",
        "        return True\n    return True",
        (f"{_LOOK}::test_rows_that_train_sft_can_train_on_are_shown_as_it_trains_them",),
    ),
    Bug(
        "calls_as_json_are_trained_as_text",
        "an answer that is a tool call in JSON is trained as the JSON's letters",
        _FORMAT,
        "not {*_SAYS, *_CALLS}.isdisjoint(messages[0])",
        "not {*_SAYS}.isdisjoint(messages[0])",
        (f"{_TESTS}::test_messages_as_json_may_be_calls_alone",),
    ),
    Bug(
        "turns_that_both_answers_share_are_refused",
        "pairs of a prompt and two conversations that go on from it are refused",
        _FORMAT,
        'if shared[0]["role"] == "assistant" and not _is_part_of(',
        "if not shared and not _is_part_of(",
        (f"{_TESTS}::test_the_targets_are_the_answers_and_their_end",),
    ),
    Bug(
        "a_system_beside_texts_is_passed_over",
        "a column with system messages is left out of pairs of texts without a word",
        _FORMAT,
        "not_read(row, _columns_read(data)) if isinstance(pair.chosen, PlainText) else ()",
        "()",
        (f"{_TESTS}::test_a_margin_that_nobody_reads_and_a_system_beside_texts_are_told",),
    ),
    Bug(
        "a_loss_with_margins_trains_without_any",
        "--model.margin_loss_enable trains the plain loss where the column is missing or misspelt",
        _DATASET,
        "if needs_one and not has_one:",
        "if needs_one and not first:",
        (f"{_DATASET_TESTS}::test_a_margin_that_is_no_number_is_refused",),
    ),
    Bug(
        "a_template_of_ends_alone_is_no_template",
        "serve_rm reads the reward at the wrong token where a template prints no token but start, end and padding",
        _TEXTS,
        "marks = {text_before_answer(tokenizer).strip(), *(token for token in specials if token in printed)}",
        "marks = {*specials} - {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}",
        (f"{_TEXT_TESTS}::test_a_rendered_text_has_the_reward_of_its_messages",),
    ),
    Bug(
        "a_part_of_the_end_is_doubled",
        "a text that ends with a part of what the template prints has it twice",
        _TEXTS,
        "text.removesuffix(begun) + self._end_of_turn",
        "text + self._end_of_turn",
        (f"{_TEXT_TESTS}::test_a_rendered_text_has_the_reward_of_its_messages",),
    ),
    Bug(
        "padding_in_front_is_scored",
        "texts that are padded on the left have other rewards",
        _TEXTS,
        "        text = text[_length_of_run(self._padding, text) :]\n",
        "",
        (f"{_TEXT_TESTS}::test_padding_in_front_of_a_plain_text_is_not_scored",),
    ),
    Bug(
        "ends_take_time_in_their_square",
        "one text of many end tokens holds serve_rm up for all others",
        _TEXTS,
        "        return text[: len(text) - _length_of_run(self._end, text[::-1])]\n",
        "        while found := self._end.match(text[::-1]):\n"
        "            text = text[: len(text) - found.end()]\n"
        "        return text\n",
        (f"{_TEXT_TESTS}::test_many_ends_take_little_time",),
    ),
    Bug(
        "what_is_much_too_long_is_tokenized",
        "one text of many megabytes holds serve_rm up for all others",
        _TEXTS,
        'PairDataConfig(max_len=self.max_len, overlong="error", apply',
        'PairDataConfig(max_len=_NO_LIMIT, overlong="error", apply',
        (f"{_TEXT_TESTS}::test_what_is_too_long_without_doubt_is_not_tokenized",),
    ),
    Bug(
        "half_a_character_spoils_all_texts",
        "one rendered text that is no valid Unicode fails the requests of all clients",
        "datasets/tokenization/encoder.py",
        "ids = self._tokenize(text, add_special_tokens=False, is_control=None).ids",
        "ids = self._texts.tokenize(text, add_special_tokens=False).ids",
        (f"{_TEXT_TESTS}::test_what_cannot_be_scored_has_a_reason_and_no_reward",),
    ),
    Bug(
        "one_request_spoils_all_that_wait_beside_it",
        "a text that cannot be computed fails the requests of all clients that wait with it",
        "rejection/reward_queue.py",
        "        for request in requests:  # behind the handler: the error's traceback may hold memory\n"
        "            self._answer([request])\n",
        "        for _, future in requests:\n            future.set_exception(RuntimeError())\n",
        ("tests/rejection/test_reward_server.py::test_a_request_that_fails_spoils_no_other",),
    ),
    Bug(
        "clients_that_have_gone_are_served",
        "serve_rm computes rewards that nobody waits for any more",
        "rejection/reward_server.py",
        "        answer.cancel()\n",
        "",
        ("tests/rejection/test_reward_server.py::test_nothing_is_computed_for_a_client_that_has_gone",),
    ),
]
