"""Compiling DeepSpeed's operators: one process at a time, and nobody waits for one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from openrlhf.utils.build_folder import keep_builds_apart
from openrlhf.utils.deepspeed.operators import sole_compiler

HOLD = """
import time
from openrlhf.utils.deepspeed.operators import sole_compiler
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
