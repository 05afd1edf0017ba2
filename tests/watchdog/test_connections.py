"""Messages between two ends of a connection, and the news that one end is gone."""

from __future__ import annotations

import resource
import socket

import pytest

from openrlhf.watchdog.connections import PeerConnections, _allow_open_files


@pytest.fixture
def ends():
    here, there = socket.socketpair()
    connections = PeerConnections({1: here}), PeerConnections({0: there})
    yield connections
    for connection in connections:
        connection.close()


def test_messages_come_in_order_with_the_rank_that_sent_them(ends):
    rank_0, rank_1 = ends
    for number in range(3):
        rank_0.send({"number": number})
    messages, ended = rank_1.receive(1.0)
    assert messages == [(0, {"number": 0}), (0, {"number": 1}), (0, {"number": 2})]
    assert ended == []


def test_a_message_that_comes_in_parts_is_put_together(ends):
    rank_0, rank_1 = ends
    (connection,) = rank_0._sockets.values()
    connection.send(b'{"left"')
    assert rank_1.receive(1.0) == ([], [])
    connection.send(b": null}\n")
    assert rank_1.receive(1.0) == ([(0, {"left": None})], [])


def test_an_end_that_closes_is_told_once(ends):
    rank_0, rank_1 = ends
    rank_0.close()
    assert rank_1.receive(1.0) == ([], [0])
    assert rank_1.ranks == []
    rank_1.send({"what": "nobody is there"})
    assert rank_1.receive(0.0) == ([], [])


def test_who_does_not_read_holds_nobody_up(ends):
    rank_0, _ = ends
    for _ in range(2000):
        rank_0.send({"what": "x" * 1000})


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 1048576), [(5120, 1048576)]),
        ((1024, 4096), [(4096, 4096)]),
        ((1024, resource.RLIM_INFINITY), [(5120, resource.RLIM_INFINITY)]),
        ((65536, 65536), []),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_rank_0_of_thousands_may_open_so_many_connections(limits, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: asked.append(wanted))
    _allow_open_files(5120)
    assert asked == expected
