"""Bugs in the commands on pairs: their settings, their references, their evaluations, their resumes."""

from __future__ import annotations

from tests.planted.bug import Bug

_RUNS = "tests/runs/test_pairs.py::"
_KNOWN_BY = _RUNS + "test_a_computed_reference_is_known_by_tokens_and_by_settings_that_could_change_it"
_KILLS = "tests/faults/test_reference.py::test_a_reference_is_computed_on_after_kills"
_SETTINGS = "tests/config/test_pairs.py::"
_FLAGS = "tests/trainer/test_pair_trainers.py::test_each_flag_of_the_loss_reaches_it"

BUGS = [
    Bug(
        "ipo_switch_ignored",
        "--ipo of OpenRLHF trains DPO",
        "config/pair_settings.py",
        """names = ["ipo" if name == "sigmoid" else name for name in names]""",
        """names = list(names)""",
        (_SETTINGS + "test_losses_have_weights",),
    ),
    Bug(
        "defaults_of_the_group",
        "a command's own defaults are forgotten: its checkpoints go among those of another command",
        "config/schema.py",
        "kind, _value(defaults, prefix + field.name), **field.metadata)",
        "kind, field.default, **field.metadata)",
        (_SETTINGS + "test_a_command_has_defaults_of_its_own",),
    ),
    Bug(
        "room_for_one_answer",
        "a budget that holds one answer of a pair is found wanting only in the middle of the run",
        "config/pair_checks.py",
        "config.ds.ring_attn_size < 2 * longest:",
        "config.ds.ring_attn_size < longest:",
        (_SETTINGS + "test_what_cannot_be_is_told",),
    ),
    Bug(
        "reference_not_compared",
        "a run goes on against another reference",
        "checkpoint/identity.py",
        """    "reference": "the reference model (--ref.model_name_or_path)",\n""",
        "",
        (_RUNS + "test_another_objective_or_reference_is_another_run",),
    ),
    Bug(
        "reference_of_other_weights",
        "log-probs of another reference are found in the cache",
        "run/reference.py",
        "hash_of([_weights_hash(name, folder), data_fingerprint, settings])",
        "hash_of([data_fingerprint, settings])",
        (_RUNS + "test_a_computed_reference_is_shared_and_known_by_weights",),
    ),
    Bug(
        "reference_of_other_tokens",
        "log-probs of other data are found in the cache",
        "run/reference.py",
        "hash_of([_weights_hash(name, folder), data_fingerprint, settings])",
        "hash_of([_weights_hash(name, folder), settings])",
        (_KNOWN_BY,),
    ),
    Bug(
        "reference_of_other_settings",
        "log-probs in bf16 are found where those in fp32 are asked for",
        "run/reference.py",
        "hash_of([_weights_hash(name, folder), data_fingerprint, settings])",
        "hash_of([_weights_hash(name, folder), data_fingerprint])",
        (_KNOWN_BY,),
    ),
    Bug(
        "half_a_window_is_kept",
        "a kill amid a window leaves half of it in the cache, and the rows behind it go to other pairs",
        "trainer/computed_reference.py",
        "            os.truncate(file, rows * _ROW_BYTES)\n",
        "            pass\n",
        (_KILLS,),
    ),
    Bug(
        "a_killed_computation_begins_anew",
        "a kill loses all log-probs of the reference that were computed",
        "trainer/computed_reference.py",
        "rows = 0 if is_damaged else",
        "rows = 0 if content else",
        (_KILLS,),
    ),
    Bug(
        "damaged_reference_taken",
        "a damaged file of log-probs is trained with",
        "trainer/computed_reference.py",
        "if content[size_bytes:] == xxhash.xxh3_64_digest(content[:size_bytes]):",
        "if len(content) > size_bytes:",
        (_RUNS + "test_a_computed_reference_is_shared_and_known_by_weights",),
    ),
    Bug(
        "vocabularies_not_compared",
        "log-probs of a reference with another vocabulary are trained with",
        "run/dpo_run.py",
        "        check_reference(config)\n",
        "",
        (_RUNS + "test_a_reference_with_another_vocabulary_is_refused",),
    ),
    Bug(
        "base_is_the_reference_of_an_adapter",
        "DPO from an adapter is held to another model than the one that it starts from",
        "run/reference.py",
        "if name is not None and adapter is not None and config.ref.model_name_or_path is None:",
        "if False:",
        (_RUNS + "test_a_start_from_an_adapter_needs_a_reference_of_its_name",),
    ),
    Bug(
        "reference_stays_in_memory",
        "a reference whose log-probs were computed before keeps its memory through the training",
        "run/dpo_run.py",
        "gc.collect()",
        "pass",
        (_RUNS + "test_a_computed_reference_is_gone_when_the_training_begins",),
    ),
    Bug(
        "shorter_answer_counted",
        "an evaluation says how often the shorter answer is the better one",
        "objectives/pairs.py",
        "sum(a > b for a, b in",
        "sum(a < b for a, b in",
        (_RUNS + "test_the_longer_answer_is_the_better_one_so_often",),
    ),
    Bug(
        "beta_of_the_trainer_ignored",
        "DPOTrainer(beta=) trains with another beta",
        "trainer/pair_trainers.py",
        "model=replace(config.model, beta=self._beta))",
        "model=config.model)",
        ("tests/trainer/test_pair_trainers.py::test_dpo_trainer_trains_as_a_script_calls_it",),
    ),
    Bug(
        "settings_of_pair_losses_lost",
        "--model.label_smoothing, --model.ipo_enable and --model.simpo_gamma change nothing",
        "trainer/pair_trainers.py",
        "PairLossSettings(model.beta, model.label_smoothing, model.ipo_enable, model.simpo_gamma)",
        "PairLossSettings(model.beta)",
        (_FLAGS + "[dpo]",),
    ),
    Bug(
        "nll_of_pairs_lost",
        "--model.nll_loss_coef changes nothing",
        "trainer/pair_trainers.py",
        "settings, model.nll_loss_coef, reference)",
        "settings, 0.0, reference)",
        (_FLAGS + "[dpo]",),
    ),
    Bug(
        "settings_of_rewards_lost",
        "--model.margin_loss_enable and --model.center_rewards_coef change nothing",
        "trainer/pair_trainers.py",
        "RewardObjective(model.loss_type, model.margin_loss_enable, model.center_rewards_coef)",
        "RewardObjective(model.loss_type)",
        (_FLAGS + "[rm]",),
    ),
    Bug(
        "trainer_of_pairs_forgets_its_settings",
        "DPOTrainer minimises the default loss, whatever strategy.args say",
        "trainer/pair_trainers.py",
        "self.objective_of(from_namespace(DPOConfig, strategy.args))",
        "self.objective_of(DPOConfig())",
        (_FLAGS + "[dpo]",),
    ),
    Bug(
        "bad_pairs_cost_an_earlier_model",
        "a run whose pairs are unusable has taken files of an earlier run away before it says so",
        "run/training_run.py",
        "        train_data = build_train_data(config, tokenizer, prepare)\n",
        '        Path(config.ckpt.output_dir, "config.json").unlink(missing_ok=True)\n'
        "        train_data = build_train_data(config, tokenizer, prepare)\n",
        (_RUNS + "test_bad_pairs_are_told_and_an_earlier_model_is_left_alone",),
    ),
    Bug(
        "steps_of_bad_pairs_are_no_news",
        "a pair whose loss is no number is skipped without a word, and never stops a run",
        "trainer/callbacks/nonfinite_guard.py",
        "        self._last_loss = result.loss\n",
        "        self._last_loss = result.loss\n        return None\n",
        (
            _RUNS + "test_a_pair_without_a_finite_loss_is_named_and_skipped_on_all_ranks[train_rm]",
            _RUNS + "test_pairs_without_a_finite_loss_stop_the_run_without_an_export",
        ),
    ),
]
