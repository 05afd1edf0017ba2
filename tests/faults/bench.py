"""Data and layouts of the runs, and the results of an unbroken run."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from openrlhf.tracking.metrics_file import read_records
from tests.faults.jobs import Job
from tests.helpers.workbench import flags, pair_flags, save_model, save_pairs, save_rows

NUM_STEPS = 60
BATCH_SIZE = 4
SAVE_STEPS = 2
EVAL_STEPS = 8
SECONDS_FOR_A_RUN = 300.0
_OF_THE_PROCESS = ("tokens_per_second", "step_seconds", "host_memory_bytes")


@dataclass(frozen=True)
class Layout:
    """The layout of a run over ranks, and its command."""

    num_ranks: int
    zero_stage: int
    dtype: str = "fp32"
    micro_batch_size: int = 2
    command: str = "train_sft"
    precomputes: bool = False  # the reference of train_dpo, in a cache of the run's own

    @property
    def module(self) -> str:
        return f"openrlhf.cli.{self.command}"

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} rank{'s' if self.num_ranks > 1 else ''}"
        command = f"{self.command}{', --ref.precompute' if self.precomputes else ''}"
        return f"{command}, {ranks}, ZeRO {self.zero_stage}, {self.dtype}, micro-batch {self.micro_batch_size}"


@dataclass(frozen=True)
class Outcome:
    """The results of a complete run."""

    records: list[dict[str, Any]]  # of metrics.jsonl, without times and memory
    weights: dict[str, torch.Tensor]


class Bench:
    """A tiny model and its data in `folder`; the unbroken run of a layout is made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._model = save_model(folder / "model")
        self._rows = save_rows(folder / "rows.jsonl", NUM_STEPS * BATCH_SIZE)
        self._eval_rows = save_rows(folder / "eval.jsonl", 6, seed=1)
        self._pairs = save_pairs(folder / "pairs.jsonl", NUM_STEPS * BATCH_SIZE)
        self._eval_pairs = save_pairs(folder / "eval-pairs.jsonl", 6, seed=1)
        self._unbroken: dict[Layout, Outcome] = {}
        self._lock = threading.Lock()  # runs may be broken side by side

    def words(self, layout: Layout, out: Path, **changes: Any) -> list[str]:
        """The command line of a run that begins, or goes on where it was."""
        is_of_pairs = layout.command != "train_sft"
        settings = dict(
            ckpt__load_enable=True,
            ckpt__save_steps=SAVE_STEPS,
            ckpt__max_num=2,
            eval__dataset=self._eval_pairs if is_of_pairs else self._eval_rows,
            eval__steps=EVAL_STEPS,
            train__batch_size=BATCH_SIZE,
            train__micro_batch_size=layout.micro_batch_size,
            ds__zero_stage=layout.zero_stage,
            ds__param_dtype=layout.dtype,
        )
        if layout.precomputes:
            settings |= dict(ref__precompute=True, data__cache_dir=out.with_name(f"{out.name}-cache"))
        if is_of_pairs:
            return pair_flags(self._model, self._pairs, out, **(settings | changes))
        return flags(self._model, self._rows, out, **(settings | changes))

    def unbroken(self, layout: Layout) -> Outcome:
        with self._lock:
            if layout not in self._unbroken:
                out = self.folder / f"unbroken-{len(self._unbroken)}"
                with Job(self.words(layout, out), layout.num_ranks, out / "log", module=layout.module) as job:
                    codes = job.wait(SECONDS_FOR_A_RUN)
                    assert codes == [0] * layout.num_ranks, f"the unbroken run ended with {codes}:\n{job.words_said()}"
                self._unbroken[layout] = outcome_of(out)
            return self._unbroken[layout]


def outcome_of(out: Path) -> Outcome:
    records = [
        {name: value for name, value in record.items() if name not in _OF_THE_PROCESS}
        for record in read_records(out / "metrics.jsonl")
    ]
    return Outcome(records, load_file(out / "model.safetensors"))


def differences(found: Outcome, meant: Outcome, is_same_layout: bool) -> list[str]:
    """In words. On the same layout every bit counts; on others, losses and weights to 1e-6, losses of pairs to 1e-5."""
    problems = []
    if [_step(record) for record in found.records] != [_step(record) for record in meant.records]:
        problems.append(f"metrics.jsonl has the lines {[_step(record) for record in found.records]}")
    elif is_same_layout and found.records != meant.records:
        wrong = next((a, b) for a, b in zip(found.records, meant.records, strict=True) if a != b)
        problems.append(f"metrics.jsonl differs, first {wrong}")
    elif not is_same_layout:
        far = max(abs(_loss(a) - _loss(b)) / _loss(b) for a, b in zip(found.records, meant.records, strict=True))
        problems += [f"losses differ by up to {far:.2g} of their size"] if far > _rounding(meant) else []
    if found.weights.keys() != meant.weights.keys():
        return [*problems, f"other weights: {found.weights.keys() ^ meant.weights.keys()}"]
    for name, weight in found.weights.items():
        if is_same_layout and not torch.equal(weight, meant.weights[name]):
            problems.append(f"{name} is not the same to the bit")
        elif not is_same_layout and (weight - meant.weights[name]).norm() > 1e-6 * meant.weights[name].norm():
            far = (weight - meant.weights[name]).norm() / meant.weights[name].norm()
            problems.append(f"{name} differs by {far:.2g} of its norm")
    return problems


def _step(record: dict[str, Any]) -> tuple[int, bool]:
    """Step, and whether it is an evaluation."""
    return record["global_step"], "eval_loss" in record


def _rounding(meant: Outcome) -> float:
    """A share of a loss: that of pairs rests on a difference, and becomes small beside it."""
    is_of_pairs = any(name in record for record in meant.records for name in ("margin", "rewards/margins"))
    return 1e-5 if is_of_pairs else 1e-6


def _loss(record: dict[str, Any]) -> float:
    return float(record["eval_loss"] if "eval_loss" in record else record["loss"])
