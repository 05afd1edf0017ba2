"""DeepSpeed's operators, compiled on first use, by one process at a time.

torch guards a build by a file that stays behind when its process is killed, and later processes wait for it for ever
(https://github.com/pytorch/pytorch/issues/189245). Every build of ours holds the lock of our build folder, so a file of
torch's that is found under that lock is stale.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from openrlhf.build_folder import NoBuildFolder, build_folder, builds_are_for, sole_builder
from openrlhf.config.settings import AdamKernel
from openrlhf.engine.patches.built_operators import load_built
from openrlhf.engine.patches.torch_adam import use_deepspeeds, use_torchs
from openrlhf.errors import UserError, first_line_of

STAMP_NAME = "openrlhf_made_with"


@contextmanager
def sole_compiler(*operators: str) -> Iterator[None]:
    """While it lasts no other process of ours compiles; says so where `operators` (folder names) are not built yet.

    Nobody waits for the lock where all of them are built: of a machine's ranks one compiles, and the others load.
    """
    if operators and all(_is_loaded_from(build_folder() / name) for name in operators):
        yield
        return
    with sole_builder() as folder:
        for stale in folder.glob("*/lock"):
            stale.unlink(missing_ok=True)
        to_build = [folder / name for name in operators if not _is_loaded_from(folder / name)]
        missing = [place.name for place in to_build if not _library_in(place).is_file()]
        if missing:
            print(f"compiling DeepSpeed's {', '.join(missing)} (once; about a minute) in {folder}", flush=True)
        yield
        for place in to_build:
            if _library_in(place).is_file():
                (place / STAMP_NAME).write_text(_made_with())


def check_adam(kernel: AdamKernel, offload: bool) -> None:
    """Raises UserError where DeepSpeed's operator is asked for and cannot be compiled: before data are prepared."""
    operator = "cpu_adam" if offload else "fused_adam"
    if kernel == "deepspeed" and (why := why_not_compiled(operator)):
        raise UserError(_refusal(operator, why))


def load_adam(operator: str, kernel: AdamKernel) -> None:
    """Makes the operator of an optimizer, `fused_adam` or `cpu_adam`, ready: compiled, or torch's in its place.

    Raises UserError where DeepSpeed's is asked for, or the patch is off, and it cannot be compiled.
    """
    why = f"--adam.kernel {kernel}" if kernel == "torch" else why_not_compiled(operator) or _compile(operator)
    if why and (kernel == "deepspeed" or not use_torchs(operator, why)):
        raise UserError(_refusal(operator, why))


def _refusal(operator: str, why: str) -> str:
    return f"DeepSpeed's {operator} cannot be compiled: {why} Or leave out --adam.kernel: torch's AdamW is as exact."


def why_not_compiled(operator: str) -> str:
    """What is missing to compile an operator of DeepSpeed, and the remedy; empty where nothing is, or it is there."""
    from deepspeed.git_version_info import installed_ops

    if installed_ops.get(operator) or _is_built(build_folder() / operator):
        return ""
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler}): install g++, or set CXX."
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are missing: install python3-dev."
    return _why_not_for_cuda(operator) if torch.cuda.is_available() else ""


def _why_not_for_cuda(operator: str) -> str:
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException, assert_no_cuda_mismatch

    cuda = torch.version.cuda
    try:
        assert_no_cuda_mismatch(operator)
    except MissingCUDAException:
        return f"there is no nvcc: install the CUDA {cuda} toolkit and set CUDA_HOME."
    except CUDAMismatchException:
        return f"nvcc is not of CUDA {cuda}, as torch is: install that toolkit and set CUDA_HOME."
    return ""


def _compile(operator: str) -> str:
    """Compiles and loads; the reason where that fails."""
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    use_deepspeeds(operator)
    builder = {"fused_adam": FusedAdamBuilder, "cpu_adam": CPUAdamBuilder}[operator]()
    flags = builder.cxx_args
    # debug symbols change no instruction, and take a third of the compiler's time
    builder.cxx_args = lambda: [flag for flag in flags() if flag != "-g"]
    try:
        with nullcontext() if installed_ops.get(operator) else sole_compiler(operator):
            builder.load(verbose=False)
    except NoBuildFolder as error:
        return str(error)
    except Exception as error:  # ninja's, the compiler's and torch's errors have no common type
        return f"the compiler failed ({(str(error).strip() or repr(error)).splitlines()[-1][:200]})."
    return _why_not_on_this_gpu() if operator == "fused_adam" and installed_ops.get(operator) else ""


def _why_not_on_this_gpu() -> str:
    """An image's operators are built for a list of GPUs, and one that is not among them is told at the first update."""
    from deepspeed.ops.adam import FusedAdam

    if not torch.cuda.is_available():
        return ""
    weight = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()))
    weight.grad = torch.zeros_like(weight)
    try:
        FusedAdam([weight]).step()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"it was built for other GPUs ({first_line_of(error)})."
    return ""


def _is_loaded_from(place: Path) -> bool:
    """Loads an operator from its folder if it was built with these very versions for this processor and GPU."""
    return _is_built(place) and load_built(place.name, _library_in(place))


def _is_built(place: Path) -> bool:
    library, stamp = _library_in(place), place / STAMP_NAME
    return library.is_file() and stamp.is_file() and stamp.read_text() == _made_with()


def _library_in(place: Path) -> Path:
    return place / f"{place.name}.so"


def _made_with() -> str:
    import deepspeed

    return f"DeepSpeed {deepspeed.__version__}, {builds_are_for()}"
