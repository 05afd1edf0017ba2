"""Machines where DeepSpeed's AdamW cannot be compiled: torch's takes its place, as exact, and is told."""

from __future__ import annotations

import shutil
import sysconfig

import deepspeed
import pytest
import torch
import torch.utils.cpp_extension as cpp_extension
from deepspeed.git_version_info import installed_ops
from deepspeed.ops.op_builder import FusedAdamBuilder
from deepspeed.ops.op_builder.builder import OpBuilder
from torch import nn

from openrlhf.config import AdamConfig, MuonConfig
from openrlhf.engine import operators
from openrlhf.engine.optimizers import adam_in_words, build_adamw, build_muon
from openrlhf.errors import UserError

ADAM = AdamConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
NUM_STEPS = 5


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "builds"))
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})


@pytest.fixture
def driver_without_toolkit(monkeypatch):
    """The usual GPU machine whose CUDA came with pip. (Tensors stay on the CPU: its kernel is torch's as well.)"""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3)).to(dtype)


def trained(module, optimizer):
    """The weights after some steps; each with a gradient of its own."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(NUM_STEPS):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def expected():
    """In float64, by torch's plainest AdamW; biases do not decay."""
    module = model(torch.float64)
    decaying, others = ([p for p in module.parameters() if (p.dim() == 2) == is_matrix] for is_matrix in (True, False))
    groups = [dict(params=decaying, weight_decay=ADAM.weight_decay), dict(params=others, weight_decay=0.0)]
    options = dict(lr=ADAM.lr, betas=ADAM.betas, eps=ADAM.eps, foreach=False)
    return trained(module, torch.optim.AdamW(groups, **options))


@pytest.mark.parametrize("offload", [False, True], ids=["FusedAdam", "DeepSpeedCPUAdam"])
def test_a_gpu_machine_without_nvcc_trains_as_exactly(driver_without_toolkit, offload):
    module = model()
    optimizer = build_adamw(module, ADAM, offload)
    assert torch.allclose(trained(module, optimizer).double(), expected(), rtol=0, atol=1e-6)
    assert adam_in_words(optimizer) == (
        "torch's fused AdamW; there is no nvcc: install the CUDA 13.0 toolkit and set CUDA_HOME."
    )


def test_muons_other_half_needs_no_nvcc_either(monkeypatch):
    monkeypatch.setattr(operators, "why_not_compiled", lambda operator: "there is no nvcc.")
    module = model()
    optimizer = build_muon(module, MuonConfig(), ADAM)
    trained(module, optimizer)
    assert adam_in_words(optimizer).startswith("Muon for matrices, for the rest torch's fused AdamW; ")
    assert "no nvcc" in adam_in_words(optimizer)


def test_deepspeeds_kernel_is_refused_where_it_is_asked_for(driver_without_toolkit):
    with pytest.raises(UserError, match="there is no nvcc: install the CUDA 13.0 toolkit and set CUDA_HOME"):
        build_adamw(model(), AdamConfig(kernel="deepspeed"), offload=False)


def test_it_is_refused_before_data_are_prepared(driver_without_toolkit):
    with pytest.raises(UserError, match="there is no nvcc"):
        operators.check_adam("deepspeed", offload=False)
    operators.check_adam("auto", offload=False)


def test_nvcc_of_another_cuda_is_as_none(driver_without_toolkit, monkeypatch, tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert "nvcc is not of CUDA 13.0" in operators.why_not_compiled("fused_adam")


@pytest.mark.parametrize(
    ("missing", "why"),
    [("compiler", "there is no C++ compiler (no-such-compiler)"), ("headers", "Python's headers are missing")],
)
def test_what_a_build_needs_is_named(monkeypatch, tmp_path, missing, why):
    if missing == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler -O2")
    else:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert why in operators.why_not_compiled("cpu_adam")


def test_a_compiler_that_fails_does_not_end_the_run(monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("false"))
    monkeypatch.setattr(cpp_extension, "get_compiler_abi_compatibility_and_version", lambda compiler: (True, None))
    module = model()
    optimizer = build_adamw(module, ADAM, offload=True)
    assert "the compiler failed" in adam_in_words(optimizer)
    assert torch.allclose(trained(module, optimizer).double(), expected(), rtol=0, atol=1e-6)


def test_a_home_that_cannot_be_written_does_not_end_the_run(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file/builds"))
    module = model()
    optimizer = build_adamw(module, ADAM, offload=True)
    said = adam_in_words(optimizer)
    assert "file/builds cannot be written (Not a directory): set TORCH_EXTENSIONS_DIR to a folder that can." in said
    assert torch.allclose(trained(module, optimizer).double(), expected(), rtol=0, atol=1e-6)


def test_operators_of_an_image_that_do_not_know_this_gpu_give_way_to_torchs(monkeypatch):
    """They load all the same, and would end the first update."""

    class BuiltForOthers:
        def __init__(self, weights):
            pass

        def step(self):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    zeros = torch.zeros
    monkeypatch.setitem(installed_ops, "fused_adam", True)
    monkeypatch.setattr(FusedAdamBuilder, "load", lambda self, verbose: None)
    monkeypatch.setattr(deepspeed.ops.adam, "FusedAdam", BuiltForOthers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    why = operators._compile("fused_adam")
    assert why == "it was built for other GPUs (CUDA error: no kernel image is available for execution on the device)."
