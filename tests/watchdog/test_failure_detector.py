"""The rank that is lost, in words: verdicts over messages, with a clock of the test's own."""

from __future__ import annotations

import pytest

from openrlhf.watchdog.failure_detector import (
    SECONDS_FOR_FIRST_CAUSE,
    SECONDS_TO_LEAVE_TOGETHER,
    Activity,
    FailureDetector,
)

HANG_SECONDS = 60.0
START = 1000.0


@pytest.fixture
def detector() -> FailureDetector:
    return FailureDetector(rank=0, peers=[1, 2], hang_seconds=HANG_SECONDS, heartbeat_seconds=1.0, now=START)


def heartbeat(
    what: str, seconds: float = 0.0, samples: tuple[str, ...] = (), is_long: bool = False
) -> dict[str, object]:
    return {"what": what, "samples": list(samples), "long": is_long, "seconds": seconds}


def own(now: float) -> Activity:
    return Activity("micro-batch 1 of step 5", since=now)


def test_ranks_that_send_heartbeats_and_move_are_not_lost(detector):
    for second in range(300):
        now = START + second
        for rank in (1, 2):
            detector.on_message(rank, heartbeat(f"step {second}"), now)
        assert detector.verdict(own(now), now) is None


def test_a_silent_rank_is_named_with_what_it_was_doing(detector):
    detector.on_message(1, heartbeat("micro-batch 3 of step 17", samples=("rows.jsonl:4", "rows.jsonl:9")), START)
    now = START + HANG_SECONDS + 1
    detector.on_message(2, heartbeat("update of step 17"), now)
    verdict = detector.verdict(own(now), now)
    assert verdict.rank == 1
    assert "rank 1 has said nothing for 61 s" in verdict.words
    assert "last: micro-batch 3 of step 17; samples rows.jsonl:4, rows.jsonl:9." in verdict.words
    assert "rank 2, for 0 s: update of step 17" in verdict.words


def test_of_stuck_ranks_the_silent_one_is_named_though_another_is_stuck_longer(detector):
    now = START + HANG_SECONDS + 1
    detector.on_message(1, heartbeat("micro-batch 3 of step 17"), now - 10)
    detector.on_message(2, heartbeat("update of step 16", seconds=HANG_SECONDS + 1), now)
    assert detector.verdict(own(now), now).rank == 1


def test_of_stuck_ranks_with_heartbeats_the_one_that_moved_least_is_named(detector):
    now = START + 5
    detector.on_message(1, heartbeat("reading the next samples", seconds=HANG_SECONDS + 2), now)
    detector.on_message(2, heartbeat("update of step 17", seconds=HANG_SECONDS + 1), now)
    verdict = detector.verdict(own(now), now)
    assert "rank 1 has done the same for 62 s; last: reading the next samples" in verdict.words


def test_work_announced_as_long_may_take_long(detector):
    now = START + 10 * HANG_SECONDS
    for rank in (1, 2):
        detector.on_message(rank, heartbeat("exporting the model", seconds=10 * HANG_SECONDS, is_long=True), now)
    assert detector.verdict(own(now), now) is None


def test_a_gone_rank_is_named_before_one_that_failed_for_its_sake(detector):
    detector.on_message(2, {"failed": "RuntimeError: connection closed by peer"}, START)
    detector.on_disconnect(1, START + 0.2)
    assert detector.verdict(own(START), START + 0.5) is None, "news is collected for a while"
    now = START + SECONDS_FOR_FIRST_CAUSE + 0.3
    assert "rank 1 is gone" in detector.verdict(own(now), now).words


def test_a_rank_that_said_it_leaves_is_not_lost(detector):
    for rank in (1, 2):
        detector.on_message(rank, {"left": None}, START)
        detector.on_disconnect(rank, START)
    now = START + 10 * HANG_SECONDS
    assert detector.verdict(own(now), now) is None


def test_a_rank_that_leaves_alone_for_a_reason_is_named(detector):
    detector.on_message(1, {"left": "UserError: the disk is full"}, START)
    detector.on_disconnect(1, START)
    detector.on_message(2, heartbeat("waiting"), START + SECONDS_TO_LEAVE_TOGETHER - 1)
    assert detector.verdict(own(START), START + SECONDS_TO_LEAVE_TOGETHER - 1) is None
    now = START + SECONDS_TO_LEAVE_TOGETHER
    assert "rank 1 has left: UserError: the disk is full" in detector.verdict(own(now), now).words


def test_a_process_that_was_stopped_itself_names_nobody(detector):
    detector.on_own_pause(10 * HANG_SECONDS)
    now = START + 10 * HANG_SECONDS
    assert detector.verdict(own(now), now) is None
