"""Patches are still needed, can be switched off together, and heed versions.

A test named `test_…_is_still_needed` fails once the library no longer has the fault that a patch mends: the patch goes.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.utils.cpp_extension as cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode

from openrlhf.engine.patches import patch as patch_module
from openrlhf.engine.patches.patch import SWITCH, Patch
from openrlhf.engine.processor import has_bfloat16_products
from openrlhf.errors import UserError
from tests.engine import unpatched
from tests.engine.test_adam_steps import difference_after_a_resume
from tests.engine.test_gradient_copies import Sums
from tests.engine.test_operators import build_adam
from tests.helpers.ranks import RankPool
from tests.models.zero3_cases import save_with_untrue_ties


@pytest.fixture(scope="module")
def two_sharing_ranks():
    """Ranks of their own: DeepSpeed keeps the tensor groups of a process for as long as it lives."""
    with RankPool(2) as pool:
        yield pool


@pytest.mark.parametrize(
    "offload",
    [pytest.param(False, id="FusedAdam"), pytest.param(True, id="DeepSpeedCPUAdam", marks=pytest.mark.slow)],
)
def test_cpu_adam_steps_is_still_needed(monkeypatch, offload):
    monkeypatch.setenv(SWITCH, "off")
    assert difference_after_a_resume(offload) > 0


class CountCopies(TorchDispatchMode):
    """Counts tensors of float32 that are made of others, by their number of elements."""

    def __init__(self):
        super().__init__()
        self.numels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.cat.default) and result.dtype == torch.float32:
            self.numels.append(result.numel())
        return result


def test_gradient_copies_is_still_needed_to_add():
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    parameter = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    with CountCopies() as copies:
        BF16_Optimizer._update_hp_grad(Sums(20), parameter, 0, 0, clear_lp_grads=False)
    assert copies.numels == [20]


def test_gradient_copies_is_still_needed_to_average(monkeypatch):
    from deepspeed.runtime import engine

    monkeypatch.setattr(engine.dist, "all_reduce", lambda tensor, group: None)
    stand_in = SimpleNamespace(
        flatten=lambda tensors: torch.cat([tensor.flatten() for tensor in tensors]),
        communication_data_type=torch.float32,
        gradient_average=True,
        postscale_gradients=lambda: False,
    )
    sums = [torch.ones(3), torch.ones(4)]
    with CountCopies() as copies:
        engine.DeepSpeedEngine.allreduce_bucket(stand_in, sums, dp_group=None, dp_world_size=1)
    assert copies.numels == [7]


@pytest.mark.skipif(has_bfloat16_products(), reason="this processor has products of bfloat16")
def test_float32_products_is_still_needed():
    code = """
import torch
from openrlhf.engine import processor
from openrlhf.engine.patches.float32_products import multiply_in_float32
torch.set_num_threads(1)
before = processor.flops_per_second(torch.bfloat16)
multiply_in_float32()
print(processor.flops_per_second(torch.bfloat16) / before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(said.stdout) > 1.5, "torch's own products of bfloat16 are as fast"


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA torch looks at every build itself")
def test_built_operators_is_still_needed(monkeypatch):
    assert build_adam("as always")[0] == 0
    monkeypatch.setenv(SWITCH, "off")
    code, error = build_adam("without ninja")
    assert (code, "ninja was run" in error) == (1, True), error


@pytest.mark.parametrize(("switch", "is_loaded"), [("on", "False"), ("off", "True")])
def test_muon_import_is_still_needed(switch, is_loaded):
    code = """
from openrlhf.engine.patches.muon_import import import_muon
import_muon()
import sys, deepspeed.runtime.zero.muon.muon_optimizer
print("loaded", "torch._inductor" in sys.modules or "torch._dynamo" in sys.modules)
"""
    env = os.environ | {SWITCH: switch}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert f"loaded {is_loaded}" in said.stdout, said.stderr


def test_held_updates_is_still_needed_when_an_engine_is_made(two_ranks):
    assert two_ranks.run(unpatched.updates_while_an_engine_is_made) == [1, 1]


def test_held_updates_is_still_needed_at_a_step(two_ranks):
    is_finite, is_applied = two_ranks.run(unpatched.step_with_an_infinite_gradient)[0]
    assert not is_finite
    assert is_applied, "the outcome hides that DeepSpeed made the update"


def test_group_timeouts_is_still_needed(monkeypatch):
    from deepspeed.comm.torch import TorchBackend

    asked = []
    monkeypatch.setattr(torch.distributed, "new_group", lambda *ranks, **more: asked.append(more))
    TorchBackend.new_group(object.__new__(TorchBackend), [0])
    assert asked == [{}], "DeepSpeed says how long a group waits"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's operator may be installed")
def test_torch_adam_is_still_needed(monkeypatch, tmp_path):
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", shutil.which("false"))
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(cpp_extension, "get_compiler_abi_compatibility_and_version", lambda compiler: (True, None))
    with pytest.raises(RuntimeError, match="Error building extension 'fused_adam'"):
        FusedAdam([torch.nn.Parameter(torch.zeros(4))])


def test_shared_memory_operator_is_still_needed(monkeypatch):
    import deepspeed
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    compiled = []
    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda self: compiled.append(self.name))
    for fits in (True, False):
        monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", fits)
        build_shm_op()
    assert compiled == ["deepspeed_shm_comm"]


def test_tensor_data_check_is_still_needed(two_sharing_ranks):
    is_sent, can_be_pickled = two_sharing_ranks.run(unpatched.first_pass_sends_inputs_as_objects)[0]
    assert is_sent
    assert not can_be_pickled


def test_tied_in_parts_is_still_needed(two_ranks, tmp_path):
    save_with_untrue_ties(tmp_path)
    assert two_ranks.run(unpatched.untrue_ties_are_made, str(tmp_path)) == [True, True]


def is_on(made_for: str, applies_to_others: bool = False) -> bool:
    """Of a patch of torch."""
    return Patch("some_patch", "torch", made_for, applies_to_others, without_it="it is slower").is_on()


@pytest.fixture
def torch_is_2_13_0(monkeypatch):
    monkeypatch.setattr(patch_module, "version", lambda library: "2.13.0+cpu")
    patch_module._warn_of_version.cache_clear()


@pytest.mark.usefixtures("torch_is_2_13_0")
@pytest.mark.parametrize(("made_for", "expected"), [("2.13", True), ("2.1", False), ("2", True)])
def test_a_patch_is_for_the_versions_that_begin_so(made_for, expected):
    assert is_on(made_for) == expected


@pytest.mark.usefixtures("torch_is_2_13_0")
@pytest.mark.parametrize(
    ("applies_to_others", "told"),
    [(False, "it is left out (it is slower)"), (True, "it is applied, unverified")],
)
def test_another_version_is_told_once(caplog, applies_to_others, told):
    with caplog.at_level(logging.WARNING):
        assert [is_on("2.12", applies_to_others) for _ in range(3)] == [applies_to_others] * 3
    (message,) = caplog.messages
    assert "some_patch was made for torch 2.12, and 2.13.0+cpu is installed" in message
    assert told in message


@pytest.mark.parametrize(("value", "expected"), [("on", True), ("off", False)])
def test_one_variable_switches_all_off(monkeypatch, value, expected):
    monkeypatch.setenv(SWITCH, value)
    assert is_on("2", applies_to_others=True) == expected


def test_another_word_for_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "of")
    with pytest.raises(UserError, match="OPENRLHF_PATCHES is 'of': set it to on or off"):
        is_on("2")
