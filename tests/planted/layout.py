"""Bugs of the layout that a run chooses where its settings leave it open."""

from __future__ import annotations

from tests.planted.bug import Bug

_CHOICE = "tests/runs/test_layout_choice.py::test_"
_RUNS = "tests/runs/test_unsaid_layout.py::test_"
_MEMORY = "tests/runs/test_memory.py::test_"
_PARSE = "tests/config/test_parse.py::test_"

BUGS = [
    Bug(
        "the_engine_of_packs_stays",
        "a model that is padded after a look holds two engines in memory",
        "run/training_run.py",
        "        give_back_memory()  # behind the handler",
        "        # behind the handler",
        ("tests/runs/test_unsaid_layout.py::test_the_engine_of_packs_is_gone_before_that_of_padded_batches_is_built",),
    ),
    Bug(
        "a_said_micro_batch_leaves_the_rest_open",
        "beside a number of samples a run packs, and takes another ZeRO stage, of itself",
        "config/parse.py",
        '    if reading.values.get("train.micro_batch_size", AUTO) != AUTO:\n        return {}\n',
        "",
        (f"{_PARSE}beside_a_number_of_samples_only_what_is_said_to_be_is_auto",),
    ),
    Bug(
        "what_is_said_is_replaced",
        "a ZeRO stage that the user gives is replaced by the chosen one",
        "run/layout_choice.py",
        "stages = _stages(config, num_ranks) if _STAGE in names else (config.ds.zero_stage,)",
        "stages = _stages(config, num_ranks)",
        (f"{_CHOICE}what_is_said_stays",),
    ),
    Bug(
        "ranks_of_float32_split_nothing",
        "two ranks in float32 hold the optimizer's states twice",
        "run/memory_estimate.py",
        'num_ranks == 1 and ds.param_dtype == "fp32"',
        'ds.param_dtype == "fp32"',
        (f"{_CHOICE}the_stages_that_other_settings_allow_are_left",),
    ),
    Bug(
        "muon_is_trained_at_any_stage",
        "a run with Muon that says nothing of its stage computes another update than it did",
        "run/layout_choice.py",
        'if config.optim == "muon":',
        "if False:",
        (f"{_CHOICE}the_stages_that_other_settings_allow_are_left",),
    ),
    Bug(
        "a_chosen_budget_is_written_as_a_given_one",
        "`@ run_config.yaml` is refused where the samples are shorter than --data.max_len",
        "run/layout_choice.py",
        "if self.has_chosen_tokens else self.config",
        "if False else self.config",
        (f"{_CHOICE}a_file_that_runs_it_again_leaves_a_chosen_budget_to_the_run",),
    ),
    Bug(
        "dropout_depends_on_the_clock",
        "a run with dropout draws other numbers at each start, as its steps' seconds decide the layout",
        "trainer/layout_tuner.py",
        "if self._model.draws_random_numbers:",
        "if False:",
        ("tests/trainer/test_layout_tuner.py::test_where_there_is_nothing_to_choose_the_layout_stays_as_it_was",),
    ),
    Bug(
        "prompts_stay_shared_in_padded_batches",
        "a run on pairs whose model mixes its packs ends, as prompts are still shared where it is padded",
        "run/pair_run.py",
        '        self.__dict__.pop("shared_prompts", None)',
        "        pass",
        (
            "tests/objectives/test_shared_prompts.py::test_whether_prompts_are_shared_is_asked_again_with_another_layout",
        ),
    ),
    Bug(
        "an_auto_travels_on",
        "where nothing can be chosen a setting stays auto",
        "config/schema.py",
        "    return with_values(config, {name: settings(type(config))[name].default for name in left_open(config)})\n",
        "    return config\n",
        (f"{_CHOICE}nothing_is_left_to_the_run_afterwards",),
    ),
    Bug(
        "a_budget_fills_the_memory_to_its_estimate",
        "the budget leaves no room for the estimate's error",
        "run/layout_choice.py",
        "self._free.over(LARGEST_ERROR)",
        "self._free",
        (f"{_CHOICE}the_fastest_way_that_fits_is_taken",),
    ),
    Bug(
        "recomputation_before_a_higher_stage",
        "activations are recomputed where a higher ZeRO stage would have kept them",
        "run/layout_choice.py",
        "itertools.product(recomputes, stages)",
        "((one, stage) for stage in stages for one in recomputes)",
        (f"{_CHOICE}the_fastest_way_that_fits_is_taken",),
    ),
    Bug(
        "a_ranks_budget_holds_the_step_of_all",
        "the budget is of all ranks' tokens: memory for nothing",
        "run/lengths.py",
        "-(-self.step // num_rings)",
        "self.step",
        (f"{_CHOICE}a_micro_batch_holds_a_ranks_step_a_sample_and_no_more_than_helps",),
    ),
    Bug(
        "samples_of_an_evaluation_are_forgotten",
        "an evaluation's longest sample is longer than the budget",
        "run/lengths.py",
        "max(int(one.max()) for one in sizes)",
        "int(trained.max())",
        (f"{_CHOICE}samples_that_are_evaluated_must_fit_too",),
    ),
    Bug(
        "a_balancing_loss_changes_with_the_budget",
        "the load-balancing loss is counted in micro-batches that the memory decides",
        "run/layout_choice.py",
        ' if config.model.aux_loss_coef else ""',
        ' if False else ""',
        (f"{_CHOICE}a_balancing_loss_keeps_the_plain_layout_and_nothing_is_tried",),
    ),
    Bug(
        "the_first_ranks_memory_decides",
        "a rank with less memory than the first runs out of it",
        "run/memory_estimate.py",
        "min(one.device_bytes for one in known)",
        "known[0].device_bytes",
        (f"{_CHOICE}the_rank_with_the_least_memory_decides",),
    ),
    Bug(
        "a_model_that_mixes_its_packs_ends_a_run",
        "a run of which nobody has asked for packs ends, as its model cannot pack",
        "run/training_run.py",
        "            if not self._open_layout.may_pad:\n                raise\n",
        "            raise\n",
        (f"{_RUNS}a_model_that_mixes_its_packs_is_padded",),
    ),
    Bug(
        "a_model_that_cannot_fit_is_prepared_for",
        "data are tokenized for an hour before the run is refused",
        "run/layout_choice.py",
        '    layout.memory.check(layout.ways, 0, "a single token")\n',
        "",
        (f"{_MEMORY}a_model_that_cannot_fit_is_refused_before_data_are_prepared",),
    ),
    Bug(
        "nobody_looks_for_room_for_the_samples",
        "a run without room for its longest sample begins",
        "run/training_run.py",
        "        layout.check_data([run.train_data, run.eval_data])\n",
        "",
        (f"{_MEMORY}a_sample_for_which_there_is_no_room_is_named",),
    ),
    Bug(
        "a_contradiction_is_told_by_half",
        "who mends what is told is refused again, for the other half",
        "run/layout_choice.py",
        "raise UserError(*dict.fromkeys(problem for error in refusals for problem in error.problems))",
        "raise refusals[0]",
        (f"{_MEMORY}settings_that_leave_no_stage_are_refused_with_the_reason_against_each",),
    ),
]
