"""Bugs of scripts over the strategy and its trainers: own loops, checkpoints, batch sizes, optimizers, losses."""

from __future__ import annotations

from tests.planted.bug import Bug

_STRATEGY = "tests/strategy/test_strategy.py::test_"
_SIZES = f"{_STRATEGY}a_batch_size_that_a_loader_of_ones_own_contradicts_is_told"
_RESUMED = f"{_STRATEGY}each_step_over_a_loader_of_ones_own_stands_once_after_a_resume"
_LOSSES = "tests/trainer/test_own_losses.py::test_"
_PAIR_LOADERS = "tests/trainer/test_pair_trainers.py::test_a_loader_that_knows_no_pairs_is_refused"

BUGS = [
    Bug(
        "models_in_turn_share_a_count",
        "of an actor and a critic that a script trains in turn, the actor never gets an update",
        "strategy/own_loop.py",
        "trained.num_backwards += 1",
        'trained.num_backwards = self.num_backwards = getattr(self, "num_backwards", 0) + 1',
        (f"{_STRATEGY}models_that_train_in_turn_accumulate_each_by_itself",),
    ),
    Bug(
        "a_new_fit_joins_another_runs_checkpoints",
        "a script's new run stands among the checkpoints of an old one, which a restart goes on with",
        "trainer/command_trainer.py",
        "if self.trained.restored_progress is None and consumed_samples == 0:",
        "if False:",
        (f"{_STRATEGY}a_new_run_of_a_script_sets_another_runs_checkpoints_aside",),
    ),
    Bug(
        "an_own_loop_joins_another_runs_checkpoints",
        "a loop of the user's own saves among the checkpoints of an old run, which a restart goes on with",
        "strategy/checkpoints.py",
        "if not checkpointer.holds_own_run:",
        "if False:",
        (f"{_STRATEGY}an_own_loop_sets_checkpoints_aside_that_it_has_not_loaded",),
    ),
    Bug(
        "saves_of_a_hook_are_nobodys",
        "the checkpoints that a script's hook saves are moved away as another run's",
        "strategy/strategy.py",
        "RunIdentity(model_shape=model_shape(trained.engine.module), run_id=trained.run_id)",
        "RunIdentity(model_shape=model_shape(trained.engine.module))",
        (f"{_STRATEGY}a_hook_saves_checkpoints_of_its_run",),
    ),
    Bug(
        "own_checkpoints_are_set_aside",
        "a script's second fit moves the checkpoints of its first one away",
        "checkpoint/store.py",
        "if own_run_id is None or not is_of_run(path, own_run_id)]",
        "if True]",
        ("tests/checkpoint/test_store.py::test_checkpoints_of_the_run_that_begins_stay",),
    ),
    Bug(
        "weights_loaded_behind_prepare",
        "strategy.load_model after prepare seems to work, and the first step brings the old weights back",
        "strategy/strategy.py",
        "if model.trained is not None:",
        "if False:",
        ("tests/clients/test_scripts.py::test_a_strategy_takes_everything_by_its_place",),
    ),
    Bug(
        "no_samples_where_there_is_no_checkpoint",
        "a script that asks for consumed_samples dies of a KeyError at its first start",
        "strategy/strategy.py",
        'return None, {"consumed_samples": 0}',
        "return None, {}",
        (_RESUMED,),
    ),
    Bug(
        "steps_counted_by_samples_at_a_resume",
        "after a resume over a loader of the user's own a step is missing from metrics.jsonl",
        "trainer/command_trainer.py",
        "standard_callbacks(self, config, num_steps, first_step, identity)",
        "standard_callbacks(\n"
        "                    self, config, num_steps, self.windows.num_steps_before(consumed_samples), identity\n"
        "                )",
        (_RESUMED,),
    ),
    Bug(
        "a_trainers_batch_size_is_ignored",
        "SFTTrainer(batch_size=16) trains steps of the strategy's 8 samples in silence",
        "trainer/step_size.py",
        "if batch_size not in (1, strategy.train_batch_size):",
        "if False:",
        (_SIZES,),
    ),
    Bug(
        "a_loaders_step_size_is_not_looked_at",
        "over a loader of the user's own with larger batches a step has twice the samples, in silence",
        "trainer/step_size.py",
        "if num_samples == strategy.train_batch_size:",
        "if True:",
        (_SIZES,),
    ),
    Bug(
        "micro_batches_that_make_no_step",
        "a batch size that the micro-batches do not divide is rounded down in silence",
        "strategy/script_names.py",
        "if size > at_once * ranks and size % (at_once * ranks):",
        "if False:",
        (_SIZES,),
    ),
    Bug(
        "an_unsavable_state_is_found_at_the_first_save",
        "a script's optimizer trains for hours before the first save says that none can be",
        "trainer/callbacks/saving.py",
        "            self._check_state(trainer)\n",
        "",
        (f"{_STRATEGY}a_state_that_no_checkpoint_holds_is_told_at_the_first_update",),
    ),
    Bug(
        "an_own_loop_is_not_told_of_an_unsavable_state",
        "a loop of the user's own trains for hours before its first save says that none can be",
        "strategy/own_loop.py",
        "if is_first and (problem := problem_of_state(trained.engine)):",
        "if False and (problem := problem_of_state(trained.engine)):",
        (f"{_STRATEGY}a_loop_of_ones_own_is_told_of_a_state_that_no_checkpoint_holds",),
    ),
    Bug(
        "no_schedule_is_no_constant_one",
        "a script that gives prepare no schedule ends with an AttributeError of None",
        "strategy/strategy.py",
        "if scheduler is None:",
        "if False:",
        (f"{_STRATEGY}a_state_that_no_checkpoint_holds_is_told_at_the_first_update",),
    ),
    Bug(
        "an_optimizer_is_read_as_a_cfg",
        "prepare((model, optimizer)) speaks of unknown names in place of the missing schedule",
        "strategy/training_cfg.py",
        "if isinstance(cfg, Optimizer):",
        "if False:",
        (f"{_STRATEGY}an_optimizer_is_no_cfg",),
    ),
    Bug(
        "a_loss_set_on_a_trainer_is_ignored",
        "a script sets trainer.loss_fn, and the run trains another loss",
        "trainer/command_trainer.py",
        "if name in _NEVER_READ:",
        "if False:",
        (f"{_LOSSES}a_loss_that_is_set_is_refused",),
    ),
    Bug(
        "a_loss_of_a_subclass_is_ignored",
        "a subclass's own concatenated_forward is never called, and the run trains another loss",
        "trainer/command_trainer.py",
        "        self._check_overrides()\n",
        "",
        (f"{_LOSSES}a_subclass_with_such_a_method_is_refused",),
    ),
    Bug(
        "torchs_loader_passes_for_one_of_pairs",
        "of torch's DataLoader over pairs the rejected answer's ids are read as a loss mask",
        "trainer/pair_trainers.py",
        'if loader is None or (isinstance(loader, StepWindowLoader) and hasattr(loader.dataset, "unit")):',
        'if loader is None or hasattr(getattr(loader, "dataset", None), "unit"):',
        (_PAIR_LOADERS,),
    ),
    Bug(
        "pairs_are_evaluated_over_any_loader",
        "trainer.evaluate(a loader of torch's) reads the rejected answer's ids as a loss mask",
        "trainer/pair_trainers.py",
        "        _check_pairs(self, dataloader)\n",
        "",
        (_PAIR_LOADERS,),
    ),
    Bug(
        "models_of_a_script_are_one_run",
        "the saves of a script's second model remove those of its first",
        "strategy/strategy.py",
        "        trained.run_id = gather_objects(secrets.token_hex(8), self.groups.control)[0]\n",
        '        trained.run_id = "the script"\n',
        ("tests/strategy/test_strategy.py::test_the_fit_of_another_model_is_another_run",),
    ),
    Bug(
        "a_fit_that_writes_nothing_moves_checkpoints",
        "a short script sets the checkpoints of a month aside",
        "trainer/command_trainer.py",
        "        if self.disable_ds_ckpt and not self.save_hf_ckpt:\n            return\n",
        "",
        ("tests/strategy/test_strategy.py::test_a_fit_that_writes_no_checkpoint_leaves_those_of_others",),
    ),
]
