"""What a rank knows of its launch before it joins the others."""

from __future__ import annotations

import pytest

from openrlhf.engine.launch import _num_local_ranks

TWO_MACHINES = {"WORLD_SIZE": "8"}  # four ranks each


@pytest.mark.parametrize(
    ("variables", "num_local_ranks"),
    [
        (TWO_MACHINES | {"LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun
        (TWO_MACHINES | {"LOCAL_SIZE": "4"}, 4),  # deepspeed
        ({"WORLD_SIZE": "2"}, 2),
    ],
)
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch, variables, num_local_ranks):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _num_local_ranks() == num_local_ranks
