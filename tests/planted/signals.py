"""Planted bugs: a signal that asks a stage to leave while its threads are at something."""

from __future__ import annotations

from tests.planted.bug import Bug

_PROCESS = "tests/rejection/test_reward_process.py::"
_SIGNALS = "tests/rejection/test_signals.py::"

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
]
