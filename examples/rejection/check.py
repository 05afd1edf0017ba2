"""Whether the example has shown what it is to show: exits with 1 where it has not.

python check.py STATS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WEAKEST_START, STRONGEST_START = 0.2, 0.5
LEAST_AGAINST_START, LEAST_AGAINST_CONTROL = 0.25, 0.10


def told(share: float, interval: list[float]) -> str:
    return f"{share:6.1%}  ({interval[0]:.1%} to {interval[1]:.1%})"


def main(stats_json: Path) -> None:
    iterations = json.loads(stats_json.read_text(encoding="utf-8"))["iterations"]
    start, last = iterations[0]["model"], iterations[-1]
    against_start, against_control = last["against_start"], last["against_control"]
    print("Right on questions with numbers that it has never seen, with intervals of 95%")
    print(f"  the weak model          {told(start['pass_rate'], start['interval'])}")
    print(
        f"  after {len(iterations) - 1} iterations      {told(last['model']['pass_rate'], last['model']['interval'])}"
    )
    print(f"  its random control      {told(last['control']['pass_rate'], last['control']['interval'])}")
    print(f"  better than its start   {told(against_start['difference'], against_start['interval'])}")
    print(f"  better than its control {told(against_control['difference'], against_control['interval'])}")
    missed = []
    if not WEAKEST_START <= start["pass_rate"] <= STRONGEST_START:
        missed.append(f"the weak model was to be {WEAKEST_START:.0%} to {STRONGEST_START:.0%} right")
    if against_start["difference"] < LEAST_AGAINST_START:
        missed.append(f"{LEAST_AGAINST_START:.0%} more than the start were to be right")
    if against_control["difference"] < LEAST_AGAINST_CONTROL:
        missed.append(f"{LEAST_AGAINST_CONTROL:.0%} more than the control were to be right")
    if missed:
        sys.exit("missed: " + "; ".join(missed))
    print("All aims are reached.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
