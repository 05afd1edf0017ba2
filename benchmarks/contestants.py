"""How a job is given to each contestant: ours by its command line, TRL by its trainer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import ProcessRun, run_process

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATE = 2e-5


@dataclass(frozen=True)
class Job:
    """What both contestants are asked to train, one pass over the rows.

    Args:
        batch_size: samples an optimizer step.
        micro_batch_size: samples that TRL computes at once; ours lays a step out by its own flags.
        precision: bf16 or fp32.
        num_threads: OMP_NUM_THREADS of a run of one process.
        task: sft, dpo or rm.
        reference: of dpo, the model that the policy is held to; None: the model itself.
    """

    model: Path
    rows: Path
    batch_size: int
    micro_batch_size: int
    max_len: int
    precision: str = "bf16"
    num_threads: int = 2
    task: str = "sft"
    reference: Path | None = None


Settings = Mapping[str, Any]


class Ours:
    """`python -m openrlhf.cli.train_sft` (train_dpo, train_rm), or DeepSpeed's launcher where `settings` has `ranks`
    above 1."""

    def __init__(self, work: Path):
        self._work = work

    def run(
        self,
        job: Job,
        settings: Settings,
        name: str,
        cache_dir: Path | None = None,
        keep_output: bool = False,
        **watching: Any,
    ) -> ProcessRun:
        """Args:
        settings: as `our_words` takes them, and `ranks`.
        name: of the folder that the run writes to; emptied first unless `keep_output`.
        cache_dir: of prepared data; None: the work folder's, shared by all runs.
        watching: for `run_process`.
        """
        out = self._work / "runs" / name
        if not keep_output:
            shutil.rmtree(out, ignore_errors=True)
        ranks = int(settings.get("ranks", 1))
        words = our_words(job, settings, out, cache_dir or self._work / "cache")
        env = {
            "OMP_NUM_THREADS": str(max(1, job.num_threads // ranks)),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        log = self._work / "logs" / f"{name}.txt"
        return run_process([*_launcher(ranks, job.task), *words], out / "metrics.jsonl", log, env, **watching)


def our_words(job: Job, settings: Settings, out: Path, cache_dir: Path) -> list[str]:
    """The words of our command line. `settings`: flags over the job's own; None leaves a flag out."""
    flags = {
        "model.model_name_or_path": job.model,
        "data.dataset": job.rows,
        "data.max_len": job.max_len,
        "data.cache_dir": cache_dir,
        "data.num_processors": job.num_threads,
        "ds.param_dtype": job.precision,
        "train.batch_size": job.batch_size,
        "train.micro_batch_size": job.micro_batch_size,
        "train.max_epochs": 1,
        "adam.lr": LEARNING_RATE,
        "ckpt.output_dir": out,
        "ckpt.path": out / "checkpoints",
        "ref.model_name_or_path": job.reference,
        **{key: value for key, value in settings.items() if key != "ranks"},
    }
    return [
        word
        for flag, value in flags.items()
        if value is not None
        for word in ([f"--{flag}"] if value is True else [f"--{flag}", str(value)])
    ]


def _launcher(ranks: int, task: str) -> list[str]:
    command = f"openrlhf.cli.train_{task}"
    if ranks == 1:
        return [sys.executable, "-m", command]
    return ["deepspeed", "--num_accelerators", str(ranks), "--module", command]


class Trl:
    """`trl_contestant.py` in TRL's environment."""

    def __init__(self, work: Path, python: Path):
        self._work, self._python = work, python

    def run(
        self, job: Job, settings: Settings, name: str, cache_dir: Path | None = None, **watching: Any
    ) -> ProcessRun:
        """Args:
        settings: arguments of the trainer's configuration, over the job's own.
        cache_dir: of prepared data (HF_DATASETS_CACHE); None: the work folder's, shared by all runs.
        """
        out = self._work / "runs" / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        step_file, settings_file = out / "steps.jsonl", out / "settings.json"
        asked = {
            "model": str(job.model),
            "rows": str(job.rows),
            "step_file": str(step_file),
            "task": job.task,
            "reference": job.reference and str(job.reference),
            "arguments": trl_arguments(job, settings, out),
        }
        settings_file.write_text(json.dumps(asked), encoding="utf-8")
        env = {
            "OMP_NUM_THREADS": str(job.num_threads),
            "HF_DATASETS_CACHE": str(cache_dir or self._work / "trl_cache"),
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "PYTHONPATH": str(ROOT),
        }
        words = [str(self._python), "-m", "benchmarks.trl_contestant", str(settings_file)]
        return run_process(words, step_file, self._work / "logs" / f"{name}.txt", env, **watching)


def trl_arguments(job: Job, settings: Settings, out: Path) -> dict[str, Any]:
    """Arguments of the trainer's configuration: the job's; else TRL's defaults, but for what `settings` says."""
    micro_batch_size = settings.get("per_device_train_batch_size", job.micro_batch_size)
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": max(1, job.batch_size // micro_batch_size),
        "num_train_epochs": 1,
        "max_length": job.max_len,
        "learning_rate": LEARNING_RATE,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **({} if job.precision == "bf16" else {"bf16": False}),
        **settings,
    }
