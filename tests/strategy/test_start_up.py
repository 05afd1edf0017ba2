"""What a start must not cost: modules that no part of the run needs, answers that are known."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_CALLS = """
import torch
from openrlhf.utils.deepspeed.muon_import import _compile_at_first_call
compiled = []
def compile_now(**named):
    return lambda function: compiled.append(named["mode"]) or (lambda x: function(x) * 10)
double = _compile_at_first_call(compile_now, mode="fast")(lambda x: 2 * x)
assert compiled == [], "compiled before it was called"
assert [double(1), double(2)] == [20, 40]
assert compiled == ["fast"], "not compiled once"
"""
IMPORT_MUON = """
import sys
from openrlhf.utils.deepspeed.muon_import import import_muon_uncompiled
import_muon_uncompiled()
import_muon_uncompiled()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5
assert "torch._inductor.compile_fx" not in sys.modules, "torch's compiler was loaded"
assert compiler.compile.__module__ == "deepspeed.runtime.compiler", "DeepSpeed's decorator was not put back"
"""
ASK_PROCESSOR = """
import cpuinfo
from openrlhf.utils.deepspeed.operators import sole_compiler
calls = []
cpuinfo.get_cpu_info = lambda: calls.append(1) or {"arch": "X86_64"}
for _ in range(2):
    with sole_compiler():
        from cpuinfo import get_cpu_info
        assert get_cpu_info() == get_cpu_info() == {"arch": "X86_64"}
assert calls == [1], f"asked {len(calls)} times"
"""


@pytest.mark.parametrize("script", [COUNT_CALLS, IMPORT_MUON, ASK_PROCESSOR], ids=["lazy", "muon", "processor"])
def test_nothing_is_done_before_it_is_needed(script: str, tmp_path):
    """In a process of its own: here everything may be loaded already."""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
