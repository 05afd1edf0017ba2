"""Heartbeats of many ranks come less often, and a failure is told at once all the same."""

from __future__ import annotations

import socket
import time

import pytest

from openrlhf.watchdog.connections import PeerConnections
from openrlhf.watchdog.watchdog import Watchdog


@pytest.mark.parametrize(("num_ranks", "hang_seconds", "expected"), [(8, 600, 1), (4096, 600, 4), (4096, 8, 1)])
def test_rank_0_hears_a_bounded_number_a_second(num_ranks, hang_seconds, expected):
    assert Watchdog(0, num_ranks, hang_seconds=hang_seconds)._heartbeat_seconds == expected


def test_a_rank_that_fails_does_not_wait_for_its_next_heartbeat():
    here, there = socket.socketpair()
    watchdog = Watchdog(1, 4096)
    watchdog._connections = PeerConnections({0: here})
    watchdog._own_failure = "ValueError: no such row"
    began_at = time.monotonic()
    watchdog._listen_until(began_at + 60)
    assert time.monotonic() - began_at < 30
    watchdog._connections.close()
    there.close()
