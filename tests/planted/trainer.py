"""Bugs of the rooms trainer/ and cli/: the step, evaluation, the horizon of a run."""

from __future__ import annotations

from tests.planted.bug import Bug

_STEP = "tests/trainer/test_step.py"
_EVALUATION = "tests/trainer/test_evaluation.py"

BUGS = [
    Bug(
        "mean_of_means",
        "targets of short micro-batches weigh more than those of long ones",
        "trainer/step.py",
        "self._objective.loss(scorer, scorer.batch, counts.divisor)",
        "self._objective.loss(scorer, scorer.batch, "
        "float(scorer.batch.target_weights.sum()) * len(counts.num_tokens_of_micro_step_global))",
        (f"{_STEP}::test_a_window_equals_a_plain_loop[one by one]",),
    ),
    Bug(
        "loss_divided_by_all_tokens",
        "the logged loss is too low by the share of targets",
        "objectives/sft.py",
        '{"loss": (-log_probs.double().sum(), len(log_probs))}',
        '{"loss": (-log_probs.double().sum(), batch.num_tokens)}',
        (f"{_STEP}::test_a_window_equals_a_plain_loop[all at once]",),
    ),
    Bug(
        "sample_weights_ignored",
        "--train.loss_reduction sample trains the mean of tokens",
        "objectives/sft.py",
        "scorer.weighted_log_probs(batch.target_weights / divisor)",
        "scorer.weighted_log_probs(batch.target_weights.sign() / divisor)",
        (f"{_STEP}::test_a_window_equals_a_plain_loop[mean of samples]",),
    ),
    Bug(
        "aux_loss_not_scaled",
        "the auxiliary loss grows with the number of micro-batches",
        "trainer/step.py",
        "return micro_batch.num_tokens / counts.num_tokens_global",
        "return 1.0",
        (f"{_STEP}::test_the_aux_loss_of_equal_micro_batches_is_that_of_one",),
    ),
    Bug(
        "aux_loss_shared_evenly",
        "short micro-batches balance the experts as much as long ones",
        "trainer/step.py",
        "return micro_batch.num_tokens / counts.num_tokens_global",
        "return 1.0 / len(counts.num_tokens_of_micro_step_global)",
        (f"{_STEP}::test_a_micro_batchs_aux_loss_weighs_as_much_as_its_tokens",),
    ),
    Bug(
        "aux_loss_without_coefficient",
        "--model.aux_loss_coef is taken for 1",
        "trainer/step.py",
        "loss_share + self._aux_loss.coef * aux_share",
        "loss_share + aux_share",
        (f"{_STEP}::test_the_aux_losss_gradient_grows_with_its_coefficient",),
    ),
    Bug(
        "dropout_not_seeded",
        "dropout after a resume is another one than in the unbroken run",
        "trainer/step.py",
        "        self._seed(optimizer_step, micro_step)\n",
        "",
        (f"{_STEP}::test_dropout_is_a_function_of_the_step_and_not_of_what_was_drawn_before",),
    ),
    Bug(
        "dropout_the_same_every_step",
        "every step drops the same units",
        "parallel/random_streams.py",
        'f"{seed}/{optimizer_step}/{micro_step}/{rank}"',
        'f"{seed}/{micro_step}/{rank}"',
        (f"{_STEP}::test_dropout_is_a_function_of_the_step_and_not_of_what_was_drawn_before",),
    ),
    Bug(
        "dropout_the_same_every_micro_step",
        "all micro-batches of a step drop the same units",
        "parallel/random_streams.py",
        'f"{seed}/{optimizer_step}/{micro_step}/{rank}"',
        'f"{seed}/{optimizer_step}/{rank}"',
        (f"{_STEP}::test_micro_steps_of_a_window_drop_different_things",),
    ),
    Bug(
        "evaluation_averages_batch_means",
        "eval_loss depends on how the rows were batched",
        "trainer/metrics.py",
        "self.add(name, total, count)",
        "self.add(name, total / count, 1)",
        (f"{_EVALUATION}::test_every_row_once_and_every_target_alike",),
    ),
    Bug(
        "evaluation_counts_padding",
        "eval_num_target_tokens counts padding",
        "trainer/evaluation.py",
        "num_targets.add_(len(micro_batch.target_ids))",
        "num_targets.add_(micro_batch.input_ids.numel())",
        (f"{_EVALUATION}::test_every_row_once_and_every_target_alike",),
    ),
    Bug(
        "evaluation_with_dropout",
        "eval_loss is that of a model with half its units",
        "trainer/evaluation.py",
        "    model.eval()\n",
        "    pass\n",
        (f"{_EVALUATION}::test_dropout_is_off",),
    ),
    Bug(
        "evaluation_ends_dropout",
        "after the first evaluation the run trains without dropout",
        "trainer/evaluation.py",
        "    model.train(was_training)\n",
        "    pass\n",
        (f"{_EVALUATION}::test_the_model_goes_on_as_it_was",),
    ),
    Bug(
        "horizon_of_one_epoch",
        "the learning rate is at its least after one epoch of three",
        "batching/schedule.py",
        "num_steps = self.steps_per_epoch * max_epochs",
        "num_steps = self.steps_per_epoch",
        ("tests/engine/test_schedules.py::test_the_horizon_of_a_run_is_all_its_epochs",),
    ),
    Bug(
        "padded_share_says_no_padding",
        "inspect_data promises that nothing is lost to padding",
        "inspection/statistics.py",
        "int(one.sum() if packed else one.max() * one.size)",
        "int(one.sum())",
        ("tests/inspection/test_inspection.py::test_padding_and_fill",),
    ),
    Bug(
        "an_aux_loss_is_divided_by_no_tokens",
        "a step whose units were all left out ends in a ZeroDivisionError",
        "trainer/step.py",
        "if not counts.num_tokens_global:",
        "if False:",
        ("tests/trainer/test_step.py::test_an_aux_loss_of_no_tokens_weighs_nothing",),
    ),
    Bug(
        "a_stop_stops_the_next_run_too",
        "a run that was asked to leave in the step of its stop takes no more epochs",
        "trainer/trainer.py",
        "stop_reason=None if restored.finished else restored.stop_reason",
        "stop_reason=restored.stop_reason",
        ("tests/trainer/test_callbacks.py::test_a_signal_in_the_step_that_stops_the_run_leaves_it_stopped",),
    ),
]
