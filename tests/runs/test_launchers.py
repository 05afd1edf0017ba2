"""The three ways to start a run, for real: DeepSpeed's launcher, torchrun, plain python. One curve, one exit code."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slow import slow
from tests.helpers.workbench import flags, save_model, save_rows, step_lines

ROOT = Path(__file__).parents[2]
MODULE = "openrlhf.cli.train_sft"
BIN = Path(sys.executable).parent


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(words: list[str], argv: list[str]) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env = clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run([*words, *argv], env=env, capture_output=True, text=True, timeout=500)


LAUNCHERS = {
    "deepspeed": lambda: [
        str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port(), "--module", MODULE,
    ],
    "torchrun": lambda: [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port(), "-m", MODULE],
    "python": lambda: [sys.executable, "-m", MODULE],
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    save_model(folder / "model")
    save_rows(folder / "rows.jsonl", 14)
    return folder


@functools.cache
def losses(name, bench):
    done = launch(LAUNCHERS[name](), flags(bench / "model", bench / "rows.jsonl", bench / name))
    assert done.returncode == 0, f"{name}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return [line["loss"] for line in step_lines(bench / name)]


@pytest.mark.parametrize("name", ["python", *slow(["torchrun"])])
def test_the_same_curve_as_deepspeeds_launcher(bench, name):
    assert len(losses("deepspeed", bench)) == 4
    assert losses(name, bench) == pytest.approx(losses("deepspeed", bench), rel=1e-6)


@pytest.mark.parametrize("name", ["deepspeed", "python"])
def test_bad_input_ends_with_code_2(bench, name):
    argv = flags(bench / "model", bench / "rows.jsonl", bench / "bad", data__input_key="nope", train__batch_sise=1)
    done = launch(LAUNCHERS[name](), argv)
    assert done.returncode == 2
    assert "Did you mean --train.batch_size?" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
