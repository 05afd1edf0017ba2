"""Bugs of TRL's face: what a script or a recipe asked for, and what becomes of it."""

from __future__ import annotations

from tests.planted.bug import Bug

_NAMES = "tests/compat/test_trl_names.py"
_FACE = "tests/compat/test_trl_face.py"

BUGS = [
    Bug(
        "ranks_are_not_multiplied",
        "a recipe trains with a batch that shrinks as ranks are added",
        "config/trl_parts.py",
        'batch_size = t["batch_size"] or micro_batch_size * accumulation * ranks',
        'batch_size = t["batch_size"] or micro_batch_size * accumulation',
        (f"{_NAMES}::test_batch_is_that_of_all_ranks[2]",),
    ),
    Bug(
        "what_is_not_here_is_ignored",
        "a recipe asks for noise on embeddings, and trains without it in silence",
        "config/trl_translation.py",
        "            self.refuse(name, rule.remedy)\n",
        "            pass\n",
        (f"{_NAMES}::test_what_cannot_be_is_refused_by_name[given0-neftune_noise_alpha 5]",),
    ),
    Bug(
        "unknown_name_of_a_recipe_is_ignored",
        "a misspelt name of a recipe is left out in silence",
        "config/recipes.py",
        "            problems.append(_unknown(one, ours))\n",
        "            pass\n",
        (f"{_NAMES}::test_an_unknown_name_of_a_recipe_is_refused_by_name",),
    ),
    Bug(
        "lowest_learning_rate_is_forgotten",
        "a schedule falls to zero where the recipe has a lowest rate",
        "config/trl_parts.py",
        'lowest = known.get("min_lr_rate")',
        "lowest = 0.0",
        (f"{_NAMES}::test_a_recipe_in_yaml_is_translated_and_flags_win",),
    ),
    Bug(
        "control_is_not_obeyed",
        "a callback sets control.should_training_stop, and the run goes on",
        "compat/trl/callbacks.py",
        'trainer.request_stop("a callback has set control.should_training_stop")',
        "pass",
        (f"{_FACE}::test_control_is_obeyed",),
    ),
    Bug(
        "veto_of_a_save_is_overruled",
        "a callback takes a due save back, and the run saves all the same",
        "compat/trl/callbacks.py",
        "        if self.control.should_save:\n            trainer.request_save()",
        "        if True:\n            trainer.request_save()",
        (f"{_FACE}::test_control_is_obeyed",),
    ),
    Bug(
        "history_begins_anew",
        "after a resume training_loss and log_history speak of the last part of the run alone",
        "compat/trl/run.py",
        "            self.told.replay(self._records_before(output_dir / METRICS_FILE))\n",
        "",
        (f"{_FACE}::test_resumed_run_tells_of_the_whole_run",),
    ),
    Bug(
        "prompts_of_completions_are_trained",
        "prompt-completion rows of a TRL user are trained on their prompts too",
        "datasets/tokenization/encoder.py",
        'targets = "everything" if content.num_prompt_messages is None else "completion"',
        'targets = "everything"',
        (f"{_FACE}::test_targets_are_trls",),
    ),
    Bug(
        "an_overridden_loss_is_ignored",
        "a script's own compute_loss is never called, and the run trains another loss",
        "compat/trl/trainer.py",
        "    if never_called:\n",
        "    if False:\n",
        (f"{_FACE}::test_a_method_that_would_never_be_called_is_refused",),
    ),
    Bug(
        "an_annotation_is_taken_for_a_method",
        "a script whose trainer has an annotated attribute is refused",
        "compat/trl/trainer.py",
        " if callable(getattr(Trainer, name, None))",
        "",
        (f"{_FACE}::test_a_subclass_may_have_annotated_attributes",),
    ),
    Bug(
        "an_epoch_is_not_ended",
        "a callback sets control.should_epoch_stop, and nothing happens",
        "compat/trl/callbacks.py",
        "if self.control.should_epoch_stop:",
        "if False:",
        (f"{_FACE}::test_a_callback_that_ends_an_epoch_early_is_told_that_it_cannot",),
    ),
    Bug(
        "an_answers_loss_of_plain_text",
        "assistant_only_loss trains the whole of a text, without a word",
        "compat/trl/inputs.py",
        'if data.targets == "all_turns" and not is_chat:',
        "if False:",
        (f"{_FACE}::test_a_loss_that_the_rows_do_not_allow_is_refused",),
    ),
    Bug(
        "masks_of_token_rows_are_lost",
        "rows of token ids are trained on their prompts, too",
        "compat/trl/inputs.py",
        'for name in ("completion_mask", "assistant_masks"))',
        "for name in ())",
        (f"{_FACE}::test_a_loss_that_the_rows_do_not_allow_is_refused",),
    ),
    Bug(
        "evaluations_without_rows",
        "a script asks for evaluations, and there is none",
        "compat/trl/trainer.py",
        'if eval_dataset is None and str(self.args.eval_strategy).rpartition(".")[2].lower() != "no":',
        "if False:",
        (f"{_FACE}::test_what_cannot_be_had_is_refused_by_name",),
    ),
    Bug(
        "a_missing_column_is_another_one",
        "a misspelt dataset_text_field trains the column text",
        "datasets/formats/__init__.py",
        'if given not in (None, "text"):',
        "if given is not None:",
        (f"{_FACE}::test_a_loss_that_the_rows_do_not_allow_is_refused",),
    ),
]
