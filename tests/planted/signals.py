"""Planted bugs: signals, kills and full disks that end something in its middle, and what a folder then holds."""

from __future__ import annotations

from tests.planted.bug import Bug

_PROCESS = "tests/rejection/test_reward_process.py::"
_SIGNALS = "tests/rejection/test_signals.py::"
_MOVE = "tests/checkpoint/test_export.py::test_a_model_of_another_run_is_moved_into_one_folder_whatever_ends_the_move"
_ASIDE = "tests/runs/test_files.py::test_files_of_another_run_move_aside_and_those_of_a_folder_that_was_removed_do_not"

BUGS = [
    Bug(
        "a_process_starts_while_the_stage_ends",
        "after Ctrl-C a function that was just being started runs on beside the next stage",
        "rejection/rewards/process.py",
        "        with self._turn:  # else one that is being started while the stage ends would be left",
        "        if not self._has_ended:  #",
        (_PROCESS + "test_a_process_that_is_being_started_when_the_stage_ends_is_neither_waited_for_nor_left",),
    ),
    Bug(
        "late_threads_start_processes",
        "Ctrl-C is not heard until a call that began after it has ended",
        "rejection/rewards/function_reward.py",
        "        if self._is_closed:",
        "        if not self._all:",
        (_PROCESS + "test_a_thread_that_comes_late_starts_no_process",),
    ),
    Bug(
        "a_thread_waits_for_what_has_left_the_group",
        "a stage waits out its time limit for a function that is killed, where a process of it has left the group",
        "rejection/rewards/process.py",
        "                    self._ours.shutdown(socket.SHUT_RDWR)\n",
        "                    pass\n",
        (_PROCESS + "test_a_thread_is_told_though_what_the_function_has_started_left_its_group",),
    ),
    Bug(
        "scoring_waits_without_end",
        "a Ctrl-C that comes on the way into a wait is not heard until an answer is judged",
        "rejection/score.py",
        "wait(pending, SECONDS_BETWEEN_SIGNALS, FIRST_COMPLETED)",
        "wait(pending, None, FIRST_COMPLETED)",
        (_SIGNALS + "test_a_signal_that_does_not_wake_the_scoring_is_heard",),
    ),
    Bug(
        "asking_waits_without_end",
        "a Ctrl-C that comes on the way into a wait is not heard until a server answers",
        "rejection/engines/openai_engine.py",
        "wait(waiting, SECONDS_BETWEEN_SIGNALS, FIRST_COMPLETED)",
        "wait(waiting, None, FIRST_COMPLETED)",
        (_SIGNALS + "test_a_signal_that_does_not_wake_the_asking_is_heard",),
    ),
    Bug(
        "scoring_stays_for_its_threads",
        "after Ctrl-C score waits, and tries again, until its server has answered",
        "cli/score.py",
        "    leave_when_asked()\n    run_command(main)",
        "    run_command(main)",
        (_SIGNALS + "test_scoring_leaves_while_a_server_is_at_its_answer",),
    ),
    Bug(
        "an_early_signal_is_lost",
        "a reward server that is told to end when it has just loaded its model serves on",
        "rejection/reward_server.py",
        "        signal.signal(number, server.handle_exit)",
        "        signal.signal(number, lambda *_: None)",
        (_SIGNALS + "test_a_server_that_is_told_to_end_before_it_listens_ends",),
    ),
    Bug(
        "lines_that_wait_are_dropped",
        "metrics that a full disk kept in memory are dropped at the end of the run without a word",
        "tracking/metrics_file.py",
        "            self._tell_what_waits()\n",
        "            pass\n",
        ("tests/tracking/test_metrics_file.py::test_what_has_no_room_at_the_end_is_told_and_kept_elsewhere",),
    ),
    Bug(
        "half_a_line_is_kept_elsewhere",
        "of the first line that the disk had no room for only the end is kept",
        "tracking/metrics_file.py",
        '.rpartition(b"\\n")[2] + lines',
        "[:0] + lines",
        ("tests/tracking/test_metrics_file.py::test_what_has_no_room_at_the_end_is_told_and_kept_elsewhere",),
    ),
    Bug(
        "the_card_counts_lines",
        "a model's card tells fewer optimizer steps than the model was trained for",
        "run/model_card.py",
        '{"optimizer steps": exported_step}',
        '{"optimizer steps": steps[-1]["global_step"] if steps else 0}',
        ("tests/runs/test_hub.py::test_the_steps_of_the_card_are_the_runs_though_metrics_lack_the_last",),
    ),
    Bug(
        "a_move_begins_anew_after_a_kill",
        "an earlier run's model is torn into two folders, and neither can be opened",
        "checkpoint/export.py",
        "    moving = folder / _MOVING_NAME\n",
        '    moving = folder / f"{_MOVING_NAME}-{secrets.token_hex(4)}"\n',
        (_MOVE,),
    ),
    Bug(
        "a_move_forgets_the_moved_manifest",
        "after a kill files of an earlier run's model stay among those of the next one",
        "checkpoint/export.py",
        "for place in (folder, folder / _MOVING_NAME)",
        "for place in (folder,)",
        (_MOVE,),
    ),
    Bug(
        "a_manifest_comes_late",
        "after a kill files of this run are moved aside as an earlier run's",
        "checkpoint/export.py",
        "key=lambda name: (name != MANIFEST_NAME, name)",
        "key=lambda name: (name == MANIFEST_NAME, name)",
        (_MOVE,),
    ),
    Bug(
        "what_is_brought_back_is_another_runs",
        "the metrics of a run whose folder was removed are set aside when it goes on",
        "run/report.py",
        "((run_id, None) if goes_on else (run_id,))",
        "(run_id,)",
        (_ASIDE,),
    ),
    Bug(
        "an_earlier_card_is_overwritten",
        "the model card of an earlier run in the folder is kept nowhere",
        "run/report.py",
        "card = [CARD_FILE] if is_own_card(folder / CARD_FILE) else []",
        "card = [CARD_FILE] if is_own_card(folder) else []",
        (_ASIDE,),
    ),
    Bug(
        "a_users_card_is_moved",
        "a README.md of the user's own is moved aside by a run",
        "run/report.py",
        "card = [CARD_FILE] if is_own_card(folder / CARD_FILE) else []",
        "card = [CARD_FILE]",
        ("tests/runs/test_files.py::test_a_card_of_the_users_own_is_moved_by_no_run",),
    ),
    Bug(
        "two_runs_are_one_curve",
        "two runs with one folder of TensorBoard are drawn as one zigzag",
        "tracking/sinks.py",
        "(_OF_RUN in file.name and not file.name.endswith(own))",
        "(_OF_RUN in file.name and not own)",
        ("tests/tracking/test_remote_sinks.py::test_a_run_that_goes_on_moves_the_events_of_another_aside_and_says_so",),
    ),
    Bug(
        "dropped_requests_are_called_answered",
        "a reward server that ends says that all is answered, and its client gets a 500",
        "rejection/reward_server.py",
        "        except asyncio.CancelledError:",
        "        except RecursionError:",
        (_SIGNALS + "test_a_request_that_a_server_drops_at_its_end_is_told_to_the_client_and_in_words",),
    ),
]
