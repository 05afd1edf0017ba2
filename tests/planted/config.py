"""Bugs of the room config/: what the user asked for."""

from __future__ import annotations

from tests.planted.bug import Bug

BUGS = [
    Bug(
        "unknown_flag_accepted",
        "a misspelt flag is ignored: the run trains with the default",
        "config/parse.py",
        "                _report_unknown(reading, item)\n",
        "                pass\n",
        ("tests/config/test_parse.py::test_a_wrong_flag_is_one_problem_with_its_remedy",),
    ),
    Bug(
        "file_wins_over_flag",
        "a flag is overruled by the configuration file",
        "config/sources.py",
        "return from_files + [flag for flag in flags if flag.name != CONFIG_FLAG], problems",
        "return [flag for flag in flags if flag.name != CONFIG_FLAG] + from_files, problems",
        ("tests/config/test_files.py::test_a_flag_wins_over_the_file_wherever_it_stands",),
    ),
    Bug(
        "secrets_in_the_resolved_file",
        "the W&B key stands in a file beside the model",
        "config/resolved.py",
        "        if row.secret:\n            continue\n",
        "",
        ("tests/config/test_files.py::test_a_secret_is_not_written",),
    ),
    Bug(
        "secrets_in_args",
        "the W&B key is in strategy.args, which scripts print",
        "config/namespace.py",
        "None if row.secret else values[row.name]",
        "values[row.name]",
        ("tests/config/test_names.py::test_a_namespace_holds_no_secret",),
    ),
    Bug(
        "flat_name_wins",
        "of a nested and a flat name in args, the old one holds",
        "config/namespace.py",
        'for name in (*SWITCHES, "use_wandb", *RENAMED, *settings()):',
        'for name in (*settings(), *SWITCHES, "use_wandb", *RENAMED):',
        ("tests/config/test_names.py::test_a_nested_name_wins_over_its_flat_one",),
    ),
    Bug(
        "fewer_samples_than_ranks_accepted",
        "ranks without samples idle through the whole run",
        "config/checks.py",
        "if config.train.batch_size < data_ranks:",
        "if config.train.batch_size < 1:",
        ("tests/config/test_parse.py::test_the_number_of_ranks_comes_from_the_environment",),
    ),
    Bug(
        "ring_without_packing_accepted",
        "a ring is given padded batches, found only after the model is loaded",
        "config/checks.py",
        "if config.ds.ring_attn_size > 1 and not config.ds.packing_samples:",
        "if config.ds.ring_attn_size > 99 and not config.ds.packing_samples:",
        ("tests/config/test_checks.py::test_an_impossible_combination_is_one_problem",),
    ),
]
