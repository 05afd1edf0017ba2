"""Bugs of the rooms watchdog/ and parallel/: ranks that watch each other, and collectives."""

from __future__ import annotations

from tests.planted.bug import Bug

_DETECTOR = "tests/watchdog/test_failure_detector.py"
_CONNECTIONS = "tests/watchdog/test_connections.py"

BUGS = [
    Bug(
        "victim_named_for_the_cause",
        "a rank that failed because another was killed is named in its place",
        "watchdog/failure_detector.py",
        "key=lambda loss: (not loss.is_gone, loss.decide_at)",
        "key=lambda loss: loss.decide_at",
        (f"{_DETECTOR}::test_a_gone_rank_is_named_before_one_that_failed_for_its_sake",),
    ),
    Bug(
        "long_work_taken_for_a_hang",
        "a save that takes long ends the job",
        "watchdog/failure_detector.py",
        "if not activity.is_long and now",
        "if now",
        (f"{_DETECTOR}::test_work_announced_as_long_may_take_long",),
    ),
    Bug(
        "own_pause_blamed_on_peers",
        "a process that was stopped and goes on ends the job",
        "watchdog/failure_detector.py",
        "peer.last_heard += seconds",
        "peer.last_heard += 0.0",
        (f"{_DETECTOR}::test_a_process_that_was_stopped_itself_names_nobody",),
    ),
    Bug(
        "orderly_end_taken_for_a_loss",
        "a job that is complete ends with the code of a lost rank",
        "watchdog/failure_detector.py",
        "if not self._peers[rank].has_left:",
        "if rank in self._peers:",
        (f"{_DETECTOR}::test_a_rank_that_said_it_leaves_is_not_lost",),
    ),
    Bug(
        "message_in_parts_lost",
        "a heartbeat that comes in two parts is lost, and a rank seems silent",
        "watchdog/connections.py",
        "(self._unread[rank] + data)",
        "data",
        (f"{_CONNECTIONS}::test_a_message_that_comes_in_parts_is_put_together",),
    ),
    Bug(
        "none_means_all_ranks",
        "a function that was given no group waits for ranks that do not call it",
        "parallel/collectives.py",
        "return 1 if group is None else dist.get_world_size(group)",
        "return dist.get_world_size(group)",
        ("tests/parallel/test_collectives.py::test_none_is_this_rank_alone_among_several",),
    ),
]
