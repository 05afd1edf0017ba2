"""Compiling our kernels: once for a processor, one process at a time, and training goes on where it cannot be done."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

LOAD = """
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from openrlhf.models.cpu_kernels.compiled import load_library
print(load_library() is not None)
"""


def load_in_own_process(folder, **variables):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **variables}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_ranks_that_start_together_compile_once(tmp_path):
    with ThreadPoolExecutor() as starter:
        done = list(starter.map(lambda _: load_in_own_process(tmp_path), range(2)))
    assert [run.stdout.splitlines()[-1] for run in done] == ["True", "True"]
    assert sum("compiling our kernels" in run.stdout for run in done) == 1
    assert [path.suffix for path in tmp_path.glob("openrlhf_cpu_*")] == [".so"], "something unfinished is left"


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_it_is_said_and_torch_computes(tmp_path, compiler):
    done = load_in_own_process(tmp_path, CXX=compiler)
    assert done.stdout.splitlines()[-1] == "False"
    assert "our kernels could not be compiled" in done.stderr
    assert "Traceback" not in done.stderr
