"""Bugs of the room config/: what the user asked for."""

from __future__ import annotations

from tests.planted.bug import Bug

_SEVERAL_RANKS = (
    "tests/config/test_checks.py::test_flags_of_several_ranks_and_their_packages_pass_where_one_process_prepares"
)

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
        "secrets_are_shown",
        "the W&B key stands in a file beside the model, in the trackers, and in strategy.args, which scripts print",
        "config/schema.py",
        "        if not settings(type(config))[name].secret\n    }",
        "    }",
        (
            "tests/config/test_files.py::test_a_secret_is_not_written",
            "tests/config/test_names.py::test_a_namespace_holds_no_secret",
        ),
    ),
    Bug(
        "flat_name_wins",
        "of a nested and a flat name in args, the old one holds",
        "config/written.py",
        "names = (*synonyms(root), *settings(root))",
        "names = (*settings(root), *synonyms(root))",
        ("tests/config/test_names.py::test_a_nested_name_wins_over_its_flat_one",),
    ),
    Bug(
        "synonyms_of_settings_that_a_root_lacks",
        "a flag of training is taken by a command that has no such setting, and does nothing",
        "config/schema.py",
        "if {name for name, _ in resolve(table, old, None)} <= known}",
        "if True}",
        ("tests/config/test_roots.py",),
    ),
    Bug(
        "notices_of_every_rank",
        "eight ranks print the same sentence eight times",
        "config/parse.py",
        'if os.environ.get("RANK", "0") == "0":',
        "if True:",
        ("tests/config/test_roots.py::test_a_notice_is_printed_once_by_the_first_rank",),
    ),
    Bug(
        "braces_of_a_template_counted",
        "a template with {{}} beside its place is refused by the flags though it can be filled",
        "config/checks.py",
        'places in ([["", "", None]], [["0", "", None]])',
        'template.count("{}") == 1',
        ("tests/config/test_checks.py::test_what_can_be_is_not_refused",),
    ),
    Bug(
        "compiler_without_cuda_accepted",
        "a run on the CPU fails inside the compiler minutes after its start",
        "config/checks.py",
        "if not torch.cuda.is_available():",
        "if False:",
        ("tests/config/test_checks.py::test_the_compiler_is_refused_where_there_is_no_cuda_device",),
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
    Bug(
        "a_tilde_is_a_folder",
        "an output in the home folder lands in a folder named ~",
        "config/kinds.py",
        "AfterValidator(os.path.expanduser), ",
        "",
        ("tests/config/test_parse.py::test_a_tilde_is_the_home_folder",),
    ),
    Bug(
        "early_stopping_knows_no_epochs",
        "early stopping by the evaluations after every epoch is refused",
        "config/checks.py",
        "config.eval.steps > 0 or config.eval.every_epoch",
        "config.eval.steps > 0",
        ("tests/config/test_checks.py::test_what_can_be_is_not_refused",),
    ),
    Bug(
        "epochs_are_evaluated_on_nothing",
        "--eval.every_epoch without rows is taken, and nothing is evaluated",
        "config/checks.py",
        "if config.eval.every_epoch and not config.eval.dataset:",
        "if False:",
        ("tests/config/test_checks.py::test_an_impossible_combination_is_one_problem",),
    ),
    Bug(
        "a_look_at_data_counts_ranks",
        "with the flags of a training on several ranks its data cannot be looked at or prepared",
        "config/checks.py",
        "    _needed,\n    *_LAYOUT_CHECKS_ANYWHERE,\n",
        "    _needed,\n    *LAYOUT_CHECKS,\n",
        (_SEVERAL_RANKS,),
    ),
    Bug(
        "a_training_does_not_count_its_ranks",
        "a training whose ranks or packages do not suffice is refused only after its model is loaded, in other words",
        "config/checks.py",
        "(*COMMON_CHECKS, *_RANK_CHECKS, _compiler,",
        "(*COMMON_CHECKS, _compiler,",
        (_SEVERAL_RANKS,),
    ),
    Bug(
        "long_written_configuration_cannot_be_read",
        "a run of many files cannot be started by the run_config.yaml that it has written",
        "config/sources.py",
        "MAX_YAML_BYTES = 1 << 17",
        "MAX_YAML_BYTES = 1 << 15",
        ("tests/config/test_files.py::test_what_a_run_of_many_files_has_written_reads_back",),
    ),
]
