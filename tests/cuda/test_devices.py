"""A table of machines: GPUs that torch cannot use, one visible GPU a task, more ranks than GPUs."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from openrlhf.cli.entry import run_command
from openrlhf.cli.train_sft import main
from openrlhf.compat.trl.arguments import TrlSFTConfig
from openrlhf.compat.trl.loading import get_kbit_device_map
from openrlhf.engine import devices
from openrlhf.engine.launch import check_devices_differ
from openrlhf.errors import UserError
from tests.helpers.workbench import flags, save_model, save_rows

LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "TORCHELASTIC_RUN_ID")
NEW_DRIVER, OLD_DRIVER = "580.65.06  Release Build", "535.104.05  Sat Aug 19 01:15:15 UTC 2023"
SECONDS_TO_TELL = 20
NVIDIA = "0x10de"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes a machine: its GPUs, its driver, the CUDA that torch was built for, the GPUs that torch can use."""

    def make(num_gpus=0, driver=NEW_DRIVER, cuda="13.0", num_visible=0, vendor="0x8086", nodes=(), **environ):
        wsl_driver = "driver" if "dxg" in nodes and vendor == NVIDIA else "none"
        for folder in ("dev", "pci/0000:01:00.0"):
            (tmp_path / folder).mkdir(parents=True)
        for index in range(num_gpus):
            (tmp_path / f"dev/nvidia{index}").touch()
        for name in ("nvidiactl", *nodes):
            (tmp_path / "dev" / name).touch()
        (tmp_path / "driver").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}\nGCC version: 12\n")
        (tmp_path / "pci/0000:01:00.0/vendor").write_text(f"{vendor}\n")
        (tmp_path / "pci/0000:01:00.0/class").write_text("0x030200\n")
        monkeypatch.setattr(devices, "_DEVICE_NODES", tmp_path / "dev")
        monkeypatch.setattr(devices, "_PCI_DEVICES", tmp_path / "pci")
        monkeypatch.setattr(devices, "_DRIVER", tmp_path / "driver")
        monkeypatch.setattr(devices, "_DRIVER_OF_WSL", tmp_path / wsl_driver)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        kept = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER_NAMES, "DS_ACCELERATOR")}
        kept.pop("CUDA_VISIBLE_DEVICES", None)
        monkeypatch.setattr(os, "environ", kept | environ)

    return make


@pytest.mark.parametrize(
    ("facts", "finding", "remedy"),
    [
        (dict(cuda=None), "is built for the CPU alone", "Install the build for CUDA"),
        (dict(driver=OLD_DRIVER), "needs driver 580 or later, and the driver is 535.104.05", "Update it, or install"),
        (dict(CUDA_VISIBLE_DEVICES="7"), "CUDA_VISIBLE_DEVICES=7 names none of them", "ask the scheduler"),
        (dict(CUDA_VISIBLE_DEVICES="NoDevFiles"), "CUDA_VISIBLE_DEVICES=NoDevFiles names none", "ask the scheduler"),
        (dict(), "torch says: ", "nvidia-smi"),
        (dict(num_gpus=0, vendor=NVIDIA), "its driver cannot be seen here", "docker run --gpus all"),
        (
            dict(num_gpus=0, nodes=["dxg"], vendor=NVIDIA, cuda=None),
            "has GPUs (dxg), and torch",
            "Install the build for CUDA",
        ),
    ],
    ids=["cpu-wheel", "old-driver", "hidden", "no-gres", "unknown", "container", "wsl"],
)
def test_a_gpu_machine_does_not_train_on_its_cpu_without_a_word(machine, facts, finding, remedy):
    machine(**(dict(num_gpus=2) | facts))
    with pytest.raises(UserError) as caught:
        devices.usable_device_type()
    text = str(caught.value)
    assert finding in text
    assert remedy in text
    assert "DS_ACCELERATOR=cpu" in text


@pytest.mark.parametrize(
    "facts",
    [
        dict(num_gpus=2, DS_ACCELERATOR="cpu"),
        dict(num_gpus=2, CUDA_VISIBLE_DEVICES=""),
        dict(num_gpus=2, CUDA_VISIBLE_DEVICES="-1"),
        dict(num_gpus=0),
        dict(num_gpus=0, vendor=NVIDIA, cuda=None),  # a container without a GPU, and torch for the CPU
    ],
    ids=str,
)
def test_the_cpu_is_taken_where_it_is_asked_for_or_all_there_is(machine, facts):
    machine(**facts)
    assert devices.take_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("accelerator", "told"),
    [
        *((name, f"DS_ACCELERATOR={name} is not here: set cpu or cuda") for name in ("CPU", "gpu", "xpu")),
        ("cuda", "DS_ACCELERATOR=cuda asks for a GPU, and torch .* finds none: unset it"),
    ],
)
def test_an_accelerator_that_is_not_here_is_refused(machine, accelerator, told):
    machine(DS_ACCELERATOR=accelerator)
    with pytest.raises(UserError, match=told):
        devices.take_device()


def test_an_accelerator_of_no_name_is_none(machine):
    machine(DS_ACCELERATOR="")
    assert devices.take_device() == torch.device("cpu")
    assert "DS_ACCELERATOR" not in os.environ  # DeepSpeed would ask for one of its own


