"""What a start must not cost: modules that no part of the run needs, answers that are known."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_CALLS = """
import torch
from openrlhf.engine.patches.muon_import import _compile_at_first_call
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
from openrlhf.engine.patches.muon_import import import_muon_uncompiled
import_muon_uncompiled()
import_muon_uncompiled()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5
assert "torch._inductor.compile_fx" not in sys.modules, "torch's compiler was loaded"
assert compiler.compile.__module__ == "deepspeed.runtime.compiler", "DeepSpeed's decorator was not put back"
"""
ASK_PROCESSOR = """
import cpuinfo
told = cpuinfo.get_cpu_info()
from openrlhf.engine.operators import sole_compiler
with sole_compiler():
    pass
from cpuinfo import get_cpu_info
ours = get_cpu_info()
assert get_cpu_info() is ours, "asked twice"
for name in ("arch", "vendor_id_raw"):
    assert ours.get(name) == told.get(name), (ours.get(name), told.get(name))
for flag in ("avx2", "avx512f", "sve"):
    assert (flag in ours["flags"]) == (flag in told["flags"]), flag
"""
JOIN = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from datetime import timedelta
from unittest.mock import patch
import deepspeed
from deepspeed.ops.op_builder.cpu import AsyncIOBuilder
from openrlhf.engine.launch import join_ranks
with patch.object(AsyncIOBuilder, "is_compatible", return_value=False) as tried:
    join_ranks(timedelta(seconds=60))
assert not tried.called, "another operator was tried"
from deepspeed.comm import comm
assert comm.cdb.shm_comm_op is not None, "DeepSpeed does not use its operator"
assert "async_io" in deepspeed.ops.__compatible_ops__, "DeepSpeed's own list did not come back"
"""
KEEP_ALL = """
import gc
from openrlhf.cli.garbage import keeping_all
class Node: pass
with keeping_all():
    assert not gc.isenabled()
    node = Node()
assert gc.isenabled(), "the collector is left off"
assert not any(each is node for each in gc.get_objects()), "what was made is still searched"
late = Node()
assert any(each is late for each in gc.get_objects()), "what is made later is not searched"
"""
END_AT_ONCE = """
import gc, sys
from openrlhf.cli.garbage import end_without_search
end_without_search()
class Node:
    def __del__(self): sys.stdout.write("searched")
    def __init__(self): self.me = self
Node()
"""

SCRIPTS = {
    "muon_compiles_late": COUNT_CALLS,
    "muon_loads_no_compiler": IMPORT_MUON,
    "processor_is_asked_once": ASK_PROCESSOR,
    "joining_tries_its_own_operator_alone": JOIN,
    "modules_are_not_searched": KEEP_ALL,
    "no_search_at_the_end": END_AT_ONCE,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_nothing_is_done_before_it_is_needed(script: str, tmp_path):
    """In a process of its own: here everything may be loaded already."""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "searched" not in run.stdout
