"""Bugs of the room objectives/: what is minimised, and what speaks for a whole sequence."""

from __future__ import annotations

from tests.planted.bug import Bug

_SFT = "tests/objectives/test_sft.py"
_PAIRS = "tests/objectives/test_pairs.py::test_a_pair_objective_equals_a_float64_loop"
_OWN_NUMBERS = "tests/runs/test_pairs.py::test_an_exported_reward_model_has_the_numbers_of_its_own_rewards_or_none"

BUGS = [
    Bug(
        "dft_is_nll",
        "--train.loss dft trains plain -log p",
        "objectives/sft.py",
        "return weights * log_probs.exp().to(weights.dtype)",
        "return weights * log_probs.exp().to(weights.dtype) ** 0",
        (f"{_SFT}::test_dft_weighs_each_token_by_its_probability[one by one]",),
    ),
    Bug(
        "dft_ignores_weights",
        "--train.loss dft forgets the weights of rows and turns, and the divisor",
        "objectives/sft.py",
        "weights = batch.target_weights / divisor\n\n        def times",
        "weights = batch.target_weights\n\n        def times",
        (f"{_SFT}::test_dft_weighs_each_token_by_its_probability[one by one]",),
    ),
    Bug(
        "dft_logs_nll",
        "the curve of a dft run is not that of its loss",
        "objectives/sft.py",
        '"loss": (-(exact.exp() * exact).sum(), len(exact))',
        '"loss": (-exact.sum(), len(exact))',
        (f"{_SFT}::test_dft_weighs_each_token_by_its_probability[all at once]",),
    ),
    Bug(
        "divisor_counts_tokens",
        "rows and turns with weights are divided by their number, not by their weights",
        "objectives/sft.py",
        "return batch.target_weight_sum",
        "return float(batch.num_target_tokens)",
        (f"{_SFT}::test_weights_count_in_the_divisor[one by one]",),
    ),
    Bug(
        "ring_ranks_keep_their_part",
        "in a ring each rank compares the log-probs of its own tokens, not of whole answers",
        "objectives/scorer.py",
        "return sums if self._groups.sequence is None else",
        "return sums if True else",
        (f"{_PAIRS}[two_ranks-{{'ring': 2, 'zero_stage': 2, 'packed': True}}]",),
    ),
    Bug(
        "ring_ranks_count_twice",
        "a ring of two counts each pair twice",
        "objectives/scorer.py",
        "return float(self._groups.sequence_rank == 0)",
        "return 1.0",
        (f"{_PAIRS}[two_ranks-{{'ring': 2, 'zero_stage': 2, 'packed': True}}]",),
    ),
    Bug(
        "ring_gradient_stays_on_one_rank",
        "tokens on other ranks of a ring than the first are not trained by a pair's loss",
        "parallel/collectives.py",
        "return sum_over(grads[0].contiguous().clone(), ctx.group), None",
        "return grads[0], None",
        (f"{_PAIRS}[two_ranks-{{'ring': 2, 'zero_stage': 2, 'packed': True}}]",),
    ),
    Bug(
        "targets_of_a_pair_mixed_up",
        "the log-probs of an answer are added to its rival's",
        "batching/micro_batch.py",
        "target_sequence=torch.arange(len(targets)).repeat_interleave",
        "target_sequence=torch.arange(len(targets)).flip(0).repeat_interleave",
        ("tests/batching/test_micro_batch.py::test_the_sequences_of_a_unit_stand_together_and_are_known_by_target",),
    ),
    Bug(
        "row_weight_cancels",
        "with --train.loss_reduction sample the weight of a row does nothing",
        "batching/micro_batch.py",
        "weights / weights.sum() * sum_of_weights",
        "weights / weights.sum()",
        ("tests/batching/test_micro_batch.py::test_a_rows_weight_is_what_its_weights_add_up_to_in_a_mean_of_rows",),
    ),
    Bug(
        "own_objective_is_not_known",
        "--train.loss module:Name trains plain -log p",
        "objectives/objective.py",
        'named_object(name, base, "--train.loss")',
        '_REGISTRY["nll"]()',
        (f"{_SFT}::test_objectives_have_names",),
    ),
    Bug(
        "robust_divides_by_nothing",
        "from Python, robust with half of the labels wrong trains on infinite losses",
        "objectives/preference.py",
        "settings.label_smoothing >= MOST_SMOOTHING_OF_ROBUST:",
        "settings.label_smoothing > MOST_SMOOTHING_OF_ROBUST:",
        ("tests/objectives/test_preference.py::test_a_mix_that_cannot_be_is_told",),
    ),
    Bug(
        "a_loss_lacks_its_weight",
        "from Python, a wrong number of loss_weights is an error that does not say which",
        "config/pair_settings.py",
        "        if len(weights) != len(names):\n",
        "        if not names:\n",
        ("tests/config/test_pairs.py::test_a_loss_without_its_weight_is_told_in_python_too",),
    ),
    Bug(
        "the_loss_of_weighted_pairs_is_recorded_plain",
        "a run of weighted pairs shows, and keeps the best model by, another loss than it trains",
        "objectives/preference.py",
        'sums["loss"] = weighted_losses.detach().double().sum(), batch.unit_weight_sum',
        'sums["loss"] = weighted_losses.detach().double().sum(), len(chosen)',
        ("tests/objectives/test_preference.py::test_a_mix_of_losses_equals_a_float64_loop",),
    ),
    Bug(
        "the_loss_of_weighted_rewards_is_recorded_plain",
        "a reward model of weighted pairs shows another loss than it trains",
        "objectives/reward.py",
        'sums["loss"] = weighted.detach().double().sum(), batch.unit_weight_sum',
        'sums["loss"] = weighted.detach().double().sum(), len(chosen)',
        ("tests/objectives/test_reward.py::test_loss_and_gradients_are_those_of_the_formula",),
    ),
    Bug(
        "numbers_of_pairs_wait_for_the_gpu",
        "each micro-batch of pairs waits for the GPU before it queues its backward pass",
        "objectives/pairs.py",
        "return to_device(torch.tensor(numbers, dtype=torch.float64), batch.target_ids.device)",
        "return torch.tensor(numbers, dtype=torch.float64, device=batch.target_ids.device)",
        ("tests/cuda/test_no_waits.py::test_a_micro_batch_of_pairs",),
    ),
    Bug(
        "the_best_reward_model_has_the_last_ones_numbers",
        "with --ckpt.export_best a reward model makes its rewards normal by mean and deviation of other weights",
        "run/rm_run.py",
        "is_another_step = self.config.ckpt.export_best and progress.best_eval_step != progress.optimizer_step",
        "is_another_step = False",
        (_OWN_NUMBERS,),
    ),
    Bug(
        "a_reward_model_along_the_way_has_an_earlier_steps_numbers",
        "a reward model that was exported without an evaluation has mean and deviation of an earlier step's rewards",
        "trainer/pair_trainers.py",
        "        super()._advance(window)\n        self.forget_statistics()\n",
        "        super()._advance(window)\n",
        (_OWN_NUMBERS,),
    ),
    Bug(
        "reference_of_other_code",
        "log-probs of a reference whose own code was another are found in the cache",
        "run/reference.py",
        '"config.json", "*.py")',
        '"config.json")',
        (
            "tests/runs/test_pairs.py::test_a_computed_reference_is_known_by_tokens_and_by_settings_that_could_change_it",
        ),
    ),
    Bug(
        "the_sorted_window_forgets_weights",
        "with aot and weighted pairs, the loss of a pair that stands twice in a step depends on the layout",
        "objectives/sorted_window.py",
        "    by_policy, by_reference = policy.argsort(), reference.argsort()\n",
        "    by_policy, by_reference, weights = policy.argsort(), reference.argsort(), torch.ones_like(weights)\n",
        (
            "tests/objectives/test_pair_losses.py::test_the_order_of_pairs_with_one_margin_changes_nothing_in_aot",
            "tests/objectives/test_pair_losses.py::test_a_pair_of_weight_2_is_two_pairs_in_aot",
        ),
    ),
]