@pytest.mark.parametrize("num_visible", [0, 8])
def test_a_torch_for_amd_is_refused_and_trains_on_the_cpu_where_that_is_asked_for(machine, monkeypatch, num_visible):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    machine(num_visible=num_visible, cuda=None)
    with pytest.raises(UserError, match="is built for AMD GPUs .*: install the build for CUDA .* DS_ACCELERATOR=cpu"):
        devices.usable_device_type()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as torch says where all GPUs are hidden
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert devices.take_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("facts", "has_xpu", "told"),
    [
        (dict(nodes=["kfd"]), False, "note: this machine has an AMD GPU; only NVIDIA's are used"),
        (dict(), True, "note: this machine has an Intel GPU; only NVIDIA's are used"),
        (dict(nodes=["dxg"]), False, "note: this machine has another maker's GPU; only NVIDIA's are used"),
        (dict(nodes=["kfd"], DS_ACCELERATOR="cpu"), False, ""),
        (dict(nodes=["kfd"], RANK="1"), False, ""),
        (dict(), False, ""),
    ],
)
def test_a_gpu_of_another_maker_is_told_of(machine, monkeypatch, capsys, facts, has_xpu, told):
    monkeypatch.setattr(torch.xpu, "is_available", lambda: has_xpu)
    machine(**facts)
    assert devices.take_device() == torch.device("cpu")
    said = capsys.readouterr().out
    assert said.startswith(told) if told else said == ""


def test_a_lone_process_takes_the_first_gpu(machine):
    """Generation, chat, rewards: no launcher has given it a rank, and its children are to find none."""
    machine(num_gpus=2, num_visible=2)
    assert devices.take_device() == torch.device("cuda", 0)
    assert "LOCAL_RANK" not in os.environ


def test_a_run_is_told_within_seconds_and_no_data_are_prepared(machine, tmp_path, monkeypatch, capsys):
    words = flags(save_model(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl", 8), tmp_path / "out")
    machine(num_gpus=1, cuda=None)
    monkeypatch.setattr(sys, "argv", ["train_sft", *words])
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert "This machine has GPUs (nvidia0), and torch cannot use them" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert time.monotonic() - began < SECONDS_TO_TELL


def test_asking_for_the_cpu_hides_the_gpus_from_all_code(machine):
    machine(num_gpus=2, DS_ACCELERATOR="cpu")
    run_command(lambda argv: None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("num_visible", "local_rank", "index"),
    [(1, 3, 0), (2, 3, 1), (4, 3, 3)],
    ids=["one-gpu-a-task", "two-gpus-a-task", "all-gpus"],
)
def test_deepspeed_finds_a_ranks_device_by_its_local_rank(machine, num_visible, local_rank, index):
    local = str(local_rank)
    machine(num_gpus=4, num_visible=num_visible, LOCAL_RANK=local, OMPI_COMM_WORLD_LOCAL_RANK=local, WORLD_SIZE="4")
    assert devices.device_of_rank() == torch.device("cuda", index)
    assert get_kbit_device_map() == {"": index}
    assert TrlSFTConfig().device == torch.device("cuda", index)
    assert devices.take_device() == torch.device("cuda", index)
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(index)


def test_a_script_asks_for_its_device_before_the_launcher_is_read(machine):
    """srun sets no LOCAL_RANK; TRL's scripts place quantized weights before they make a trainer."""
    task = dict(SLURM_PROCID="3", SLURM_NTASKS="4", SLURM_LOCALID="3", SLURM_STEP_ID="0", MASTER_ADDR="here")
    machine(num_gpus=4, num_visible=4, **task, MASTER_PORT="29500")
    assert get_kbit_device_map() == {"": 3}


def test_a_rank_that_is_empty_is_none(machine):
    machine(num_gpus=2, num_visible=2, LOCAL_RANK="")
    assert devices.device_of_rank() == torch.device("cuda", 0)


def test_a_gpu_that_another_process_has_for_itself_is_told(machine, monkeypatch):
    def is_busy(index):
        raise torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore lines")

    machine(num_gpus=2, num_visible=2, LOCAL_RANK="1")
    monkeypatch.setattr(torch.cuda, "set_device", is_busy)
    with pytest.raises(UserError, match=r"GPU 1 cannot be used \(CUDA error: .* unavailable\): nvidia-smi shows who"):
        devices.take_device()


@pytest.mark.parametrize(
    "environ", [dict(TORCHELASTIC_RUN_ID="x", LOCAL_WORLD_SIZE="8"), dict(LOCAL_SIZE="8")], ids=str
)
def test_more_ranks_than_gpus_are_refused_at_once(machine, environ):
    machine(num_gpus=4, num_visible=4, LOCAL_RANK="5", **environ)
    with pytest.raises(UserError, match="8 ranks were started on this machine, and they can use 4 GPUs"):
        devices.usable_device_type()


def told(names):
    """What each rank is told, whose GPUs have these names."""
    store, timeout = HashStore(), timedelta(seconds=20)

    def check(rank):
        try:
            return check_devices_differ(store, rank, len(names), names[rank], timeout)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(check, range(len(names))))


def test_ranks_that_share_a_gpu_are_told_so_all_alike():
    texts = told(["GPU-a", "GPU-b", "GPU-a"])
    assert len(set(texts)) == 1
    assert "ranks 0, 2 have the same GPU" in texts[0]
    assert told(["GPU-a", "GPU-b"]) == told(["", ""]) == [None, None]


def test_torchs_uuid_names_a_gpu(monkeypatch):
    from openrlhf.engine.launch import _name_of

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))
    assert _name_of(torch.device("cuda", 1)) == "GPU-1"
    assert _name_of(torch.device("cpu")) == ""
