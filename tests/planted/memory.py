"""Bugs of steps for which memory runs out: what stays of the attempt that failed, and how small the next one is."""

from __future__ import annotations

from tests.planted.bug import Bug

_MEMORY = "tests/trainer/test_memory.py"
_LOADER = "tests/batching/test_loader.py"
_RANKS = "tests/equivalence/test_out_of_memory.py"

BUGS = [
    Bug(
        "gradients_of_a_failed_attempt_stay",
        "the gradients of the attempt that failed are added to those of the next",
        "trainer/step.py",
        "        self._trained.throw_away_gradients()\n",
        "",
        (f"{_MEMORY}::test_loss_gradients_and_metrics_are_those_of_a_step_that_fits",),
    ),
    Bug(
        "a_frozen_model_keeps_a_broken_pass",
        "under ZeRO-3 what a reference had gathered when memory ran out stays in memory",
        "trainer/step.py",
        "        self._objective.throw_away()\n",
        "",
        (f"{_MEMORY}::test_models_of_the_objectives_own_give_up_too",),
    ),
    Bug(
        "sums_of_zero_2_stay",
        "what ZeRO 2 has added up before memory ran out goes into the update",
        "engine/abandoned_step.py",
        "sums[group] = None",
        "pass",
        (f"{_RANKS}::test_a_step_for_which_memory_runs_out_on_all_ranks_is_computed_again",),
    ),
    Bug(
        "sums_of_bf16_stay",
        "what DeepSpeed's BF16_Optimizer has added up before memory ran out goes into the update",
        "engine/abandoned_step.py",
        "optimizer.clear_hp_grads()",
        "pass",
        (f"{_RANKS}::test_a_step_in_bf16_is_computed_again",),
    ),
    Bug(
        "failed_evaluation_counts",
        "what an evaluation had added up before memory ran out counts twice",
        "trainer/evaluation.py",
        "total.copy_(at_first)",
        "pass",
        (f"{_MEMORY}::test_an_evaluation_counts_each_row_once",),
    ),
    Bug(
        "seed_moves_on",
        "dropout draws other numbers in the step that is computed again",
        "trainer/step.py",
        "seed_micro_step(self._strategy.seed, optimizer_step, micro_step,",
        "seed_micro_step(self._strategy.seed, optimizer_step, torch.initial_seed(),",
        (f"{_MEMORY}::test_dropout_is_drawn_anew_as_in_the_attempt_that_failed",),
    ),
    Bug(
        "budget_not_halved",
        "the step is computed again as it was, and memory runs out again",
        "trainer/memory.py",
        "self._set(self._halvings + 1)",
        "self._set(self._halvings or 1)",
        (f"{_MEMORY}::test_micro_batches_are_halved_until_they_fit",),
    ),
    Bug(
        "budget_stays_small",
        "after one error a run stays slow to its end",
        "trainer/memory.py",
        "self._steps_since < self._patience:",
        "self._steps_since < self._patience or True:",
        (f"{_MEMORY}::test_the_budget_grows_back_and_waits_twice_as_long_after_growing_too_early",),
    ),
    Bug(
        "budget_grows_without_care",
        "a run whose budget is too large by a little fails every 64 steps",
        "trainer/memory.py",
        "self._patience, self._has_grown = 2 * self._patience, False",
        "self._has_grown = False",
        (f"{_MEMORY}::test_the_budget_grows_back_and_waits_twice_as_long_after_growing_too_early",),
    ),
    Bug(
        "activations_kept",
        "activations are not recomputed when memory is short",
        "trainer/memory.py",
        "self._recompute(self._model, halvings > 0)",
        "self._recompute(self._model, False)",
        (f"{_MEMORY}::test_micro_batches_are_halved_and_activations_recomputed_and_that_is_told",),
    ),
    Bug(
        "skipped_row_not_counted",
        "a run that has left a row out cannot go on from its checkpoint: it stands between two steps",
        "batching/window.py",
        "len(self.unit_names) + self.num_left_out,",
        "len(self.unit_names),",
        (f"{_LOADER}::test_a_unit_that_is_left_out_counts_as_one_of_the_window",),
    ),
    Bug(
        "old_layout_of_windows_built_ahead",
        "the next two steps are laid out as before the budget was halved",
        "batching/loader.py",
        "yield window if cut == (self.layout, self.halvings) else self._built(rows)[-1]",
        "yield window",
        (f"{_LOADER}::test_a_layout_that_is_set_between_two_windows_holds_for_the_next",),
    ),
    Bug(
        "ranks_apart_go_on",
        "ranks that have begun unlike numbers of collectives go on, and each takes the other's next one for its own",
        "trainer/shortage.py",
        "if not _is_one_place([begun for _, begun in of_ranks]):",
        "if False:",
        ("tests/trainer/test_shortage.py::test_ranks_at_unlike_collectives_do_not_go_on",),
    ),
    Bug(
        "rank_alone_leaves_the_others",
        "a rank whose memory runs out leaves the others in their reductions",
        "trainer/shortage.py",
        "if not has_memory_for(lambda: compute(number, micro_batch.emptied())):  # noqa: B023",
        "if True:",
        ("tests/trainer/test_shortage.py::test_a_rank_alone_keeps_the_others_company",),
    ),
    Bug(
        "left_out_sample_makes_steps_slow",
        "after a sample that was left out, many steps are computed one sample at a time",
        "trainer/memory.py",
        "self._set(halvings_before)",
        "pass",
        (f"{_MEMORY}::test_a_sample_that_is_left_out_makes_no_other_step_slow",),
    ),
    Bug(
        "event_not_recorded",
        "metrics.jsonl does not say that memory ran out",
        "trainer/callbacks/tracking.py",
        "self._tracker.log_event(event)",
        "del event",
        ("tests/trainer/test_tracking_callback.py::test_what_happened_in_a_step_comes_before_its_record",),
    ),
]
