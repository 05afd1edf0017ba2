"""Bugs of the table that a run begins with, the page that it leaves, and its push."""

from __future__ import annotations

from tests.planted.bug import Bug

_FACE = "tests/compat/test_trl_face.py::test_"

BUGS = [
    Bug(
        "restarts_are_not_written_down",
        "the page of a run that was broken off says that there was no restart",
        "tracking/tracker.py",
        "    note_restart(Path(output_dir), resume_step)\n",
        "",
        (
            "tests/runs/test_resume.py::test_resumed_on_one_rank[inside an epoch]",
            "tests/tracking/test_tracker.py::test_each_restart_has_a_line_beside_the_metrics_until_a_new_run_begins",
        ),
    ),
    Bug(
        "restarts_of_an_earlier_run_are_told",
        "a new run in the folder of another one tells of that one's restarts",
        "tracking/metrics_file.py",
        "        keep_aside(folder / RESTARTS_FILE)\n        return\n",
        "        return\n",
        ("tests/tracking/test_tracker.py::test_each_restart_has_a_line_beside_the_metrics_until_a_new_run_begins",),
    ),
    Bug(
        "host_memory_is_in_kilobytes",
        "the page shows a thousandth of the memory that a process has held",
        "trainer/callbacks/tracking.py",
        'sys.platform == "darwin" else 1024',
        'sys.platform == "darwin" else 1',
        ("tests/trainer/test_tracking_callback.py::test_without_a_gpu_it_is_the_peak_of_the_process",),
    ),
    Bug(
        "host_memory_is_not_drawn",
        "the page of a run on the CPU says nothing of its memory",
        "run/report.py",
        '    "memory of the process, bytes": ("host_memory_bytes",),\n',
        "",
        ("tests/runs/test_answers.py::test_the_page_has_curves_answers_data_and_settings",),
    ),
    Bug(
        "memory_of_the_start_table_is_empty",
        "the table before the first step does not say what memory the run needs",
        "run/start_table.py",
        'yield "memory a rank", _memory(layout.memory, way_of(config), num_tokens, saves_beside)',
        'yield "memory a rank", ""',
        ("tests/runs/test_start_table.py::test_the_table_of_a_run_has_its_memory_by_parts",),
    ),
    Bug(
        "the_branch_is_not_made",
        "a push to a revision that is not there yet is refused by the hub",
        "run/push.py",
        "            api.create_branch(repository, branch=revision, exist_ok=True)\n",
        "            pass\n",
        ("tests/runs/test_hub.py::test_the_push_done_again_uploads_the_model_whole",),
    ),
    Bug(
        "every_push_is_private",
        "a repository that is to be public is made as a private one",
        "cli/push.py",
        "private=hub.private",
        "private=True",
        ("tests/runs/test_hub.py::test_a_repository_is_public_where_that_is_asked_for",),
    ),
    Bug(
        "everything_is_pushed",
        "a push uploads checkpoints and whatever else lies in the folder",
        "run/push.py",
        "allow_patterns=[*map(glob.escape, _names_to_push(folder, more))],",
        "",
        ("tests/runs/test_hub.py::test_the_push_done_again_uploads_the_model_whole",),
    ),
    Bug(
        "card_of_the_best_model_states_the_last_one",
        "the card beside the best model has the losses of the last one",
        "run/model_card.py",
        'if record["global_step"] <= exported_step]',
        "]",
        ("tests/runs/test_hub.py::test_the_card_states_the_numbers_of_the_exported_step",),
    ),
    Bug(
        "best_model_says_that_it_is_the_last",
        "card, page and manifest of the best model name the last step",
        "strategy/checkpoints.py",
        "    trained.went_back_to_step = step\n",
        "",
        ("tests/trainer/test_callbacks.py::test_the_best_model_is_exported_where_it_is_wished",),
    ),
    Bug(
        "best_model_passes_for_the_last",
        "a finished run that is started again without --ckpt.export_best takes its best model for the last",
        "checkpoint/checkpointer.py",
        "return best if wants_best and best is not None",
        "return best if best is not None",
        ("tests/trainer/test_callbacks.py::test_the_best_model_is_exported_where_it_is_wished",),
    ),
    Bug(
        "mlflow_does_not_say_where_runs_go",
        "a user of the extra mlflow reads of an unsupported URI that nobody has given",
        "tracking/more_sinks.py",
        "{first_line_of(problem)}{self.remedy}",
        "{first_line_of(problem)}",
        ("tests/tracking/test_more_sinks.py::test_mlflow_without_a_place_for_its_runs_says_how_one_is_named",),
    ),
    Bug(
        "judge_is_looked_at_after_the_data",
        "a name in --eval.prompts_reward that is wrong is told when the data are prepared and the model is built",
        "run/answering.py",
        "        check_functions(find_rewards(asked))\n",
        "",
        ("tests/runs/test_answers.py::test_what_cannot_be_is_told_before_data_are_prepared",),
    ),
    Bug(
        "judge_that_cannot_begin_is_a_broken_callback",
        "a reward model that cannot be opened ends a run with 3, as a callback that raises",
        "trainer/callbacks/callback.py",
        "    except CannotBegin:",
        "    except ZeroDivisionError:",
        ("tests/runs/test_answers.py::test_a_judge_that_cannot_begin_ends_the_run_on_all_ranks_with_its_words",),
    ),
    Bug(
        "a_saved_model_is_not_pushed",
        "a script with push_to_hub that calls save_model() leaves nothing on the hub",
        "compat/trl/trainer.py",
        '            self._upload("Model save")\n',
        "            pass\n",
        (f"{_FACE}a_model_that_is_saved_is_pushed_where_that_is_asked_for",),
    ),
]
