"""The faults of a campaign and their results, for people and as data."""

from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import torch

from tests.faults.bench import NUM_STEPS, SAVE_STEPS
from tests.faults.campaign import Campaign, totals


def in_words(campaign: Campaign) -> str:
    """A page of markdown."""
    longest = max(run.longest_end_seconds for run in campaign.runs)
    sums = totals(campaign)
    parts = [
        "# Faults",
        f"{len(campaign.runs)} runs of {NUM_STEPS} optimizer steps, saved every {SAVE_STEPS} in the background, each "
        "broken and launched again until complete, then held to the unbroken run: every step once in `metrics.jsonl`, "
        "losses and final weights equal to the bit on the same layout, within 1e-6 (losses of pairs: 1e-5) where the "
        "layout changed from launch to launch. After every launch the newest whole checkpoint must not be older than "
        "before.",
        f"**{campaign.num_kills} launches killed (SIGKILL), {campaign.num_faults} faults, {len(campaign.problems)} "
        f"problems.** Flipped bits: {campaign.num_flips_found} of {campaign.num_flips} found. The ranks that survived "
        f"a killed one ended within {longest:.1f} s. Seed {campaign.seed}, {campaign.seconds / 60:.0f} minutes on "
        "shared cores.",
        _table(
            ["run", "launches", "killed", "damaged checkpoints", "problems"],
            [[run.name, run.num_launches, run.num_kills, sum(run.damages.values()), len(run.problems)]
             for run in campaign.runs],
        ),
        _table(["fault", "times"], [[kind, count] for kind, count in sorted(sums["faults"].items())]),
        _table(["damage to the newest checkpoint", "times"], [[k, n] for k, n in sorted(sums["damages"].items())]),
        _table(
            ["exit code of ranks that were not killed, in a launch of which one was", "times"],
            [[code, count] for code, count in sorted(sums["survivors_ended_with"].items())],
        ),
        *(f"- {in_short(problem)}" for problem in campaign.problems),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def write(campaign: Campaign, folder: Path) -> None:
    """`faults.json` and `faults.md`; of pairs `faults_of_pairs`."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "seed": campaign.seed,
        "num_runs": len(campaign.runs),
        "num_kills": campaign.num_kills,
        "num_faults": campaign.num_faults,
        "num_flipped_bits": campaign.num_flips,
        "num_flipped_bits_found": campaign.num_flips_found,
        "num_problems": len(campaign.problems),
        "seconds": round(campaign.seconds, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **totals(campaign),
        "runs": [{**vars(run), "problems": [in_short(problem) for problem in run.problems]} for run in campaign.runs],
    }
    name = "faults" if campaign.of == "rows" else f"faults_of_{campaign.of}"
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(in_words(campaign), encoding="utf-8")


def in_short(problem: str) -> str:
    """The finding and the errors that ranks ended with, without tracebacks and folders."""
    first, *others = problem.splitlines()
    errors = [line for line in others if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    return re.sub(r"\[?/\S*/", "", " | ".join([first, *dict.fromkeys(errors)]))


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
