"""Bugs in what stages leave, and in who is asked for which answers."""

from __future__ import annotations

from tests.planted.bug import Bug

_RECORDS = "tests/rejection/test_records.py"
_GENERATE = "tests/rejection/test_generate.py"
_SERVER = "tests/rejection/test_openai_engine.py"
_ITERATE = "tests/rejection/test_iterate.py"
_IN_PROCESS = "tests/rejection/test_transformers_engine.py"

BUGS = [
    Bug(
        "row_behind_a_torn_line",
        "the first answer after a crash is glued to a torn line, and lost",
        "rejection/records.py",
        "        self._file.truncate(self._size_bytes)\n\n",
        "\n",
        (f"{_RECORDS}::test_a_torn_last_line_is_counted_and_cut_before_the_next_row",),
    ),
    Bug(
        "torn_line_counted_as_a_row",
        "a line without its end counts as kept, and is cut away later",
        "rejection/records.py",
        '    if not line.endswith(b"\\n"):\n        return None\n',
        "",
        (f"{_RECORDS}::test_a_torn_last_line_is_counted_and_cut_before_the_next_row",),
    ),
    Bug(
        "half_a_line_on_a_full_disk",
        "a full disk leaves half a line in the middle of a shard",
        "rejection/records.py",
        "        except OSError as error:\n            self._file.truncate(self._size_bytes)\n",
        "        except OSError as error:\n",
        (f"{_RECORDS}::test_a_full_disk_is_told_and_what_was_written_stays",),
    ),
    Bug(
        "equal_prompts_merged",
        "rows of one prompt with two labels share their answers",
        "rejection/prompts.py",
        'key if times[key] == 1 else f"{key}-{times[key]}"',
        "key",
        (f"{_GENERATE}::test_equal_prompts_of_two_rows_are_asked_and_labelled_each_for_itself",),
    ),
    Bug(
        "seed_of_the_prompt_alone",
        "all answers to a prompt are drawn with one seed",
        "rejection/prompts.py",
        'f"{seed} {prompt_id} {sample_index}"',
        'f"{seed} {prompt_id}"',
        (f"{_GENERATE}::test_a_row_holds_what_the_contract_says",),
    ),
    Bug(
        "answers_asked_for_again",
        "an answer that another rank has kept is asked for twice",
        "rejection/generate.py",
        "if not answered >> index & 1]",
        "if answered >> index < 1 or not index]",
        (f"{_GENERATE}::test_what_is_there_is_not_asked_for_again_by_another_engine_or_number_of_ranks",),
    ),
    Bug(
        "ranks_share_what_is_missing",
        "every rank asks for all prompts",
        "rejection/generate.py",
        "itertools.islice(self._prompts, self._rank, None, self._num_ranks)",
        "iter(self._prompts)",
        (f"{_GENERATE}::test_what_is_there_is_not_asked_for_again_by_another_engine_or_number_of_ranks",),
    ),
    Bug(
        "temperature_changed_in_an_output",
        "answers of two temperatures are mixed in one output",
        "config/generate_settings.py",
        "temperature: Number = must_match(",
        "temperature: Number = free(",
        (f"{_GENERATE}::test_other_settings_or_weights_are_another_output",),
    ),
    Bug(
        "one_generator_for_all_rows",
        "an answer depends on the place of its row",
        "rejection/engines/transformers_engine.py",
        "row.draws[min(len(row.answer_ids), row.max_new_tokens - 1)] for row in rows]",
        "rows[0].draws[min(len(row.answer_ids), row.max_new_tokens - 1)] for row in rows]",
        (f"{_IN_PROCESS}::test_an_answer_does_not_depend_on_its_neighbours",),
    ),
    Bug(
        "cache_joined_on_the_wrong_side",
        "a row that joins a longer batch attends to padding",
        "rejection/engines/row_cache.py",
        "pad(part, (0, 0, width - part.shape[2], 0))",
        "pad(part, (0, 0, 0, width - part.shape[2]))",
        (f"{_IN_PROCESS}::test_an_answer_does_not_depend_on_its_neighbours",),
    ),
    Bug(
        "nonsense_kept_as_an_answer",
        "an answer without its end is kept as if it were whole",
        "rejection/engines/openai_engine.py",
        "if not isinstance(reason, str) or reason in _GIVEN_UP:",
        "if reason in _GIVEN_UP:",
        (f"{_SERVER}::test_failures_that_pass_are_tried_again",),
    ),
    Bug(
        "answers_beside_a_failure_lost",
        "what came together with a failure is thrown away",
        "rejection/engines/openai_engine.py",
        "                    for future in done.difference(failed):  # what has come is kept, whatever else fails\n"
        "                        yield future.result()\n"
        "                    for future in failed:\n"
        "                        future.result()\n",
        "                    for future in done:\n                        future.result()\n"
        "                    for future in done:\n                        yield future.result()\n",
        (f"{_SERVER}::test_answers_that_come_beside_a_failure_are_kept",),
    ),
    Bug(
        "next_iteration_asks_the_base",
        "every iteration's answers are the first model's",
        "rejection/plan.py",
        "model = GeneratorConfig(self.model(iteration - 1), config.model.trust_remote_code)",
        "model = GeneratorConfig(self.model(0), config.model.trust_remote_code)",
        (f"{_ITERATE}::test_iterations_leave_what_the_documents_say",),
    ),
    Bug(
        "control_trained_on_the_selection",
        "the control is a second model of the selected answers",
        "rejection/iterate.py",
        "self._train(of, Path(chosen[of].select.output))",
        'self._train(of, Path(chosen[""].select.output))',
        (f"{_ITERATE}::test_iterations_leave_what_the_documents_say",),
    ),
    Bug(
        "model_trained_again",
        "a restart trains models that are finished",
        "rejection/iterate.py",
        'if noted.get("model") == model_fingerprint(model) and noted.get("inputs") == inputs:',
        "if not noted:",
        (f"{_ITERATE}::test_kills_at_random_instants_leave_the_same_run",),
    ),
    Bug(
        "stale_steps_not_followed",
        "a changed selection is told, the model that was trained on it is not",
        "rejection/plan.py",
        "        elif changed or is_stale:",
        "        elif changed:",
        (f"{_ITERATE}::test_a_changed_setting_tells_what_it_makes_stale",),
    ),
    Bug(
        "long_prompts_end_the_stage",
        "vLLM's answers end where all prompts that it takes at once are too long",
        "rejection/engines/vllm_engine.py",
        "if not taken and not asked:",
        "if not asked and next(numbers):",
        ("tests/rejection/test_vllm_engine.py::test_prompts_that_are_too_long_end_nothing",),
    ),
    Bug(
        "key_is_lost_on_the_way",
        "the trainings of rejection sampling do not get the key of Weights & Biases",
        "rejection/iterate.py",
        "{KEY_VARIABLE: key} if key else None",
        "None",
        (f"{_ITERATE}::test_a_key_reaches_the_training_and_no_file",),
    ),
    Bug(
        "asked_and_trained_as_other_tokens",
        "a recipe trains on the characters of the control tokens that its prompts were asked with",
        "config/iterate_settings.py",
        '        "keep", "control tokens',
        '        "text", "control tokens',
        (f"{_ITERATE}::test_a_prompt_is_trained_on_by_the_tokens_that_it_was_asked_with",),
    ),
    Bug(
        "trained_as_other_tokens_unnoticed",
        "a model that was trained on other tokens counts as finished",
        "rejection/plan.py",
        ', "data.eos_token", "data.control_tokens"),',
        "),",
        (f"{_ITERATE}::test_a_changed_setting_tells_what_it_makes_stale",),
    ),
    Bug(
        "calls_are_sent_as_objects",
        "servers refuse every conversation with a tool call in it",
        "rejection/engines/openai_engine.py",
        "[with_arguments_as_text(message) for message in prompt.content]",
        "list(prompt.content)",
        (f"{_SERVER}::test_calls_of_a_conversation_are_sent_as_the_protocol_has_them",),
    ),
]
