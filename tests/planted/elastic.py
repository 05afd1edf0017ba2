"""Bugs of a resume on another layout: what a run begins with there, and what its bits depend on."""

from __future__ import annotations

from tests.planted.bug import Bug

_ELASTIC = "tests/faults/test_elastic.py::"
_BEGINS = _ELASTIC + "test_a_run_begins_with_the_bits_that_the_old_one_had"
_EXPORT = "tests/checkpoint/test_export.py::"
_OTHER_ZERO = "[train_rm, 2 ranks of ZeRO 1, then 2 ranks of ZeRO 2]"
_FEWER_RANKS = "[train_rm, 2 ranks of ZeRO 3, then 1 rank of ZeRO 1]"

BUGS = [
    Bug(
        "moments_rounded_on_loading",
        "a resumed run begins with Adam's moments rounded to bfloat16",
        "checkpoint/optimizer_states.py",
        "fragment.view_of(host).copy_(saved.read(kind, fragment))",
        "fragment.view_of(host).copy_(saved.read(kind, fragment).to(torch.float32 if kind == MASTER else "
        "torch.bfloat16))",
        (_BEGINS + _OTHER_ZERO,),
    ),
    Bug(
        "masters_made_of_the_weights",
        "a resumed run begins with float32 weights rounded to bfloat16",
        "checkpoint/optimizer_states.py",
        "fragment.view_of(host).copy_(saved.read(kind, fragment))",
        "fragment.view_of(host).copy_(saved.read(kind, fragment).to(torch.bfloat16 if kind == MASTER else "
        "torch.float32))",
        (_BEGINS + _OTHER_ZERO,),
    ),
    Bug(
        "schedule_begins_anew_on_other_ranks",
        "on another number of ranks the learning rate warms up once more",
        "checkpoint/training_state.py",
        """if not scheduler or not values["scheduler"]:""",
        """if not scheduler or values["num_ranks"] != torch.distributed.get_world_size():""",
        (_BEGINS + _FEWER_RANKS,),
    ),
    Bug(
        "the_last_window_is_trained_again",
        "a resumed run trains the samples of the checkpoint's last step twice",
        "run/training_run.py",
        """self.consumed_samples = states["consumed_samples"]""",
        """self.consumed_samples = states["consumed_samples"] - self.config.train.batch_size""",
        (_BEGINS + _FEWER_RANKS,),
    ),
    Bug(
        "a_resumed_run_drops_what_its_first_step_dropped",
        "the first step after each resume draws the random numbers of step 1",
        "trainer/step.py",
        "        self._seed(optimizer_step, micro_step)\n",
        "        self._seed(0 if self._is_first else optimizer_step, micro_step)\n",
        (_ELASTIC + "test_each_rank_draws_from_the_stream_of_its_place_in_the_run" + _OTHER_ZERO,),
    ),
    Bug(
        "generators_lost_in_another_zero_stage",
        "after a change of the ZeRO stage a user's own random numbers begin anew",
        "checkpoint/training_state.py",
        """is_same_layout = values["num_ranks"] == num_ranks""",
        "is_same_layout = values['num_ranks'] == num_ranks and engine.zero_optimization_stage() != 2",
        (_ELASTIC + "test_on_as_many_ranks_every_generator_goes_on_where_it_was" + _OTHER_ZERO,),
    ),
    Bug(
        "a_killed_run_leaves_a_step",
        "a step that a killed run had made behind its checkpoint stands twice in metrics.jsonl",
        "tracking/metrics_file.py",
        "kept = cut_back_to_step(self._path, resume_step)",
        "kept = cut_back_to_step(self._path, resume_step + 1)",
        (_ELASTIC + "test_how_the_old_run_ended_changes_no_bit" + _FEWER_RANKS,),
    ),
    Bug(
        "generators_are_not_seeded",
        "a run that is resumed twice on another number of ranks draws other numbers each time",
        "strategy/strategy.py",
        "        seed_everything(self.seed)\n",
        "",
        (_ELASTIC + "test_a_second_resume_gives_the_bits_of_the_first" + _FEWER_RANKS,),
    ),
    Bug(
        "a_bases_config_is_no_part_of_the_run",
        "a run goes on with another rope or norm, which somebody wrote into the base's config.json, without a word",
        "trainer/command_trainer.py",
        'computed = function_of_config("model.model_name_or_path", model.config) | self.reference_function',
        "computed = self.reference_function",
        ("tests/runs/test_resume.py::test_a_base_whose_config_computes_another_function_is_refused[whole model]",),
    ),
    Bug(
        "a_references_config_is_no_part_of_the_run",
        "a preference run goes on against a reference that computes another function",
        "run/dpo_run.py",
        'trainer.reference_function = function_of_config("ref.model_name_or_path", config)',
        "pass",
        ("tests/runs/test_pairs.py::test_a_reference_whose_config_computes_another_function_is_another_run",),
    ),
    Bug(
        "an_exports_own_changes_are_another_function",
        "a run whose base was exported once more is refused for the cache and the tokens of its config.json",
        "models/config_values.py",
        "for key, value in values.items() if key not in _NOT_COMPARED}",
        "for key, value in values.items()}",
        ("tests/checkpoint/test_identity.py::test_a_config_is_known_by_the_function_that_it_names_whoever_wrote_it",),
    ),
    Bug(
        "a_merge_over_somebodys_model",
        "a merge of adapters takes the place of a model that the user had in that folder",
        "config/merge_settings.py",
        '    yield from model_of_nobody("--output_path", config.output_path)\n',
        "",
        ("tests/clients/test_leftovers.py::test_a_merge_replaces_no_model_of_somebody_elses_and_tells_what_it_moves",),
    ),
    Bug(
        "a_moved_model_is_not_told",
        "a model of another run is moved out of the way without a word",
        "checkpoint/export.py",
        'logger.warning("%s held a model',
        'logger.debug("%s held a model',
        ("tests/clients/test_leftovers.py::test_a_merge_replaces_no_model_of_somebody_elses_and_tells_what_it_moves",),
    ),
    Bug(
        "a_size_that_no_model_has",
        "a damaged config.json ends a command with a division by zero, or makes it count layers for ever",
        "models/loading.py",
        "    check_sizes(text_config, path)\n",
        "",
        ("tests/models/test_loading.py::test_a_size_that_no_model_has_is_refused_before_one_is_made",),
    ),
    Bug(
        "a_limit_of_file_sizes_is_found_at_the_end",
        "where no file may grow as large as the weights, a run trains to its end and loses them",
        "checkpoint/rehearsal.py",
        "        _check_file_limit(model, max_shard_bytes, merged_bytes)\n",
        "",
        (_EXPORT + "test_a_limit_of_file_sizes_is_found_before_the_training_and_a_write_names_its_file",),
    ),
    Bug(
        "a_refused_write_names_no_file",
        "a file of weights that cannot be written is not named",
        "checkpoint/tensor_file.py",
        '    with naming(path), open(path, "wb") as file:\n',
        '    with open(path, "wb") as file:\n',
        (_EXPORT + "test_a_limit_of_file_sizes_is_found_before_the_training_and_a_write_names_its_file",),
    ),
    Bug(
        "a_divergence_is_only_unknown",
        "who asks for another divergence of DPO is not told why there is none",
        "config/parse.py",
        "    if why := why_not_here(reading.root, item.name):\n",
        "    if why := None:\n",
        ("tests/config/test_pairs.py::test_what_cannot_be_is_told",),
    ),
    Bug(
        "a_chosen_layout_is_a_setting_of_the_user",
        "a model's card lists what the run chose by itself among the settings that somebody gave",
        "run/model_card.py",
        "if table[name].takes_auto}",
        "if False}",
        ("tests/runs/test_hub.py::test_the_card_tells_settings_from_a_layout_that_the_run_may_have_chosen",),
    ),
    Bug(
        "a_size_of_files_is_not_read_by_the_rehearsal",
        "a smaller --ckpt.export_shard_size that fits the limit of file sizes is refused",
        "checkpoint/rehearsal.py",
        "min(exported_bytes(model), max_shard_bytes) if is_cut",
        "min(exported_bytes(model), DEFAULT_MAX_SHARD_BYTES) if is_cut",
        (_EXPORT + "test_a_limit_of_file_sizes_is_found_before_the_training_and_a_write_names_its_file",),
    ),
    Bug(
        "a_merged_model_has_no_size",
        "a merge of adapters that finds no room is found at the end of the run",
        "checkpoint/rehearsal.py",
        "_bytes_of(model, model.parameters()) if is_merged else 0",
        "0",
        (_EXPORT + "test_a_limit_of_file_sizes_is_found_before_the_training_and_a_write_names_its_file",),
    ),
    Bug(
        "the_note_forgets_another_ranks_halving",
        "a run whose ranks run out of memory apart starts again once more for each of them",
        "trainer/memory.py",
        "                halvings = max(halvings, noted[0])\n",
        "",
        ("tests/trainer/test_memory.py::test_a_halving_is_noted_beside_a_sample_that_is_left_out",),
    ),
]
