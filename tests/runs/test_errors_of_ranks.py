"""An error that all ranks meet is told once; one that a single rank meets is told by that rank."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from openrlhf.exit_codes import EXIT_CODE_USER_ERROR

NUM_RANKS = 3
COMMAND = """
import os
from openrlhf.cli.entry import run_command
from openrlhf.errors import UserError

def command(argv):
    problem = {problem}
    if problem:
        raise UserError(problem)

run_command(command)
"""


@pytest.fixture
def said_by_ranks(tmp_path):
    """A function: (Python expression of a rank's problem, port) → exit codes, and what each rank wrote to stderr."""

    def launch(problem: str, port: int) -> tuple[list[int], list[str]]:
        env = os.environ | {"WORLD_SIZE": str(NUM_RANKS), "MASTER_PORT": str(port), "TMPDIR": str(tmp_path)}
        words = [sys.executable, "-c", COMMAND.format(problem=problem)]
        ranks = [
            subprocess.Popen(words, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
            for rank in range(NUM_RANKS)
        ]
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
        return [rank.returncode for rank in ranks], said

    return launch


def test_what_all_ranks_meet_is_told_once(said_by_ranks):
    codes, said = said_by_ranks("'no such flag'", 1)
    assert codes == [EXIT_CODE_USER_ERROR] * NUM_RANKS
    assert "".join(said).count("no such flag") == 1


def test_what_one_rank_meets_is_told_by_it(said_by_ranks):
    codes, said = said_by_ranks("'no such file' if os.environ['RANK'] == '2' else None", 1)
    assert codes == [0, 0, EXIT_CODE_USER_ERROR]
    assert said == ["", "", "error (told by rank 2):\n  no such file\n"]


def test_each_of_several_errors_is_told(said_by_ranks):
    _, said = said_by_ranks("'file ' + os.environ['RANK']", 1)
    assert all(f"file {rank}" in said[rank] for rank in range(NUM_RANKS)), said


@pytest.mark.parametrize("ports", [(1, 2), (1, 1)], ids=["by another port", "by the same port, from the same shell"])
def test_the_next_launch_tells_it_again(said_by_ranks, ports):
    for port in ports:
        _, said = said_by_ranks("'no such flag'", port)
        assert "".join(said).count("no such flag") == 1
