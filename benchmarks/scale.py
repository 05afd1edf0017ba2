"""What grows with rows and ranks, measured on fakes: `python -m benchmarks.scale` writes results/scale.json and .md.

    --rows 1000000000   rows of the data set
    --units 1000000     units of a step
    --ranks 4096        ranks
    --quick             a hundredth of each: shows that it runs, the figures mean nothing
    --results FOLDER    default: benchmarks/results

Milliseconds of one thread's own processor time on rank 0 (what else the machine does is not counted), the least of
three; `docs/scale.md` says what each line is. What follows a save runs in threads beside the training.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed import HashStore

from benchmarks import machine
from benchmarks.measures import write_json
from openrlhf.batching import FixedSize, StepSchedule, TokenBudget
from openrlhf.checkpoint import background, manifest
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.engine import launch
from openrlhf.watchdog.connections import PeerConnections
from openrlhf.watchdog.failure_detector import Activity, FailureDetector
from openrlhf.watchdog.watchdog import Watchdog
from tests.batching import plain_layout

RESULTS = Path(__file__).parent / "results"
MAX_TOKENS = 16_384
HANG_SECONDS = 600.0
NUM_CHECKPOINTS = 3

Figures = dict[str, float]


def milliseconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Processor time of this thread, the least of some."""
    taken = []
    for _ in range(repeats):
        began_at = time.thread_time()
        work()
        taken.append(1_000 * (time.thread_time() - began_at))
    return round(min(taken), 1)


# --- a step window ---------------------------------------------------------------------------------------------------


def step_window(num_rows: int, num_units: int, num_ranks: int) -> Figures:
    """The order, the lengths and the layouts of one step."""
    schedule = StepSchedule(num_rows, num_units, seed=0)
    step = schedule.steps_per_epoch // 2
    found = {
        "order of the step's rows": milliseconds(lambda: schedule.window(0, step)),
        "the same, just above a power of four": milliseconds(
            lambda: StepSchedule(4 ** (num_rows.bit_length() // 2) + 1, num_units, seed=0).window(0, 0)
        ),
    }
    rows = schedule.window(0, step).rows
    lengths = np.random.default_rng(0).lognormal(5.3, 1.3, 1 << 22).astype(np.int32).clip(16, 8_192)
    found["lengths of the step's rows"] = milliseconds(lambda: lengths[rows % len(lengths)])
    units = lengths[rows % len(lengths)]
    layouts = {
        "layout: packed to 16,384 tokens": TokenBudget(MAX_TOKENS, packed=True),
        "layout: padded to 16,384 tokens": TokenBudget(MAX_TOKENS, packed=False),
        "layout: 4 units a micro-batch": FixedSize(4),
    }
    found |= {name: milliseconds(partial(layout.of_rank, units, num_ranks, 0)) for name, layout in layouts.items()}
    one_by_one = [(length,) for length in units.tolist()]
    plain = {"packed": plain_layout.TokenBudget(MAX_TOKENS, packed=True), "4 units": plain_layout.FixedSize(4)}
    return found | {
        f"for comparison, one unit after the other: {name}": milliseconds(partial(layout, one_by_one, num_ranks), 1)
        for name, layout in plain.items()
    }


# --- the watchdog ----------------------------------------------------------------------------------------------------


def watchdog(num_ranks: int) -> Figures:
    """Heartbeats of all ranks, over real sockets: a round of them, and what it comes to in a second."""
    with _sockets(num_ranks - 1) as pairs:
        connections = PeerConnections({rank: here for rank, (here, _) in enumerate(pairs, 1)})
        detector = FailureDetector(0, connections.ranks, HANG_SECONDS, 1.0, time.monotonic())
        samples = tuple(f"rows.jsonl:{number}" for number in range(8))
        heartbeat = json.dumps(Activity("micro-batch 3 of step 17", samples).as_message()).encode() + b"\n"

        def one_round() -> None:
            connections.send(Activity("micro-batch 3 of step 17", samples).as_message())
            messages, _ = connections.receive(0.0)
            now = time.monotonic()
            for rank, message in messages:
                detector.on_message(rank, message, now)
            assert len(messages) == num_ranks - 1
            assert detector.verdict(Activity("micro-batch 3 of step 17", since=now), now) is None

        taken = []
        for _ in range(3):
            for _, there in pairs:
                there.send(heartbeat)
            taken.append(milliseconds(one_round, repeats=1))
            for _, there in pairs:
                there.recv(1 << 16)
        period_seconds = Watchdog(0, num_ranks, hang_seconds=HANG_SECONDS)._heartbeat_seconds
        connections.close()
    return {
        "a round of heartbeats": min(taken),
        "seconds between two rounds": period_seconds,
        "heartbeats, a second": round(min(taken) / period_seconds, 1),
    }


@contextmanager
def _sockets(number: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * number + 256)), hard))
    pairs = [socket.socketpair() for _ in range(number)]
    try:
        yield pairs
    finally:
        for pair in pairs:
            for end in pair:
                end.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a checkpoint ----------------------------------------------------------------------------------------------------


