"""From launch to first step, here and at an earlier commit: `python -m benchmarks.start 063792e`.

Both trees launch `train_sft` in turn with the same words: one process, a tiny model, 40 rows that are prepared anew. Of
several launches the least counts, by the clock and of the processor; the latter hardly depends on what else runs. What
each part of a start takes is measured on this tree. Writes `benchmarks/results/start.json`, and ends with 1 where a
start takes over 0.3 s more of the processor than it did.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.measures import write_json
from benchmarks.process import run_process

RESULTS = Path(__file__).parent / "results/start.json"
SECONDS_ALLOWED = 0.3
PARTS = "--parts"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--launches", type=int, default=8, help="of each tree")
    choices = parser.parse_args()
    from tests.equivalence.against_commit import package_of  # not above: it loads torch, whose time is measured

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        trees = {"before": package_of(choices.commit, work / "before"), "now": machine.ROOT}
        make_inputs(work)
        os.chdir(work)  # Python looks for the package in the working folder first
        launches: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
        for number in range(choices.launches):
            for name, root in trees.items():
                launches[name].append(launch(root, work, work / f"{name}_{number}"))
        parts = [parts_of_launch(work, work / f"parts_{number}") for number in range(choices.launches)]
    found = {
        "seconds": least(launches, 0),
        "processor_seconds": least(launches, 1),
        "processor_seconds_of_parts": {part: min(one[part] for one in parts) for part in parts[0]},
    }
    write_json(RESULTS, {"machine": machine.hardware(), "commit": machine.commit(), "before": choices.commit, **found})
    print(json.dumps(found, indent=1))
    return int(found["processor_seconds"]["more"] > SECONDS_ALLOWED)


def least(launches: dict[str, list[tuple[float, float]]], place: int) -> dict[str, float]:
    """The least seconds of each tree, and how many more they are now."""
    found = {name: min(one[place] for one in of_tree) for name, of_tree in launches.items()}
    return {name: round(seconds, 2) for name, seconds in (*found.items(), ("more", found["now"] - found["before"]))}


def make_inputs(work: Path) -> None:
    from tests.helpers.tiny_models import tiny_model
    from tests.helpers.tokenizers import CHATML, tiny_tokenizer

    tokenizer = tiny_tokenizer(CHATML)
    tiny_model("qwen3", vocab_size=len(tokenizer)).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    rows = [{"question": f"What is {number} and seven?", "answer": f"It is {number + 7}."} for number in range(40)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def words_of(work: Path, out: Path) -> list[str]:
    """Flags of `train_sft`."""
    flags = {
        "model.model_name_or_path": work / "model",
        "data.dataset": work / "rows.jsonl",
        "data.input_key": "question",
        "data.output_key": "answer",
        "data.max_len": 128,
        "data.cache_dir": out / "cache",
        "data.num_processors": 1,
        "ds.param_dtype": "fp32",
        "train.batch_size": 4,
        "train.micro_batch_size": 2,
        "train.max_epochs": 1,
        "ckpt.output_dir": out,
        "ckpt.path": out / "checkpoints",
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def launch(root: Path, work: Path, out: Path) -> tuple[float, float]:
    """Seconds to the first record of metrics.jsonl, by the clock and of the processor."""
    words = [sys.executable, "-m", "openrlhf.cli.train_sft", *words_of(work, out)]
    env = {"PYTHONPATH": str(root)}
    run = run_process(words, out / "metrics.jsonl", work / "log.txt", env, stop_after_steps=1)
    return run.step_seconds[0], run.cpu_seconds[0]


# --- the parts, in a process that is launched for them ------------------------------------------------------------


def parts_of_launch(work: Path, out: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.start", PARTS, *words_of(work, out)]
    env = {**os.environ, "PYTHONPATH": str(machine.ROOT)}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure_parts(words: list[str]) -> None:
    """Trains to the first step, and prints the processor seconds of each part, from the end of the one before."""
    taken: dict[str, float] = {}

    def ends(part: str) -> None:
        taken[part] = round(time.process_time() - sum(taken.values()), 3)

    def ending(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            value = function(*args, **more)
            ends(part)
            return value

        return timed

    def end(*_: Any) -> None:
        ends("first step")
        print(json.dumps(taken), flush=True)
        os._exit(0)

    ends("Python, and what this measurement loads")
    from openrlhf.cli import train_sft
    from openrlhf.cli.entry import loading

    ends("settings")
    with loading():
        import torch  # noqa: F401

        ends("torch")
        import transformers.modeling_utils  # noqa: F401

        ends("transformers")
        from openrlhf.run import sft_run, training_run

        ends("the package, and what else it loads")
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer import Trainer

    for where, name, part in (
        (training_run, "build_tokenizer", "flags; the tokenizer"),
        (training_run, "check_layout", "checks of the model's files and layout"),
        (training_run, "build_eval_data", "data: 40 rows prepared"),
        (DeepspeedStrategy, "setup_distributed", "DeepSpeed loaded, ranks joined"),
        (training_run.TrainingRun, "has_finished", "folders owned, ranks compared, checkpoints looked for"),
        (sft_run.SFTRun, "build_model", "model"),
        (training_run.TrainingRun, "build", "optimizer, schedule, engine"),
        (training_run, "try_export", "export tried"),
        (training_run, "print_start_table", "start table"),
    ):
        setattr(where, name, ending(getattr(where, name), part))
    Trainer._advance = end  # type: ignore[method-assign]
    train_sft.main(words)


if __name__ == "__main__":
    if sys.argv[1:2] == [PARTS]:
        measure_parts(sys.argv[2:])
    sys.exit(main())
