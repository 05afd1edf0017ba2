"""The suite itself, at sizes of seconds: ours alone, so that nothing has to be installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Models and rows, shared by the tests."""
    return tmp_path_factory.mktemp("benchmarks")


def call(words: list[str], **env: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(words, cwd=ROOT, env=clean | env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_a_case_quickly(work):
    words = [sys.executable, "-m", "benchmarks.run", "--quick", "--ours-alone", "--cases", "b"]
    call([*words, "--work", str(work), "--results", str(work / "results")])
    case = json.loads((work / "results" / "speed_b.json").read_text(encoding="utf-8"))
    assert {run["contestant"] for run in case["runs"]} == {"ours"}
    figures = case["summary"]["ours"]
    assert figures["tokens_per_second"]["median"] > 0
    assert 0 < figures["shares_of_matrix_peak"]["model_flops"] < 1
    assert (work / "results" / "speed.png").is_file()


PROFILE = """
import sys
from pathlib import Path
from benchmarks.cases import CASES, quick_form
from benchmarks.step_profile import profile
from dataclasses import replace
case = quick_form(CASES["a"])
case = replace(case, material=replace(case.material, num_rows=2 * case.batch_size), num_threads=1)
print("entries:", *profile(case, Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_the_profile_sees_a_step(work):
    names = call([sys.executable, "-c", PROFILE, str(work)], OMP_NUM_THREADS="1").rpartition("entries:")[2].split()
    assert {"aten::mm", "_WeightedLogProbs"} <= set(names)


def gpu_script(work: Path, *words: str) -> str:
    env = {"GPU_BENCH_TOY": "1", "TRL_PYTHON": "none", "GPU_BENCH_OUT": str(work / "gpu"), "PYTHON": sys.executable}
    return call(["bash", "benchmarks/gpu.sh", "--work", str(work), *words], **env)


@pytest.mark.slow
def test_the_gpu_script_on_the_cpu(work):
    gpu_script(work)
    found = json.loads((work / "gpu" / "gpu_toy.json").read_text(encoding="utf-8"))
    failures = {name: stage for name, stage in found.items() if isinstance(stage, dict) and "failed" in stage}
    assert not failures
    assert found["train tiny_llama ours"]["tokens_per_second"] > 0
    assert found["train tiny_llama ours_compiled"]["tokens_per_second"] > 0
    assert found["longest ours 64"]["trains"]
    assert "skipped" in found["gpu_tests"]["said"]
    order = list(found)
    assert order.index("warm_up") < order.index("gpu_tests") < order.index("train tiny_llama ours")


@pytest.mark.slow
def test_the_gpu_script_keeps_its_time_and_names_what_it_left_out(work):
    gpu_script(work, "--seconds", "1")
    found = json.loads((work / "gpu" / "gpu_toy.json").read_text(encoding="utf-8"))
    assert "s were left" in found["matrix_peak"]["left_out"]
    assert "s were left" in found["train tiny_llama ours"]["left_out"]


def test_what_grows_is_measured_quickly(work):
    call([sys.executable, "-m", "benchmarks.scale", "--quick", "--results", str(work / "scale")])
    parts = json.loads((work / "scale" / "scale.json").read_text(encoding="utf-8"))["parts"]
    assert set(parts) == {"a step", "the watchdog", "a save", "the start", "a sum over all ranks"}
    assert "| a step | layout: packed to 16,384 tokens |" in (work / "scale" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_tuning_costs_is_measured_quickly(work):
    sizes = ["--rounds", "1", "--steps", "20", "--samples", "2", "--kinds", "layers as they are"]
    said = call([sys.executable, "-m", "benchmarks.tuning", *sizes, "--result", str(work / "tuning.json")])
    assert "layers as they are, 20 steps: " in said
    (kind,) = json.loads((work / "tuning.json").read_text(encoding="utf-8"))["kinds"].values()
    assert kind["seconds"]["ratio"] == kind["seconds"]["tuned"] / kind["seconds"]["not tuned"] > 0
    (runs,) = kind["rounds"]
    (found,) = runs["tuned"]["layouts"]
    assert [one["max_tokens"] for one in found["tried"]] == [1024, 512]
    assert runs["not tuned"]["layouts"] == []
