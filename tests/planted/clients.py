"""Bugs of what OpenRLHF's scripts and command lines ask for."""

from __future__ import annotations

from tests.planted.bug import Bug

_SCRIPTS, _COMPAT, _LEFTOVERS = (f"tests/clients/test_{name}.py::test_" for name in ("scripts", "compat", "leftovers"))

BUGS = [
    Bug(
        "cfg_of_nested_adam_is_not_read",
        "a script's learning rate is ours, not its own",
        "strategy/training_cfg.py",
        '_with_values(default.adam, "adam.", values)',
        '_with_values(default.adam, "adam.", {})',
        (f"{_SCRIPTS}a_cfg_is_read_whole",),
    ),
    Bug(
        "unknown_name_of_a_cfg_passes",
        "a misspelt setting of a script is ignored",
        "strategy/training_cfg.py",
        "if problems or reading.problems:",
        "if reading.problems:",
        (f"{_SCRIPTS}a_cfg_that_cannot_be_is_refused",),
    ),
    Bug(
        "schedule_keeps_its_horizon",
        "the learning rate of a script climbs again at the end of the run",
        "engine/optimizers.py",
        'keywords["num_training_steps"] = num_steps',
        "pass",
        (f"{_SCRIPTS}a_script_of_0_9_trains_as_our_command_line",),
    ),
    Bug(
        "actor_learns_of_no_ring",
        "each rank of a ring attends to its own share of a pack alone",
        "strategy/strategy.py",
        "if note := join_ring(model, self.ds.ring_attn_size,",
        "if note := join_ring(model, 1,",
        (f"{_SCRIPTS}a_ring_that_the_actor_was_not_told_of[0.9]",),
    ),
    Bug(
        "overridden_hook_is_not_called",
        "what a user's trainer logs is lost",
        "trainer/command_trainer.py",
        "if is_overridden else []",
        "if False else []",
        (f"{_SCRIPTS}a_hook_that_a_subclass_overrides_is_called",),
    ),
    Bug(
        "loader_begins_at_the_first_row",
        "a resumed loop of the user's own trains rows twice",
        "strategy/strategy.py",
        "loader.sampler.set_epoch(*divmod(consumed_samples, len(dataset)))",
        "loader.sampler.set_epoch(0)",
        (f"{_SCRIPTS}a_loop_like_theirs_over_our_loader",),
    ),
    Bug(
        "entropy_and_log_probs_of_a_ring_are_parts",
        "each rank of a ring gets the log-probs of its own tokens alone",
        "models/next_token.py",
        "if self.ring is not None:\n            spread",
        "if False:\n            spread",
        (f"{_SCRIPTS}the_forward_pass_of_a_ring_and_of_a_pack",),
    ),
    Bug(
        "compat_changes_nothing",
        "--compat prints its table and trains by our meanings",
        "config/compat.py",
        "taken = [one for one in found if compat or one.always]",
        "taken = [one for one in found if one.always]",
        (f"{_COMPAT}compat_takes_their_meaning",),
    ),
    Bug(
        "differences_are_not_told",
        "flags that mean another thing than in OpenRLHF pass without a word",
        "config/parse.py",
        "reading.notes += take(root, reading.values, theirs)",
        "take(root, reading.values, theirs)",
        (f"{_COMPAT}flat_names_are_told_of_what_differs",),
    ),
    Bug(
        "short_sources_do_not_repeat",
        "a mix that is to use every source up stops at the shortest",
        "datasets/sources/mixing.py",
        "math.ceil(max(totals))",
        "math.floor(min(totals))",
        (f"{_COMPAT}rows_repeat_until_every_source_is_used_up",),
    ),
    Bug(
        "deepspeeds_checkpoint_is_called_interrupted",
        "the user of an OpenRLHF checkpoint is told an untruth",
        "strategy/checkpoints.py",
        'path.glob("*model_states.pt")',
        'path.glob("*no_such_states.pt")',
        (f"{_LEFTOVERS}a_checkpoint_of_deepspeed_is_named",),
    ),
    Bug(
        "adapters_train_over_their_base",
        "the folder of the base would hold its adapter alone",
        "config/outputs.py",
        "_has(folder, _OF_A_RUN) and not config.ds.lora.is_used",
        "_has(folder, _OF_A_RUN)",
        (f"{_LEFTOVERS}the_next_round_may_train_into_the_folder_that_it_reads",),
    ),
]
