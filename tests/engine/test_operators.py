"""Compiling DeepSpeed's operators: one process at a time, and nobody waits for one that was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch

from openrlhf.build_folder import keep_builds_apart
from openrlhf.engine import operators
from openrlhf.engine.operators import sole_compiler

HOLD = """
import time
from openrlhf.engine.operators import sole_compiler
with sole_compiler():
    open("{folder}/op/lock", "w").close()  # what torch leaves when its process is killed
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_of_a_killed_build_is_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "op").mkdir()
    code = HOLD.format(folder=tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "held"
        holder.kill()
    began = time.monotonic()
    with sole_compiler():
        assert not (tmp_path / "op/lock").exists()
    assert time.monotonic() - began < 5


def test_what_is_not_built_is_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with sole_compiler("fused_adam"):
        assert "compiling DeepSpeed's fused_adam" in capsys.readouterr().out


def test_a_folder_of_the_users_own_is_left_alone(monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/somewhere")
    keep_builds_apart()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/somewhere"


def test_operators_are_compiled_without_debug_symbols(monkeypatch):
    """They take a third of the compiler's time."""
    from deepspeed.ops.op_builder import FusedAdamBuilder

    flags = []
    monkeypatch.setattr(FusedAdamBuilder, "load", lambda self, verbose: flags.extend(self.cxx_args()))
    operators.load_adam("fused_adam", "deepspeed")
    assert ("-O3" in flags, "-g" in flags) == (True, False)


BUILD_ADAM = """
import sys, torch
from openrlhf.config import AdamConfig
from openrlhf.engine.optimizers import build_adamw
if sys.argv[1] == "without ninja":
    import torch.utils.cpp_extension as extension
    extension.load = lambda *words, **named: sys.exit("ninja was run")
model = torch.nn.Linear(3, 2)
optimizer = build_adamw(model, AdamConfig(lr=0.1), offload=True)
model(torch.ones(1, 3)).sum().backward()
before = model.weight.detach().clone()
optimizer.step()
assert not torch.equal(before, model.weight), "no step was made"
"""


def build_adam(how):
    run = subprocess.run([sys.executable, "-c", BUILD_ADAM, how], capture_output=True, text=True, timeout=300)
    return run.returncode, run.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA torch looks at every build itself")
def test_what_was_built_with_these_versions_is_loaded_at_once(tmp_path, monkeypatch):
    assert build_adam("as always") == (0, ANY)
    place = tmp_path / "cpu_adam"  # of this test alone: a test beside it would build anew, and write its stamp
    shutil.copytree(Path(os.environ["TORCH_EXTENSIONS_DIR"], "cpu_adam"), place)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert build_adam("without ninja") == (0, ANY)
    stamp = place / operators.STAMP_NAME
    made_with = stamp.read_text()
    for other in ("another DeepSpeed", made_with.replace("processor ", "processor of another kind ")):
        stamp.write_text(other)
        code, error = build_adam("without ninja")
        assert (code, "ninja was run" in error) == (1, True), other
