"""The long form: `FAULTS=1000 python -m tests.faults [rows|pairs]`; see the package's text."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign import run_campaign
from tests.faults.table import in_words, write
from tests.helpers.fork_server import PROJECT


def main() -> int:
    num_faults, seed = int(os.environ.get("FAULTS", "400")), int(os.environ.get("SEED", "1"))
    num_at_a_time = int(os.environ.get("RUNS_AT_A_TIME", "1"))
    of = sys.argv[1] if len(sys.argv) > 1 else "rows"
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for campaign in run_campaign(Path(folder), num_faults, seed, of, num_at_a_time):
            run = campaign.runs[-1]
            print(
                f"{campaign.num_kills} kills, {campaign.num_faults} of {num_faults} faults, {campaign.seconds:.0f} s: "
                f"{run.name}, {run.num_launches} launches in {run.seconds:.0f} s, {len(run.problems)} problems",
                *run.problems, sep="\n  ", flush=True,
            )  # fmt: skip
            write(campaign, PROJECT / "benchmarks/results")
    print(in_words(campaign))
    return 1 if campaign.problems else 0


if __name__ == "__main__":
    sys.exit(main())
