"""The device that a rank trains on. A machine with GPUs never trains on its CPU unless that was asked for.

`DS_ACCELERATOR=cpu`, which is DeepSpeed's variable, asks for the CPU; so does an empty `CUDA_VISIBLE_DEVICES`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

from openrlhf.engine.launchers import (
    adopt_launcher,
    num_local_ranks,
    one_process_starts_local_ranks,
    prepare_cuda,
)
from openrlhf.errors import UserError, first_line_of

_DEVICE_NODES = Path("/dev")
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_DRIVER = Path("/proc/driver/nvidia/version")
_DRIVER_OF_WSL = Path("/usr/lib/wsl/lib/libcuda.so.1")
_GPU_OF_WSL = "dxg"  # of any maker: the GPU of the Windows machine around WSL 2
_NVIDIA, _DISPLAY_CLASS = "0x10de", "0x03"
_OLDEST_DRIVERS = {"13": 580, "12": 525, "11": 450}  # by CUDA's major version: NVIDIA's table of minor compatibility
_M_MMAP_THRESHOLD, _BYTES_GIVEN_BACK_AT_ONCE = -3, 2**20  # glibc's number of that setting; its value
_TORCH_PAGE = "https://pytorch.org/get-started/locally"
_CPU_INSTEAD = "To train on the CPU, set DS_ACCELERATOR=cpu."


def usable_device_type() -> str:
    """cuda or cpu.

    Raises UserError where the machine has GPUs that torch cannot use, fewer than ranks, or none though DS_ACCELERATOR
    asks for one, and for a torch of AMD's.
    """
    prepare_cuda()
    if torch.version.hip and not _cpu_is_asked_for():
        raise UserError(
            f"torch {torch.__version__} is built for AMD GPUs (ROCm), on which nothing here was ever tried: install "
            f"the build for CUDA or for the CPU ({_TORCH_PAGE} has the commands). {_CPU_INSTEAD}"
        )
    if not torch.cuda.is_available():
        _check_cpu_is_meant()
        if os.environ.get("DS_ACCELERATOR") == "cuda":
            raise UserError(f"DS_ACCELERATOR=cuda asks for a GPU, and torch {torch.__version__} finds none: unset it.")
        return "cpu"
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        raise UserError("DS_ACCELERATOR=cpu came after CUDA was used: set CUDA_VISIBLE_DEVICES= (empty) as well.")
    _check_a_gpu_for_each_rank()
    return "cuda"


def take_device() -> torch.device:
    """This rank's device. LOCAL_RANK becomes its index, which is what DeepSpeed takes it for.

    A task that sees one GPU of its own may be its machine's fourth rank.
    """
    if usable_device_type() == "cpu":
        _tell_of_gpus_of_others()
        return torch.device("cpu")
    index = _index_of_rank()
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):  # DeepSpeed demands that they agree
        if name in os.environ:
            os.environ[name] = str(index)
    try:
        torch.cuda.set_device(index)
    except RuntimeError as error:
        raise UserError(f"GPU {index} cannot be used ({first_line_of(error)}): nvidia-smi shows who has it.") from error
    return torch.device("cuda", index)


def device_of_rank() -> torch.device:
    """The device that `take_device` would take, before it is taken; whatever launcher says the rank."""
    adopt_launcher()
    return torch.device("cuda", _index_of_rank()) if torch.cuda.is_available() else torch.device("cpu")


def give_back_memory() -> None:
    """Of the GPU and the host: what nobody in this process holds any more, for other processes."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Free pages of the C library's heap go back to the system, in milliseconds. glibc alone has a call for it."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once() -> None:
    """On a CPU: from now on every large block goes back to the system when it is freed, which costs time.

    glibc keeps blocks of up to 32 MiB, and up to its version 2.37 hardly uses those that torch has freed again, as they
    are aligned: layers that are computed again would take as much as if all were kept. A threshold that the user has
    set holds.
    """
    is_set = "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    if not is_set and not torch.cuda.is_available():
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES_GIVEN_BACK_AT_ONCE)