def checkpoint(num_ranks: int) -> Figures:
    """A commit: two files of a byte from each rank, their reports, the manifest, the rotation of older ones."""
    root = Path(tempfile.mkdtemp(prefix="scale-"))
    try:
        store = CheckpointStore(root, max_num=NUM_CHECKPOINTS)
        staging = store.begin(1, 1)
        records = [record for rank in range(num_ranks) for record in _files_of_rank(staging, rank)]

        def look_in_vain() -> None:
            try:
                background.collect_reports(staging, num_ranks, lambda: True, 60.0)
            except OSError:
                return

        found = {
            "all reports read and removed": milliseconds(
                lambda: background.collect_reports(staging, num_ranks, lambda: False, 60.0), repeats=1
            )
        }
        found["a look for reports while none is there"] = milliseconds(look_in_vain)
        found["manifest written"] = milliseconds(lambda: manifest.write_manifest(staging, records))
        found["manifest read"] = milliseconds(lambda: manifest.read_manifest(staging))
        target, _ = store.put_in_place(staging, records)
        for step in range(2, NUM_CHECKPOINTS + 1):
            shutil.copytree(target, root / store.name_of(step))
        newest = root / store.name_of(NUM_CHECKPOINTS)
        found["rotation looks at 3 checkpoints"] = milliseconds(lambda: store._surplus(newest))
        return found
    finally:
        shutil.rmtree(root)


def _files_of_rank(folder: Path, rank: int) -> list[manifest.FileRecord]:
    names = [name.format(rank) for name in ("optim_states_rank{:05d}.safetensors", "random_rank{:05d}.safetensors")]
    for name in names:
        (folder / name).write_bytes(b"x")
    records = [manifest.FileRecord(name, 1, manifest.new_checksum(b"x").hexdigest()) for name in names]
    report = {"records": [vars(record) for record in records], "problem": None}
    background._report_path(folder, rank).write_text(json.dumps(report), encoding="utf-8")
    return records


# --- the start, and short messages -----------------------------------------------------------------------------------


class QuickRanks(HashStore):
    """A store in which every rank has said hello and joins as soon as it is welcomed."""

    def __init__(self, num_ranks: int):
        super().__init__()
        self.num_operations = 0
        for rank in range(1, num_ranks):
            super().set(f"hello/{rank}", f"word-{rank}")

    def set(self, key: str, value: str) -> None:
        self.num_operations += 1
        super().set(key, value)
        if key.startswith("welcome/"):
            super().set(f"{value}/joined/{key.rpartition('-')[2]}", "")


def start(num_ranks: int) -> Figures:
    """Rank 0 welcomes all ranks after a restart by torchrun; by the clock, as it waits in between."""
    store, began_at = QuickRanks(num_ranks), time.perf_counter()
    launch.name_of_this_start(store, 0, num_ranks, timedelta(seconds=600))
    return {"all ranks agree on a name (by the clock)": round(1_000 * (time.perf_counter() - began_at), 1)}


def short_messages(num_ranks: int) -> Figures:
    """Messages that follow each other in a sum over all ranks: counted, not measured."""
    width = max(one for one in range(1, int(num_ranks**0.5) + 1) if num_ranks % one == 0)
    in_grid = 2 * (width - 1) + 2 * (num_ranks // width - 1)
    return {"in one ring (number)": 2 * (num_ranks - 1), "in rows and columns (number)": in_grid}


# --- all of it -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--units", type=int, default=10**6)
    parser.add_argument("--ranks", type=int, default=4_096)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    choices = parser.parse_args()
    divisor = 100 if choices.quick else 1
    rows, units, ranks = choices.rows // divisor, choices.units // divisor, max(2, choices.ranks // divisor)
    parts: dict[str, Callable[[], Figures]] = {
        "a step": lambda: step_window(rows, units, ranks),
        "the watchdog": lambda: watchdog(ranks),
        "a save": lambda: checkpoint(ranks),
        "the start": lambda: start(ranks),
        "a sum over all ranks": lambda: short_messages(ranks),
    }
    found: dict[str, Any] = {
        "rows": rows, "units": units, "ranks": ranks, "machine": machine.hardware(), "versions": machine.our_versions(),
        "commit": machine.commit(), "parts": {},
    }  # fmt: skip
    for name, measure in parts.items():
        found["parts"][name] = measure()
        print(name, found["parts"][name], flush=True)
        write_json(choices.results / "scale.json", found)
    (choices.results / "scale.md").write_text(table(found), encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        f"`python -m benchmarks.scale`: {found['rows']:,} rows, {found['units']:,} units a step, "
        f"{found['ranks']:,} ranks; {found['machine']['processor']}, commit {found['commit']['commit'][:10]}.",
        "",
        "| part | | ms |",
        "| --- | --- | ---: |",
    ]
    for part, figures in found["parts"].items():
        lines += [f"| {part} | {name} | {value:,g} |" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
