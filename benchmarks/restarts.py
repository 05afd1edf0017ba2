"""How long a stage of rejection sampling takes that finds its work done: `python -m benchmarks.restarts`.

    --num_answers 100000   that are scored and selected; the generated ones are few

Each stage is run to its end, then started again in a new process: once, imports included, and once more in that
process, which is what remains without imports. Medians of five processes; writes benchmarks/results/restarts.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import machine
from benchmarks.measures import write_json
from benchmarks.select import write_answers

RESULT = Path(__file__).parent / "results" / "restarts.json"
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_answers", type=int, default=100_000)
    parser.add_argument("--again", nargs=argparse.REMAINDER, help="a stage and its words: run it twice, print seconds")
    choices = parser.parse_args()
    if choices.again:
        print(json.dumps(twice(*choices.again)))
        return
    with tempfile.TemporaryDirectory() as name:
        stages = words_of_stages(Path(name), choices.num_answers)
        found = {stage: measured(stage, words) for stage, words in stages.items()}
    result = {"machine": machine.hardware(), "commit": machine.commit(), "num_answers": choices.num_answers}
    write_json(RESULT, result | {"stages": found})
    print(json.dumps(found, indent=1))


def words_of_stages(folder: Path, num_answers: int) -> dict[str, list[str]]:
    """Of each stage the words of its command line."""
    model = folder / "model"
    subprocess.run([sys.executable, "-c", _SAVE_MODEL.format(str(model))], check=True)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(16)), encoding="utf-8")
    answers = write_answers(folder / "answers.jsonl", num_answers)
    generate = ["--model.model_name_or_path", str(model), "--data.dataset", str(prompts), "--generate.n", "4"]
    return {
        "generate": [*generate, "--generate.max_new_tokens", "8", "--generate.output", str(folder / "generations")],
        "score": ["--score.input", str(answers), "--score.reward", "exact", "--score.output", str(folder / "scores")],
        "select": ["--select.input", str(answers), "--select.output", str(folder / "selected.jsonl")],
    }


def measured(stage: str, words: list[str]) -> dict[str, float]:
    first = _run(stage, words)["first_seconds"]
    runs = [_run(stage, words) for _ in range(ROUNDS)]
    return {"work_seconds": first} | {key: median(run[key] for run in runs) for key in runs[0]}


def _run(stage: str, words: list[str]) -> dict[str, float]:
    call = [sys.executable, "-m", "benchmarks.restarts", "--again", stage, *words]
    began = time.perf_counter()
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return {"process_seconds": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def twice(stage: str, *words: str) -> dict[str, float]:
    """The stage in this process: with its imports, and once more without them."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        importlib.import_module(f"openrlhf.cli.{stage}").main(words)
        seconds.append(time.perf_counter() - began)
    return {"first_seconds": seconds[0], "without_imports_seconds": seconds[1]}


_SAVE_MODEL = """
from pathlib import Path
from benchmarks.generation import save_model
save_model(Path({!r}))
"""

if __name__ == "__main__":
    main()
