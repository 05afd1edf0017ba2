"""Kills at random instants over runs of three iterations; each run is started again until it is complete.

    python -m tests.rejection.kills --kills 100 [--seed 1] [--minutes 60] [--go_on]

Stages, engine and trainings are the real ones, of a tiny model; a training is forked from the run's process, where it
would be imported anew. Half of the kills come soon after answers or scores begin to: these take a small part of a run.
Half of them take the training along, the others leave it an orphan. A third of them leaves a part of a line, as a
machine does that loses its power. Writes `benchmarks/results/rejection_kills.md` and `.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openrlhf.cli.entry import leave_when_asked, run_command
from openrlhf.config import RejectionConfig, parse_config
from openrlhf.rejection.plan import Plan
from openrlhf.rejection.records import StoredRows, is_finished, read_manifest
from openrlhf.rejection.score import score
from openrlhf.rejection.select import control_of, select
from tests.faults.jobs import Job
from tests.helpers.fork_server import PROJECT
from tests.helpers.workbench import save_model

NUM_PROMPTS, NUM_ANSWERS = 12, 4
ITERATIONS = 3
LONGEST_LIFE_SECONDS = 4.0  # of a process that is killed
LONGEST_WITH_ROWS_SECONDS = 0.4  # after its first answers
MOST_KILLS_OF_A_RUN = 20
SECONDS_FOR_A_RUN = 300.0
TORN = b'{"prompt_id": "torn", "sample_i'
REWARD = "def letters(completions, **columns): return [float(len(set(text))) for text in completions]\n"


@dataclasses.dataclass
class Account:
    """What was done to a run, and what is wrong with it."""

    num_kills: int = 0
    num_orphans: int = 0
    num_torn_lines: int = 0
    num_samples: int = 0
    num_samples_as_unbroken: int = 0
    seconds: float = 0.0
    killed_in: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)


class Bench:
    """A tiny model, its prompts and a reward in `folder`; the unbroken run is `folder/unbroken`."""

    def __init__(self, folder: Path, num_iterations: int):
        self._folder, self.num_iterations = folder, num_iterations
        save_model(folder / "model", num_hidden_layers=1)
        (folder / "reward.py").write_text(REWARD)
        for name, count in (("prompts", NUM_PROMPTS), ("held_out", 3)):
            rows = [{"prompt": f"{name} {number}: the sum of"} for number in range(count)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.unbroken = folder / "unbroken"
        with self.job(self.unbroken) as job:
            assert job.wait(SECONDS_FOR_A_RUN) == [0], job.words_said()

    def words(self, run: Path) -> list[str]:
        given = {
            "model.model_name_or_path": self._folder / "model",
            "data.dataset": self._folder / "prompts.jsonl",
            "eval.dataset": self._folder / "held_out.jsonl",
            "generate.n": NUM_ANSWERS,
            "generate.max_new_tokens": 12,
            "generate.concurrency": 4,
            "score.reward": f"{self._folder / 'reward.py'}:letters",
            "score.workers": 1,
            "select.policy": "top_k",
            "select.k": 2,
            "select.keep_truncated": "true",
            "iterate.iterations": self.num_iterations,
            "iterate.output": run,
            "iterate.control": "true",
            "train.batch_size": 8,
            "adam.lr": 1e-2,
            "ds.param_dtype": "fp32",
            "ckpt.save_steps": 1,
        }
        return [word for name, value in given.items() for word in (f"--{name}", str(value))]

    def job(self, run: Path) -> Job:
        log = run.with_name(f"{run.name}.log")
        return Job(self.words(run), 1, log, module="openrlhf.cli.rejection_sampling", before=fork_trainings)


def fork_trainings() -> None:
    """In the process of a run, which has no launcher: a training is a child that needs no imports."""
    from openrlhf.rejection import iterate

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    iterate.start = ForkedTraining  # type: ignore[assignment]


class ForkedTraining:
    """In the place of `child_process.start`."""

    def __init__(self, words: Sequence[str], lock: int, variables: None = None):  # the lock is inherited
        from openrlhf.processes import leave_with

        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code: Any = 1
            try:
                leave_with(parent)
                leave_when_asked()
                sys.argv[1:] = words[-2:]
                from openrlhf.cli.train_sft import main

                run_command(main)
                code = 0
            except SystemExit as end:
                code = end.code
            finally:
                os._exit(code if isinstance(code, int) else 1)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def broken_run(bench: Bench, run: Path, most_kills: int, until: float, chance: random.Random) -> Account:
    """Kills the run at random instants, at most so often and not after `until`, and lets it end."""
    account, seen, begin = Account(), Kept(run), time.monotonic()
    while True:
        with bench.job(run) as job:
            if account.num_kills < most_kills and time.monotonic() < until:
                wait_for_an_instant(job, run, chance)
                is_ended = not job.is_running()
            else:
                is_ended = job.wait(SECONDS_FOR_A_RUN) is not None
            if not is_ended:
                kill(job, account, chance)
            codes = job.wait(10.0)
        now = Kept(run)
        account.problems += seen.lost_in(now)
        seen = now
        if is_ended:
            account.problems += [] if codes == [0] else [f"a start ended with {codes}: {job.words_said()[-2000:]}"]
            break
        account.killed_in[last_step(run)] += 1
        if chance.random() < 1 / 3:
            account.num_torn_lines += tear(run)
    account.problems += differences(bench, run, account) if not account.problems else []
    account.seconds = time.monotonic() - begin
    return account


def wait_for_an_instant(job: Job, run: Path, chance: random.Random) -> None:
    """By a chance of a half it is soon after rows begin to come."""
    until = time.monotonic() + chance.uniform(0.0, LONGEST_LIFE_SECONDS)
    if chance.random() < 0.5:
        known = set(open_shards(run))
        while job.is_running() and time.monotonic() < until and known.issuperset(open_shards(run)):
            time.sleep(0.005)
        until = min(until, time.monotonic() + chance.uniform(0.0, LONGEST_WITH_ROWS_SECONDS))
    job.wait_for_first_loss(until - time.monotonic())


def kill(job: Job, account: Account, chance: random.Random) -> None:
    """The run; by a chance of a half all that it has started too, at the same instant."""
    pid = job.ranks[0].pid
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if chance.random() < 0.5:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        else:
            account.num_orphans += len(children)
    job.kill([0])
    account.num_kills += 1


def last_step(run: Path) -> str:
    """The step that was noted last, without its iteration."""
    manifests = sorted(run.glob("iteration_*/manifest.json"))
    return list(json.loads(manifests[-1].read_text())["steps"])[-1] if manifests else "start"


def tear(run: Path) -> int:
    """A part of a line behind the rows of a stage that is not finished; the number of such lines."""
    torn = open_shards(run)[:1]
    for path in torn:
        with path.open("ab") as file:
            file.write(TORN)
    return len(torn)


def open_shards(run: Path) -> list[Path]:
    return [path for path in run.rglob("rows-*.jsonl") if not is_finished(path.parent)]


class Kept:
    """What a run has on the disk: answers and scores by what identifies them, selections and models as they are."""

    def __init__(self, run: Path):
        self.rows: dict[str, list[tuple]] = {}
        for folder in [*run.rglob("generations"), *run.rglob("scores")]:
            if read_manifest(folder) is not None:
                rows = (
                    (row["prompt_id"], row["sample_index"], row["response"], row["model"], row.get("reward"))
                    for row in StoredRows(folder)
                )
                self.rows[str(folder.relative_to(run))] = sorted(rows)
        self.files = {
            str(path.relative_to(run)): path.read_bytes() for path in run.glob("iteration_*/selected/*.jsonl")
        }
        for manifest in run.glob("iteration_*/manifest.json"):
            steps = json.loads(manifest.read_text())["steps"]
            for of in ("", "control_"):
                if steps.get(f"{of}train", {}).get("model"):
                    path = manifest.with_name(f"{of}model") / "model.safetensors"
                    self.files[str(path.relative_to(run))] = path.read_bytes()

    def lost_in(self, now: Kept) -> Iterator[str]:
        """In words."""
        for name, rows in now.rows.items():
            if len({row[:2] for row in rows}) != len(rows):
                yield f"{name} has a row twice"
        for name, rows in self.rows.items():
            if lost := set(rows) - set(now.rows.get(name, [])):
                yield f"{name} has lost {len(lost)} rows"
        for name, content in self.files.items():
            if now.files.get(name) != content:
                yield f"{name} is not as it was"


def differences(bench: Bench, run: Path, account: Account) -> Iterator[str]:
    """Of a complete run from what an unbroken one makes of the same answers; counts answers that are the same."""
    kept, unbroken = Kept(run), Kept(bench.unbroken)
    if kept.rows.keys() != unbroken.rows.keys():
        yield f"it has other folders: {kept.rows.keys() ^ unbroken.rows.keys()}"
        return
    for name, rows in kept.rows.items():
        if len(rows) != len(unbroken.rows[name]):
            yield f"{name} has {len(rows)} rows in place of {len(unbroken.rows[name])}"
        if name.endswith("generations"):
            account.num_samples += len(rows)
            account.num_samples_as_unbroken += len(set(rows) & set(unbroken.rows[name]))
    for iteration in range(1, bench.num_iterations + 1):
        for made, anew in selections_anew(bench, run, iteration):
            if made.read_bytes() != anew.read_bytes():
                yield f"{made.relative_to(run)} is another than the one that is selected at once"
    if kept.rows == unbroken.rows and kept.files != unbroken.files:
        changed = [name for name, content in kept.files.items() if unbroken.files.get(name) != content]
        yield f"the answers are those of the unbroken run, and these files are not: {', '.join(changed)}"


def selections_anew(bench: Bench, run: Path, iteration: int) -> Iterator[tuple[Path, Path]]:
    """Each selection of an iteration, and the one that scoring and selecting give at once from the same answers."""
    plan = Plan(parse_config(RejectionConfig, bench.words(run)))
    anew = run / "anew" / str(iteration)
    scores = plan.score(plan.generate(iteration))
    score(dataclasses.replace(scores, score=dataclasses.replace(scores.score, output=str(anew / "scores"))))
    made = plan.select(iteration)
    settings = dataclasses.replace(made.select, input=str(anew / "scores"), output=str(anew / "selected.jsonl"))
    selection = dataclasses.replace(made, select=settings)
    for config in (selection, control_of(selection, str(anew / "control.jsonl"))):
        select(config)
        output = Path(config.select.output)
        yield Path(made.select.output).with_name(output.name), output


def in_words(accounts: Sequence[Account], seed: int) -> str:
    """A page of markdown."""
    steps = sum((account.killed_in for account in accounts), Counter())
    samples = sum(account.num_samples for account in accounts)
    as_unbroken = sum(account.num_samples_as_unbroken for account in accounts)
    problems = [problem for account in accounts for problem in account.problems]
    rows = "\n".join(f"| {step} | {count} |" for step, count in sorted(steps.items()))
    return (
        "# Kills of rejection sampling\n\n"
        f"`python -m tests.rejection.kills --kills {sum(steps.values())} --seed {seed}`: {len(accounts)} runs of "
        f"{ITERATIONS} iterations with controls and evaluations, killed (SIGKILL) at random instants and started "
        "again until complete. After each kill no answer and no score that was kept is lost, changed or there twice, "
        "and finished selections and models are as they were. At the end each selection is the one that is made at "
        "once from the same answers.\n\n"
        f"**{sum(steps.values())} kills, {len(problems)} problems.** "
        f"{sum(account.num_orphans for account in accounts)} processes were left as orphans, "
        f"{sum(account.num_torn_lines for account in accounts)} lines torn. {as_unbroken:,} of {samples:,} answers are "
        f"those of the run without a kill. {sum(account.seconds for account in accounts):.0f} s on shared cores.\n\n"
        f"| killed in | times |\n| --- | --- |\n{rows}\n" + "".join(f"\n- {problem}" for problem in problems)
    )


def write(accounts: Sequence[Account], seed: int, folder: Path) -> None:
    """`rejection_kills.md` and `.json`."""
    facts = {"seed": seed, "runs": [vars(account) for account in accounts]}
    (folder / "rejection_kills.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "rejection_kills.md").write_text(in_words(accounts, seed), encoding="utf-8")


def read(seed: int, folder: Path) -> list[Account]:
    """The accounts that `write` has left for this seed."""
    path = folder / "rejection_kills.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seed": seed, "runs": []}
    runs = facts["runs"] if facts["seed"] == seed else []
    return [Account(**{**run, "killed_in": Counter(run["killed_in"])}) for run in runs]


def campaign(
    folder: Path,
    num_kills: int,
    seed: int,
    num_iterations: int = ITERATIONS,
    first: int = 0,
    seconds: float = math.inf,
) -> Iterator[Account]:
    """The accounts of as many runs as so many kills take; none begins after so many seconds."""
    bench, number, until = Bench(folder, num_iterations), first, time.monotonic() + seconds
    while num_kills > 0 and time.monotonic() < until:
        chance = random.Random(f"{seed} {number}")
        most_kills = min(num_kills, MOST_KILLS_OF_A_RUN)
        yield (account := broken_run(bench, folder / f"run{number}", most_kills, until, chance))
        num_kills, number = num_kills - account.num_kills, number + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after that long")
    parser.add_argument("--go_on", action="store_true", help="add to the table that is there")
    asked, results = parser.parse_args(), PROJECT / "benchmarks/results"
    accounts = read(asked.seed, results) if asked.go_on else []
    num_kills = asked.kills - sum(account.num_kills for account in accounts)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        given = dict(first=len(accounts), seconds=60 * asked.minutes)
        for account in campaign(Path(folder), num_kills, asked.seed, **given):
            accounts.append(account)
            print(f"{account.num_kills} kills in {account.seconds:.0f} s", *account.problems, sep="\n  ", flush=True)
            write(accounts, asked.seed, results)
    print(in_words(accounts, asked.seed))
    return 1 if any(account.problems for account in accounts) else 0


if __name__ == "__main__":
    sys.exit(main())