def free_device_bytes() -> int | None:
    """Of this rank's GPU, before or after it is taken; None where there is none, or it does not say."""
    try:
        return torch.cuda.mem_get_info(_index_of_rank())[0] if torch.cuda.is_available() else None
    except (RuntimeError, AssertionError):
        return None


def hardware_name(device: torch.device) -> str:
    """The GPU, if that is the rank's device, and the processor with the threads that torch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{(models or [platform.machine()])[0]}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, {processor}" if device.type == "cuda" else processor


def _index_of_rank() -> int:
    """A lone process has no rank."""
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()


def _check_a_gpu_for_each_rank() -> None:
    if not one_process_starts_local_ranks(os.environ):
        return
    num_ranks, num_gpus = num_local_ranks(os.environ), torch.cuda.device_count()
    if num_ranks > num_gpus:
        raise UserError(
            f"{num_ranks} ranks were started on this machine, and they can use {num_gpus} GPUs: start one for each "
            f"(torchrun --nproc_per_node {num_gpus}, deepspeed --num_gpus {num_gpus})."
        )


def _cpu_is_asked_for() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # `prepare_cuda` sets it for DS_ACCELERATOR=cpu


def _tell_of_gpus_of_others() -> None:
    """One line, by rank 0, where the machine has GPUs that are not NVIDIA's, and the CPU was not asked for."""
    if _cpu_is_asked_for() or os.environ.get("RANK", "0") != "0":
        return
    makers = {
        "an AMD": (_DEVICE_NODES / "kfd").exists(),
        "an Intel": torch.xpu.is_available(),
        "another maker's": (_DEVICE_NODES / _GPU_OF_WSL).exists(),
    }
    if maker := next((maker for maker, is_here in makers.items() if is_here), None):
        print(f"note: this machine has {maker} GPU; only NVIDIA's are used, so the CPU computes.", flush=True)


def _check_cpu_is_meant() -> None:
    if _cpu_is_asked_for():
        return
    nodes = [path.name for path in sorted(_DEVICE_NODES.glob("nvidia[0-9]*"))]
    if _DRIVER_OF_WSL.exists():  # which Windows hands on beside an NVIDIA GPU alone
        nodes += [path.name for path in _DEVICE_NODES.glob(_GPU_OF_WSL)]
    if nodes:
        raise UserError(f"This machine has GPUs ({', '.join(nodes)}), and torch cannot use them: {_why_not()}")
    if torch.version.cuda and _has_nvidia_card():
        raise UserError(
            "This machine has an NVIDIA GPU, and its driver cannot be seen here: install the driver; a container needs "
            f"`docker run --gpus all`. {_CPU_INSTEAD}"
        )


def _why_not() -> str:
    """The finding and the remedy."""
    built, cuda = f"torch {torch.__version__} is built for", torch.version.cuda
    if not cuda:
        return f"{built} the CPU alone. Install the build for CUDA ({_TORCH_PAGE} has the command). {_CPU_INSTEAD}"
    oldest, driver = _OLDEST_DRIVERS.get(cuda.partition(".")[0], 0), _driver_version()
    if driver and int(driver.partition(".")[0]) < oldest:
        return (
            f"{built} CUDA {cuda}, which needs driver {oldest} or later, and the driver is {driver}. Update it, "
            f"or install the same torch for an older CUDA ({_TORCH_PAGE} has the command). {_CPU_INSTEAD}"
        )
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return f"CUDA_VISIBLE_DEVICES={visible} names none of them: ask the scheduler for GPUs. {_CPU_INSTEAD}"
    return f"{_words_of_torch()} Does nvidia-smi work here? {_CPU_INSTEAD}"


def _words_of_torch() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"torch says: {first_line_of(error)}"
    return "torch does not say why."


def _driver_version() -> str:
    """As in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 …`; empty where it is not told."""
    try:
        words = _DRIVER.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[:3].isdigit() and "." in word), "")


def _has_nvidia_card() -> bool:
    """Whether a card is on the bus: a container sees it there without the right to use it."""
    for device in _PCI_DEVICES.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASS):
            return True
    return False
