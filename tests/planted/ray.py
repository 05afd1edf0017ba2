"""Bugs in what workers on Ray leave, in engines and rewards of other packages, and in reports."""

from __future__ import annotations

from tests.planted.bug import Bug

_RAY = "tests/rejection/test_ray.py"
_SCORER, _TRANSFORMERS = "tests/rejection/test_reward_scorer.py", "tests/rejection/test_transformers_engine.py"

BUGS = [
    Bug(
        "lost_range_forgotten",
        "what a killed node was at is never done",
        "parallel/ray_workers.py",
        "again.extend([] if given is None else [given])",
        "pass",
        (f"{_RAY}::test_scores_of_one_process_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "answers_in_the_order_they_came",
        "the bytes of a shard depend on who was faster",
        "rejection/generate.py",
        "sorted(rows, key=lambda row: order[_key(row)])",
        "rows",
        (f"{_RAY}::test_answers_of_one_worker_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "shards_of_a_dead_driver_made_again",
        "a driver that dies loses all shards",
        "datasets/shards.py",
        "if _facts_of(folder, given[0]).exists():",
        "if False:",
        (f"{_RAY}::test_a_driver_that_dies_loses_no_finished_shard",),
    ),
    Bug(
        "shards_counted_as_they_come",
        "lengths stand beside the samples of another shard",
        "datasets/prepared.py",
        "return shard, batch - (int(self._shard_ends[shard - 1]) if shard else 0)",
        "return shard, min(batch, int(self._shard_ends[0]) - 1)",
        (f"{_RAY}::test_prepared_data_of_one_process_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "one_death_ends_the_run",
        "a lost node ends the run on all the others",
        "parallel/ray_workers.py",
        "if self._num_deaths > _DEATHS_A_WORKER * (self.room() + 1):",
        "if self._num_deaths:",
        (f"{_RAY}::test_scores_of_one_process_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "vllm_rounds_float32",
        "vLLM in process answers with rounded weights, and nobody is told",
        "rejection/engines/vllm_engine.py",
        'param_dtype = saved_dtype(load_config(name_or_path, trust_remote_code), "bf16")',
        'param_dtype = "bf16"',
        ("tests/rejection/test_vllm_engine.py::test_weights_keep_the_type_that_they_are_saved_in",),
    ),
    Bug(
        "task_of_another_prompt",
        "an answer is judged by the task of another prompt",
        "rejection/rewards/environment.py",
        'task = tasks.get(_key(row["prompt"]))',
        "task = next(iter(tasks.values()))",
        ("tests/rejection/test_verifiers.py::test_the_task_of_the_prompt_judges_by_its_weighted_rewards",),
    ),
    Bug(
        "kept_shown_as_left_out",
        "the page of the iterations shows kept answers among those left out",
        "rejection/iterations_report.py",
        'split = {"kept": kept, "left out": ~kept}',
        'split = {"kept": ~kept, "left out": kept}',
        ("tests/rejection/test_iterate.py::test_the_page_shows_model_against_control_and_what_was_kept",),
    ),
    Bug(
        "answers_to_two_questions_are_a_pair",
        "prompts of one prompt_id are mixed: a pair has answers to two questions",
        "rejection/candidates.py",
        "elif self._hashes[number] != told:",
        "elif False:",
        ("tests/rejection/test_select.py::test_bad_input_is_told_in_words_and_leaves_nothing",),
    ),
    Bug(
        "a_token_that_the_model_lacks_ends_the_stage",
        "one answer with a token that was added to the tokenizer alone ends the scoring with a traceback",
        "rejection/reward_scorer.py",
        "return outside_vocabulary(self._config, ids) or ids",
        "return ids",
        (f"{_SCORER}::test_an_answer_with_a_token_that_the_model_lacks_has_no_reward",),
    ),
    Bug(
        "a_prompt_with_a_token_that_the_model_lacks_ends_the_stage",
        "one prompt with a token that was added to the tokenizer alone ends generate with a traceback",
        "rejection/engines/encoding.py",
        "if self._config is not None and (reason :=",
        "if self._config is None and (reason :=",
        (f"{_TRANSFORMERS}::test_one_prompt_that_cannot_be_encoded_or_read_is_left_out",),
    ),
    Bug(
        "a_prompt_that_the_template_refuses_ends_the_stage",
        "one prompt that the chat template refuses keeps all others from being answered",
        "rejection/engines/transformers_engine.py",
        "except PromptRefused as refused:",
        "except () as refused:",
        (f"{_TRANSFORMERS}::test_one_prompt_that_cannot_be_encoded_or_read_is_left_out",),
    ),
    Bug(
        "calls_that_are_none_are_kept",
        "a word of a server in the place of calls is kept as an answer, which select refuses",
        "rejection/engines/openai_engine.py",
        "if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):",
        "if False:",
        ("tests/rejection/test_openai_engine.py::test_calls_that_are_no_list_of_calls_are_no_answer",),
    ),
    Bug(
        "a_column_takes_the_place_of_another",
        "of the columns model and row_model one is lost",
        "rejection/prompts.py",
        "if both := next(",
        "if not True and next(",
        ("tests/rejection/test_generate.py::test_a_column_with_a_name_of_ours_is_kept_under_another",),
    ),
]
