"""A rank that leaves while the ranks join: the others end with the code for a lost rank, and in words."""

from __future__ import annotations

import sys

import pytest

from openrlhf.cli.entry import run_command
from openrlhf.errors import UserError
from openrlhf.exit_codes import EXIT_CODE_RANK_LOST, RankLost
from openrlhf.watchdog.connections import joining_ranks


def fail_to_join(error: Exception, world_size: int = 2) -> None:
    with joining_ranks(world_size):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("Connection reset by peer"), TimeoutError("rank 1 has not come")])
def test_an_error_of_the_network_is_a_lost_rank(error, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_sft"])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SystemExit) as end:
        run_command(lambda words: fail_to_join(error))
    assert end.value.code == EXIT_CODE_RANK_LOST
    said = capsys.readouterr().err
    assert "A rank has left, or cannot be reached" in said
    assert str(error) in said
    assert "they wait for each other for --train.comm_timeout_minutes" in said
    assert "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that they share" in said


def test_an_address_that_nobody_knows_is_told_alone(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    with pytest.raises(RankLost, match="MASTER_ADDR is no.such.host.invalid, a name that this .* not know") as found:
        fail_to_join(TimeoutError("timed out"))
    assert "GLOO_SOCKET_IFNAME" not in str(found.value)


def test_the_users_own_error_stays_what_it_is():
    with pytest.raises(UserError):
        fail_to_join(UserError("--ds.ring_attn_size 3 does not divide 4 ranks"))


def test_a_rank_alone_has_lost_nobody():
    with pytest.raises(RuntimeError) as found:
        fail_to_join(RuntimeError("no free port"), world_size=1)
    assert not isinstance(found.value, RankLost)
