"""Copies in the host buffer stand alone; its memory is kept from save to save; the writer has low priority."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from openrlhf.checkpoint.background import in_background
from openrlhf.checkpoint.host_buffer import HostBuffer, LiveTensors

TENSORS = [
    torch.arange(7, dtype=torch.float32),
    torch.randn(3, 5).bfloat16(),
    torch.tensor(3, dtype=torch.int64),
    torch.randn(4, 6)[:, ::2],
    torch.zeros(0),
]


def test_copies_stand_alone():
    buffer = HostBuffer()
    buffer.reset(2**16)
    originals = [tensor.clone() for tensor in TENSORS]
    copies = [buffer.copy_of(tensor) for tensor in originals]
    for original in originals:
        original.fill_(99)
    for copy, tensor in zip(copies, TENSORS, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)


def test_the_memory_is_kept_and_grows():
    buffer = HostBuffer()
    taken = []
    for needed_bytes in (1000, 1000, 500, 2**20, 1000):
        buffer.reset(needed_bytes)
        assert torch.equal(buffer.copy_of(torch.ones(needed_bytes // 4)), torch.ones(needed_bytes // 4))
        taken.append(buffer._memory)
    assert taken[0] is taken[1] is taken[2]
    assert taken[3] is taken[4]
    assert [len(memory) for memory in taken] == [1000, 1000, 1000, 2**20, 2**20]


def test_a_tensor_that_does_not_fit_has_memory_of_its_own():
    buffer = HostBuffer()
    buffer.reset(100)
    copies = [buffer.copy_of(torch.full((20,), float(i))) for i in range(3)]
    assert [copy[0].item() for copy in copies] == [0.0, 1.0, 2.0]


def test_live_tensors_are_not_copied():
    tensor = torch.ones(5, requires_grad=True)
    live = LiveTensors()
    live.reset(2**40)
    assert live.copy_of(tensor).data_ptr() == tensor.data_ptr()


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it is a GPU's."""

    is_cuda = True


@pytest.mark.parametrize("refusal", [0, 801])
def test_memory_for_a_gpus_tensors_is_pinned_once_and_let_go_before_it_is_freed(refusal, monkeypatch):
    calls, kernels = [], []

    class Runtime:
        def cudaHostRegister(self, address, size_bytes, flags):  # noqa: N802 - CUDA's name
            calls.append(("register", address, size_bytes))
            return refusal

        def cudaHostUnregister(self, address):  # noqa: N802
            calls.append(("unregister", address))

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: kernels.append(1))
    buffer, tensor = HostBuffer(), torch.arange(8.0).as_subclass(OnGpu)
    buffer.reset(1000)
    first = buffer._memory
    for _ in range(2):
        assert buffer.copy_of(tensor).tolist() == list(range(8))
    buffer.reset(2000)
    expected = [("register", first.data_ptr(), 1000)]
    assert calls == (expected if refusal else [*expected, ("unregister", first.data_ptr())])
    assert bool(kernels) == bool(refusal), "a failed call's error must not wait for the next kernel"
    buffer.copy_of(tensor)
    second = ("register", buffer._memory.data_ptr(), 2000)
    del buffer  # as when a script trains a second model
    gone = [second] if refusal else [second, ("unregister", second[1])]
    assert calls[-len(gone) :] == gone, "the memory goes back to the system and stays pinned"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_a_background_job_has_low_priority_and_training_has_not():
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert in_background(niceness, "job").result() > before
    assert niceness() == before
