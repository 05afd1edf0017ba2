"""A rank of a real job of two is stopped or killed: the other ends within a bound, naming it and its work."""

from __future__ import annotations

import re
import signal
import time

import pytest

from openrlhf.exit_codes import EXIT_CODE_RANK_LOST
from tests.faults.bench import Layout
from tests.faults.breaks import Moment
from tests.faults.jobs import Job

HANG_SECONDS = 3.0
SECONDS_TO_END = HANG_SECONDS + 12.0  # a loaded machine beats late
DOING = "|".join(
    (
        r"micro-batch \d+ of step \d+; samples \S+rows\.jsonl:\d+, \S+rows\.jsonl:\d+",
        r"(counting the tokens of|update of|save after) step \d+",
        r"reading the next samples",
        r"evaluation, window \d+",
    )
)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("number", "finding"),
    [
        (signal.SIGSTOP, r"rank {} has said nothing for \d+ s"),
        (signal.SIGKILL, r"rank {} is gone: its process has ended"),
    ],
    ids=["SIGSTOP", "SIGKILL"],
)
def test_the_other_rank_ends_and_names_it(bench, tmp_path, lost, number, finding):
    words = bench.words(Layout(2, 2), tmp_path / "run", train__hang_timeout_minutes=HANG_SECONDS / 60)
    other = 1 - lost
    with Job(words, 2, tmp_path / "log") as job:
        Moment(5, 2 * HANG_SECONDS / 8).wait(job, tmp_path / "run")  # two beats: the last one tells of a step
        job.send(number, lost)
        stopped_at = time.monotonic()
        job.ranks[other].join(SECONDS_TO_END)
        seconds = time.monotonic() - stopped_at
        said = (tmp_path / "log" / f"rank{other}.log").read_text()
        assert job.ranks[other].exitcode == EXIT_CODE_RANK_LOST, f"after {seconds:.0f} s:\n{said[-3000:]}"
        assert re.search(finding.format(lost), said), said[-3000:]
        assert re.search(f"; last: .*({DOING})", said), said[-3000:]
