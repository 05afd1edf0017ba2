"""Bugs in the rewards of answers, in the choice among them, and in the reports of both."""

from __future__ import annotations

from tests.planted.bug import Bug

_POLICIES = "tests/rejection/test_policies.py"
_SCORE = "tests/rejection/test_score.py"
_SELECT = "tests/rejection/test_select.py"
_SLOW_LOOPS = f"{_POLICIES}::test_every_policy_picks_what_slow_loops_pick"
_FAILURES = f"{_SCORE}::test_a_failure_is_no_verdict_with_its_reason_and_spoils_no_other_answer"

BUGS = [
    Bug(
        "ties_by_the_order_of_the_file",
        "of equal rewards the first in the file is trained on: another order of the engine, another selection",
        "rejection/candidates.py",
        "np.lexsort((self.tie[numbers], -self.reward[numbers], self.prompt[numbers]))",
        "np.lexsort((-self.reward[numbers], self.prompt[numbers]))",
        (f"{_POLICIES}::test_the_order_of_the_rows_changes_nothing",),
    ),
    Bug(
        "pairs_of_equal_rewards",
        "train_dpo learns to prefer one of two equal answers",
        "rejection/policies.py",
        "reward[best] > reward[worst]",
        "reward[best] >= reward[worst]",
        (f"{_POLICIES}::test_pairs_are_never_of_equal_rewards_or_texts",),
    ),
    Bug(
        "pairs_of_equal_texts",
        "an answer is chosen and rejected at once",
        "rejection/policies.py",
        "            if text[best] != text[worst]:\n",
        "            if best != worst:\n",
        (f"{_POLICIES}::test_pairs_are_never_of_equal_rewards_or_texts",),
    ),
    Bug(
        "no_verdict_is_zero_in_the_selection",
        "an answer that could not be judged counts as a wrong one",
        "rejection/candidates.py",
        "math.isfinite(reward) else math.nan",
        "math.isfinite(reward) else 0.0",
        (f"{_POLICIES}::test_the_reasons_are_counted_by_the_first_that_holds",),
    ),
    Bug(
        "truncated_answers_selected",
        "the model learns answers without an end",
        "rejection/policies.py",
        "    if not settings.keep_truncated:\n",
        "    if not settings:\n",
        (_SLOW_LOOPS,),
    ),
    Bug(
        "pass_rate_of_what_is_left",
        "a prompt's pass rate depends on which of its answers were cut",
        "rejection/policies.py",
        "        candidates.prompt[numbers], candidates.reward[numbers], least, len(candidates.prompt_ids)\n",
        "        candidates.prompt[numbers][~candidates.is_truncated[numbers]],\n"
        "        candidates.reward[numbers][~candidates.is_truncated[numbers]],\n"
        "        least,\n        len(candidates.prompt_ids),\n",
        (_SLOW_LOOPS,),
    ),
    Bug(
        "control_by_reward",
        "the random control is picked by reward too",
        "rejection/policies.py",
        "    allowed = allowed[np.argsort(_shuffled(candidates.tie[allowed], settings.seed))]\n",
        "    allowed = allowed[np.argsort(-candidates.reward[allowed])]\n",
        (f"{_POLICIES}::test_the_control_does_not_follow_the_rewards",),
    ),
    Bug(
        "lengths_not_matched",
        "--select.match_lengths changes nothing",
        "rejection/policies.py",
        "    if not settings.match_lengths:\n",
        "    if settings.match_lengths:\n",
        (f"{_POLICIES}::test_matched_lengths_are_those_of_the_selection_bin_by_bin",),
    ),
    Bug(
        "biased_pass_at_k",
        "pass@k is 1 - (1 - c/n)^k, which is too low for few answers",
        "rejection/statistics.py",
        "np.clip(num_answers - num_passed - drawn, 0, None) / (num_answers - drawn)",
        "(num_answers - num_passed) / num_answers",
        ("tests/rejection/test_statistics.py::test_pass_at_k_is_the_share_of_all_draws[2-2]",),
    ),
    Bug(
        "failure_is_zero",
        "a function that raises, hangs or dies gives a reward of 0",
        "rejection/rewards/reward.py",
        "            return [RewardVerdict(None, str(error))]\n",
        "            return [RewardVerdict(0.0)]\n",
        (f"{_FAILURES}[1]",),
    ),
    Bug(
        "failure_spoils_the_batch",
        "one answer that a function fails at takes the rewards of its batch away",
        "rejection/rewards/reward.py",
        "        if len(rows) == 1:\n            return [RewardVerdict(None, str(error))]\n",
        "        return [RewardVerdict(None, str(error)) for _ in rows]\n",
        (f"{_FAILURES}[6]",),
    ),
    Bug(
        "children_of_functions_stay",
        "what a function has started runs on after the function was killed",
        "rejection/rewards/process.py",
        "                os.killpg(self._process.pid, signal.SIGKILL)\n",
        "                os.kill(self._process.pid, signal.SIGKILL)\n",
        (f"{_SCORE}::test_what_a_killed_function_has_started_dies_with_it",),
    ),
    Bug(
        "processes_outlive_the_stage",
        "functions of a killed stage run on beside the one that is started next",
        "rejection/rewards/process.py",
        "    _end_with_parent(socket_fd, of_parent)\n",
        "",
        (f"{_SCORE}::test_functions_end_with_the_stage_however_that_ends",),
    ),
    Bug(
        "scored_again",
        "a stage that goes on judges all answers again",
        "rejection/score.py",
        "        if (identity := identity_of(row)) not in done:\n",
        "        if (identity := identity_of(row)) or done:\n",
        (f"{_SCORE}::test_what_is_scored_before_a_kill_is_not_scored_again",),
    ),
    Bug(
        "function_changed_unnoticed",
        "rewards of two versions of a function stand in one output",
        "rejection/score.py",
        '    inputs |= {f"the reward {reward.name}": reward.content for reward in rewards if reward.content}\n',
        "",
        (f"{_SCORE}::test_a_finished_stage_is_not_scored_again_and_another_is_refused",),
    ),
    Bug(
        "sum_without_the_failed",
        "where one of several rewards fails, the sum of the others stands for all",
        "rejection/score.py",
        " and not any(one.has_failed for one in verdicts)",
        "",
        (f"{_SCORE}::test_several_rewards_are_weighted_and_a_failed_one_leaves_no_sum",),
    ),
    Bug(
        "another_selection_overwritten",
        "a selection with other settings takes the place of the first",
        "rejection/select.py",
        "    if changes := differences(stats, identity):\n",
        "    if changes := differences(stats, identity) and []:\n",
        (f"{_SELECT}::test_the_same_selection_is_not_made_again_and_another_is_refused",),
    ),
    Bug(
        "texts_run_in_the_report",
        "an answer can run a script in the report",
        "rejection/report.py",
        "    return escape(text[:MAX_CHARACTERS]) + cut\n",
        "    return text[:MAX_CHARACTERS] + cut\n",
        (f"{_SELECT}::test_the_report_shows_numbers_pictures_and_samples_and_runs_nothing_of_them",),
    ),
    Bug(
        "what_stands_beside_the_text_is_lost",
        "reasoning and tool calls are asked for, and never trained on or judged",
        "rejection/answer.py",
        "for name in BESIDE_THE_TEXT if row.get(name)}",
        "for name in () if row.get(name)}",
        (
            f"{_SELECT}::test_what_stands_beside_the_text_is_trained_on",
            f"{_SCORE}::test_a_function_sees_what_stands_beside_the_text",
        ),
    ),
    Bug(
        "tool_calls_are_an_empty_answer",
        "answers that call a tool are left out as empty, and all as one text",
        "rejection/candidates.py",
        'calls = text.strip(), row.get("tool_calls")',
        "calls = text.strip(), None",
        (f"{_SELECT}::test_what_stands_beside_the_text_is_trained_on",),
    ),
    Bug(
        "a_column_of_the_data_is_the_models_reasoning",
        "the reasoning of a row of the data set is trained on as the model's",
        "rejection/prompts.py",
        '"provenance", *BESIDE_THE_TEXT,',
        '"provenance",',
        ("tests/rejection/test_generate.py::test_a_column_with_a_name_of_ours_is_kept_under_another",),
    ),
    Bug(
        "another_pass_reward_is_passed_over",
        "finished scores tell the pass rate of another bar",
        "rejection/score.py",
        'return stats if stats["pass_reward"] == pass_reward else',
        "return stats if pass_reward > -1 else",
        (f"{_SCORE}::test_another_pass_reward_counts_finished_scores_anew_and_judges_nothing",),
    ),
    Bug(
        "a_loop_a_call",
        "an asynchronous reward that keeps a client fails from its second call on",
        "rejection/rewards/reward.py",
        "@functools.cache\ndef _loop()",
        "def _loop()",
        (f"{_SCORE}::test_an_asynchronous_function_may_keep_what_is_bound_to_its_loop",),
    ),
]
