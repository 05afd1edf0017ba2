"""Bugs of the start of a command."""

from __future__ import annotations

from tests.planted.bug import Bug

_START = "tests/runs/test_start.py::test_what_modules_made_is_left_out_of_later_searches"

BUGS = [
    Bug(
        "garbage_is_never_searched_again",
        "the memory of a long run grows",
        "cli/entry.py",
        "        if was_enabled:\n            gc.enable()",
        "        pass",
        (_START,),
    ),
    Bug(
        "loaded_modules_are_searched_for_garbage",
        "a start takes 0.7 s more, and each later search of the heap 0.6 s",
        "cli/entry.py",
        "        gc.freeze()\n",
        "",
        (_START,),
    ),
    Bug(
        "cut_rows_are_no_news",
        "the start of a run says nothing of rows that it cuts",
        "run/start_table.py",
        "if details := train_data.report.details():",
        "if details := []:",
        ("tests/runs/test_start_table.py::test_the_table_tells_what_became_of_the_rows",),
    ),
    Bug(
        "a_gpu_that_is_taken",
        "a GPU that another process has for itself ends the start in a traceback",
        "engine/devices.py",
        '    except RuntimeError as error:\n        raise UserError(f"GPU',
        '    except KeyError as error:\n        raise UserError(f"GPU',
        ("tests/cuda/test_devices.py::test_a_gpu_that_another_process_has_for_itself_is_told",),
    ),
    Bug(
        "a_home_that_cannot_be_written",
        "a home that cannot be written ends the run, though torch's AdamW is at hand",
        "engine/operators.py",
        "    except NoBuildFolder as error:\n        return str(error)\n",
        "    except NoBuildFolder:\n        raise\n",
        ("tests/cuda/test_no_compiler.py::test_a_home_that_cannot_be_written_does_not_end_the_run",),
    ),
    Bug(
        "emulated_bf16_is_no_news",
        "a run on a GPU before Ampere is slow, and nobody says why",
        "run/start_table.py",
        "_FIRST_WITH_BF16 = 8",
        "_FIRST_WITH_BF16 = 0",
        ("tests/runs/test_start_table.py::test_a_gpu_that_emulates_bf16_is_told",),
    ),
    Bug(
        "adapters_change_no_result",
        "a run without room is told that adapters change no result",
        "run/memory_estimate.py",
        "more ranks would take less; of what changes it, adapters (--ds.lora.rank)",
        "more ranks or --ds.lora.rank would take less",
        ("tests/runs/test_memory_estimate.py::test_a_run_without_room_is_refused_with_a_way_that_fits",),
    ),
    Bug(
        "a_size_of_1024s_is_one_of_1000s",
        "a device of 80GiB is planned for as one of 80GB",
        "config/kinds.py",
        "(1024 if found[3] else 1000)",
        "1000",
        ("tests/config/test_parse.py::test_a_size_is_read_as_it_is_written",),
    ),
    Bug(
        "an_export_that_fails_unforeseen_loses_the_training",
        "an error of a kind that nobody foresaw, in the export behind the last step, throws the trained weights away",
        "run/rescue.py",
        "if any_rank_within(True, self._group, _SECONDS_FOR_ALL):",
        "if not self._trainer:",
        ("tests/trainer/test_callbacks.py::test_an_export_that_fails_by_a_fault_of_ours_loses_no_training",),
    ),
    Bug(
        "a_number_of_ranks_that_is_none_is_a_traceback",
        "WORLD_SIZE=abc in the environment ends a command in a traceback",
        "config/parse.py",
        'if not re.fullmatch("0*[1-9][0-9]{0,8}", said):',
        "if not said:",
        ("tests/config/test_parse.py::test_a_number_of_ranks_that_is_none_is_told",),
    ),
    Bug(
        "a_list_of_one_is_one_value",
        "a list in a file is told as one value where one is wanted",
        "config/kinds.py",
        "if len(value) == 1:",
        "if not value:",
        ("tests/config/test_files.py::test_a_wrong_file_is_one_problem_that_names_it",),
    ),
    Bug(
        "a_null_content_is_content",
        "a message of null is told to have no content, and to have content",
        "datasets/formats/chat.py",
        'has no content; it has {names(_filled(raw))}"',
        'has no content; it has {names(raw)}"',
        ("tests/datasets/test_formats.py::test_a_row_that_cannot_be_used_says_why",),
    ),
]
