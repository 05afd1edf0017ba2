"""Bugs of the prompts that are answered while a model trains, and of answers to be judged."""

from __future__ import annotations

from tests.planted.bug import Bug

_TESTS = "tests/runs/test_answers.py"
_REWARDS, _SCORE = "tests/rejection/test_rewards.py", "tests/rejection/test_score.py"

BUGS = [
    Bug(
        "answers_run_past_their_end",
        "what stands behind an answer's end token is shown as part of it",
        "run/answering.py",
        "yield self._encoder.decode(prompt, row[:end])",
        "yield self._encoder.decode(prompt, row)",
        (f"{_TESTS}::test_an_answer_ends_at_its_end_token",),
    ),
    Bug(
        "no_verdict_counts_as_nothing",
        "an answer that the judge passes over lowers the mean",
        "run/answering.py",
        '{"answer_reward": sum(given) / len(given)}',
        '{"answer_reward": sum(given) / len(rows)}',
        (f"{_TESTS}::test_the_mean_of_the_judge_stands_in_the_record_of_the_step",),
    ),
    Bug(
        "ranks_answer_the_same_prompts",
        "the prompts of the second rank are never answered",
        "run/answering.py",
        "(groups.data_rank * share + place) % len(self._prompts)",
        "place",
        (f"{_TESTS}::test_every_prompt_is_answered_every_three_steps_and_at_the_end",),
    ),
    Bug(
        "a_step_that_was_not_finite_is_no_news",
        "the page of a run says nothing of steps without a finite loss",
        "run/report.py",
        'record["loss"] is None or',
        "False or",
        (f"{_TESTS}::test_a_step_that_was_not_finite_is_told_on_the_page",),
    ),
    Bug(
        "nobody_waits_for_the_judge",
        "a rank that has a slow judge to wait for is taken for one that is stuck",
        "run/answering.py",
        "if problems := gather_problems(problem, trainer.strategy.groups.control):",
        "if problems := [problem] if problem else []:",
        (f"{_TESTS}::test_the_watchdog_lets_a_judge_take_its_time",),
    ),
    Bug(
        "answers_before_leaving",
        "a run that is asked to leave answers prompts first, and is killed before it has saved",
        "run/answering.py",
        "if self._is_due(trainer) and not is_asked_to_leave(trainer.strategy.groups.control):",
        "if self._is_due(trainer):",
        (f"{_TESTS}::test_answers_that_were_due_when_the_run_left_are_made_when_it_goes_on",),
    ),
    Bug(
        "answers_that_were_due_are_skipped",
        "the answers after the step with which a run left are never made",
        "run/answering.py",
        "if trainer.progress.left_early and self._is_due(trainer) and",
        "if trainer.progress.finished and self._is_due(trainer) and",
        (f"{_TESTS}::test_answers_that_were_due_when_the_run_left_are_made_when_it_goes_on",),
    ),
    Bug(
        "answers_are_given_twice",
        "the answers in which a run was asked to leave stand twice in answers.jsonl",
        "run/answering.py",
        'steps = {one["global_step"] for one in read_records(self._file)} if is_there else set()',
        "steps = set() if is_there else set()",
        (f"{_TESTS}::test_answers_in_which_the_run_was_asked_to_leave_are_not_made_again",),
    ),
    Bug(
        "answers_run_past_the_end_of_a_turn",
        "a model that ends its turns otherwise than its tokenizer ends texts is judged by turns that it makes up",
        "run/answering.py",
        "end_ids = end_token_ids(self._tokenizer, base)",
        "end_ids = [self._tokenizer.eos_token_id]",
        (f"{_TESTS}::test_an_answer_ends_at_its_end_token",),
    ),
    Bug(
        "the_last_answers_are_given_twice",
        "each prompt stands twice for the last step of a run that went on from it",
        "run/answering.py",
        " and not self._has_answered(trainer):\n            self._answer(trainer)\n\n    def on_exit",
        ":\n            self._answer(trainer)\n\n    def on_exit",
        ("tests/runs/test_answers.py::test_answers_in_which_the_run_was_asked_to_leave_are_not_made_again",),
    ),
    Bug(
        "answers_of_all_prompts_or_none",
        "memory that runs out for many prompts at once leaves all answers out",
        "run/answering.py",
        "            elif len(batch) == 1:\n",
        "            elif True:\n",
        (f"{_TESTS}::test_answers_for_which_memory_runs_out_are_made_of_fewer_prompts_at_once",),
    ),
    Bug(
        "a_server_that_fails_at_all_costs_their_verdicts",
        "answers that a reward server in trouble was asked about are never judged",
        "rejection/rewards/server_reward.py",
        "if not any(map(self._works_for, self._probes(rows))):",
        "if False:",
        (f"{_REWARDS}::test_a_server_that_fails_at_all_it_is_asked_ends_the_stage_which_goes_on",),
    ),
    Bug(
        "one_answer_ends_the_stage_for_ever",
        "an answer on which alone a reward server fails keeps all others from being judged",
        "rejection/rewards/server_reward.py",
        "if not any(map(self._works_for, self._probes(rows))):",
        "if True:",
        (f"{_REWARDS}::test_an_answer_that_a_server_fails_at_alone_is_behind_those_that_it_has_judged",),
    ),
    Bug(
        "rows_of_other_labels_are_one",
        "an answer that stands with two labels is judged by the first alone",
        "rejection/candidates.py",
        "asked_for = () if label is None else",
        "asked_for = () if True else",
        (f"{_SCORE}::test_equal_rows_are_scored_once_and_told_and_rows_without_identity_get_one",),
    ),
    Bug(
        "repeated_rows_are_left_out_in_silence",
        "rows that score takes for repetitions are counted nowhere",
        "rejection/score.py",
        '"num_repeated": source.num_rows - len(done)',
        '"num_repeated": 0',
        (f"{_SCORE}::test_equal_rows_are_scored_once_and_told_and_rows_without_identity_get_one",),
    ),
    Bug(
        "broken_lines_are_no_news",
        "a selection says nowhere of how many lines it has stepped over",
        "rejection/select.py",
        "num_torn_lines = source.num_torn",
        "num_torn_lines = 0",
        ("tests/rejection/test_select.py::test_statistics_count_all_that_is_left_out",),
    ),
]
