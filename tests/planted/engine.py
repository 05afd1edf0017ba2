"""Bugs of the room engine/: averaging, optimizers, schedules, the guard, patches."""

from __future__ import annotations

from tests.planted.bug import Bug

_STRATEGY = "tests/strategy/test_strategy.py"
_GUARD = "tests/engine/test_step_guard.py"
_SCHEDULES = "tests/engine/test_schedules.py"
_TRAINED = "tests/engine/test_trained_model.py"
_PATCHES = "tests/engine/test_patches.py"
_ADD_UP = "tests/strategy/test_ranks_add_up.py::test_two_ranks_compute_the_step_of_a_plain_loop"

_PRODUCTS = "tests/engine/test_float32_products.py::test_"
_IN_PIECES = f"{_PRODUCTS}a_product_is_rounded_once"

BUGS = [
    Bug(
        "the_last_piece_of_a_product_is_left_out",
        "on a processor without products of bf16 the last tokens of a pack are computed of garbage",
        "engine/patches/float32_products.py",
        "for first in range(0, len(left), step):",
        "for first in range(0, len(left) - step + 1, step):",
        (_IN_PIECES,),
    ),
    Bug(
        "a_products_factors_are_lost",
        "a sum that is added to products counts in full where half was asked for",
        "engine/patches/float32_products.py",
        "rights[piece].float() if is_batched else rights, **factors)",
        "rights[piece].float() if is_batched else rights)",
        (f"{_IN_PIECES}[addmm-]",),
    ),
    Bug(
        "a_product_of_two_types_is_taken",
        "a model whose parts differ in precision is trained in silence",
        "engine/patches/float32_products.py",
        "all(one.dtype == torch.bfloat16 for one in operands)",
        "operands[0].dtype == torch.bfloat16",
        (f"{_PRODUCTS}other_numbers_go_to_torch",),
    ),
    Bug(
        "a_trained_model_multiplies_slowly",
        "bf16 takes fifty times as long on a laptop",
        "models/prepared_model.py",
        "multiply_fast(model)",
        "pass",
        (f"{_PRODUCTS}a_model_that_is_trained_asks_for_it",),
    ),
    Bug(
        "products_in_float32_are_not_told",
        "nobody sees why a run in bf16 is no faster than one in float32",
        "run/start_table.py",
        "if multiply_in_float32() else []",
        "if False else []",
        ("tests/runs/test_start_table.py::test_the_table_says_where_products_are_made_in_float32",),
    ),
    Bug(
        "a_copy_to_look_for_nan",
        "the end of a run takes twice the memory of the largest parameter to see whether it is finite",
        "engine/parameters.py",
        "bool(values.sum().isfinite())",
        "bool(values.sum(dtype=torch.float32).isfinite())",
        ("tests/engine/test_parameters.py::test_finite_parameters_take_no_memory_to_look_at",),
    ),
    Bug(
        "micro_batches_overwrite_the_sum",
        "of a window's micro-batches the last one alone is trained",
        "engine/patches/gradient_copies.py",
        "into.add_(piece)",
        "into.copy_(piece)",
        ("tests/engine/test_gradient_copies.py::test_micro_batches_add_up_in_float32",),
    ),
    Bug(
        "ranks_sum_instead_of_mean",
        "gradients grow with the number of ranks",
        "engine/patches/gradient_copies.py",
        "tensor.mul_(1.0 / num_ranks)",
        "pass",
        ("tests/engine/test_gradient_copies.py::test_ranks_get_their_mean",),
    ),
    Bug(
        "two_ranks_without_zero_are_not_averaged",
        "each rank trains a model of its own",
        "engine/patches/gradient_copies.py",
        """    if num_ranks > 1:
        as_deepspeed""",
        """    if num_ranks > 2:
        as_deepspeed""",
        ("tests/engine/test_gradient_copies.py::test_gradients_that_no_other_rank_has_are_not_copied",),
    ),
    Bug(
        "averaging_not_undone",
        "gradients shrink with the number of ranks",
        "engine/trained_model.py",
        "backward(loss_share * self.num_ranks_averaged)",
        "backward(loss_share)",
        (_ADD_UP, f"{_TRAINED}::test_the_share_of_a_loss_undoes_the_average_over_ranks"),
    ),
    Bug(
        "order_depends_on_ranks",
        "another number of ranks trains other samples in each step",
        "strategy/strategy.py",
        "StepSchedule(len(dataset), self.train.batch_size, self.seed, shuffle)",
        "StepSchedule(len(dataset), self.train.batch_size, self.seed + self.groups.data_size, shuffle)",
        ("tests/strategy/test_data_order.py::test_steps_hold_the_same_samples_on_any_ranks_in_any_layout",),
    ),
    Bug(
        "norms_decay",
        "weight decay shrinks norms and biases",
        "engine/optimizers.py",
        "if (isinstance(child, EMBEDDING_TYPES) and not decay_embeddings) or len(whole_shape(parameter)) < 2",
        "if isinstance(child, EMBEDDING_TYPES) and not decay_embeddings",
        (f"{_STRATEGY}::test_decay_is_for_matrices_alone",),
    ),
    Bug(
        "decay_lost",
        "--adam.weight_decay does nothing",
        "engine/optimizers.py",
        "if id(p) not in undecayed], weight_decay=weight_decay),",
        "if id(p) not in undecayed], weight_decay=0.0 * weight_decay),",
        (f"{_STRATEGY}::test_decay_is_for_matrices_alone",),
    ),
    Bug(
        "warm_up_too_short",
        "the warm-up is a tenth of what was asked for",
        "engine/optimizers.py",
        "math.ceil(num_training_steps * warmup_ratio)",
        "math.ceil(num_training_steps * warmup_ratio / 10)",
        (f"{_SCHEDULES}::test_it_warms_up_once_and_never_rises_again",),
    ),
    Bug(
        "least_rate_ignored",
        "--min_lr_ratio does nothing: the last steps train nothing",
        "engine/optimizers.py",
        'specific = {"min_lr_rate": min_lr_ratio}',
        'specific = {"min_lr_rate": 0.0}',
        (f"{_SCHEDULES}::test_it_warms_up_once_and_never_rises_again",),
    ),
    Bug(
        "gradients_not_clipped",
        "--max_norm does nothing",
        "engine/engine_config.py",
        '"gradient_clipping": max_norm if is_training else 0.0,',
        '"gradient_clipping": 0.0,',
        (f"{_SCHEDULES}::test_gradients_are_clipped_at_the_users_norm",),
    ),
    Bug(
        "loss_scale_fixed",
        "small fp16 gradients vanish",
        "engine/engine_config.py",
        '"loss_scale": 0,',
        '"loss_scale": 1,',
        (f"{_SCHEDULES}::test_fp16_finds_its_loss_scale_by_itself",),
    ),
    Bug(
        "gradients_summed_in_half_precision",
        "the sum of a window's gradients depends on how it was cut",
        "engine/engine_config.py",
        'return None if ds.zero_stage == 0 else "fp32"',
        "return None",
        (f"{_STRATEGY}::test_gradients_add_up_in_float32_where_deepspeed_can",),
    ),
    Bug(
        "non_finite_step_applied",
        "one infinite gradient destroys the weights",
        "engine/step_guard.py",
        "if not math.isfinite(grad_norm):",
        "if math.isnan(grad_norm) and self._max_spike:",
        (f"{_GUARD}::test_a_step_that_is_not_finite_is_held_back",),
    ),
    Bug(
        "spike_guard_off_by_its_factor",
        "the guard holds back every step above the usual norm",
        "engine/step_guard.py",
        "if grad_norm > self._max_spike * usual:",
        "if grad_norm > usual:",
        (f"{_GUARD}::test_a_spike_is_what_exceeds_the_factor_times_the_usual_norm",),
    ),
    Bug(
        "spike_guard_judges_at_once",
        "the first steps of a run, whose norms vary, are held back",
        "engine/step_guard.py",
        "len(self._recent_norms) >= STEPS_BEFORE_SPIKES_COUNT:",
        "len(self._recent_norms) >= 1:",
        (f"{_GUARD}::test_before_there_is_a_history_nothing_is_a_spike",),
    ),
    Bug(
        "deepcompile_does_nothing",
        "--ds.deepcompile is accepted, and nothing is compiled",
        "engine/trained_model.py",
        "engine.compile()",
        "pass",
        (f"{_TRAINED}::test_deepcompile_compiles_the_engine",),
    ),
    Bug(
        "schedule_waits_for_updates",
        "a step that is held back stretches the schedule",
        "engine/trained_model.py",
        "self.scheduler.step()",
        "self.scheduler.step() if outcome.is_applied else None",
        (f"{_TRAINED}::test_the_schedule_goes_on_although_an_update_is_held_back",),
    ),
    Bug(
        "patches_ignore_the_version",
        "a patch of one version is applied to another, whose insides differ",
        "engine/patches/patch.py",
        "return self.applies_to_others",
        "return True",
        (f"{_PATCHES}::test_another_version_is_told_once",),
    ),
    Bug(
        "patches_ignore_their_switch",
        "OPENRLHF_PATCHES=off leaves patches on",
        "engine/patches/patch.py",
        'return value == "off"',
        "return False",
        (f"{_PATCHES}::test_one_variable_switches_all_off",),
    ),
    Bug(
        "spikes_become_usual",
        "after some spikes the guard lets them pass",
        "engine/step_guard.py",
        'deque(state["recent_norms"], maxlen=HISTORY_STEPS)',
        "deque(maxlen=HISTORY_STEPS)",
        (f"{_GUARD}::test_the_history_goes_on_after_a_resume",),
    ),
    Bug(
        "shared_memory_operator_is_made",
        "each run leaves 66 MiB of every rank in the machine's memory",
        "engine/launch.py",
        "        leave_out_shared_memory()\n",
        "",
        ("tests/engine/test_launch.py::test_ranks_take_no_memory_for_inference",),
    ),
]
