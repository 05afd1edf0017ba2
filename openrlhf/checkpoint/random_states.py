"""The random generators of one rank, to a safetensors file and back."""

import json
import random
from pathlib import Path

import numpy
import torch

from openrlhf.checkpoint.manifest import FileRecord
from openrlhf.checkpoint.tensor_file import write_tensors

RandomStates = tuple[dict[str, torch.Tensor], dict[str, str]]


def capture_random_states() -> RandomStates:
    """States of torch (CPU and the current CUDA device), numpy and Python: tensors, and what is none."""
    numpy_state = numpy.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is meant
    numpy_keys = numpy_state["state"]["key"]
    python_version, python_words, python_gauss = random.getstate()
    tensors = {
        "torch_cpu": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_keys.astype("int64")),
        "python": torch.tensor(python_words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    rest = {
        "numpy": json.dumps([numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]]),
        "python": json.dumps([python_version, python_gauss]),
    }
    return tensors, rest


def restore_random_states(states: RandomStates) -> None:
    """Inverse of `capture_random_states`. A CUDA state is left alone where there is no CUDA."""
    tensors, rest = states
    python_version, python_gauss = json.loads(rest["python"])
    torch.set_rng_state(tensors["torch_cpu"])
    numpy_keys = tensors["numpy"].numpy().astype("uint32")
    numpy.random.set_state(("MT19937", numpy_keys, *json.loads(rest["numpy"])))  # noqa: NPY002
    random.setstate((python_version, tuple(tensors["python"].tolist()), python_gauss))
    if "torch_cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["torch_cuda"])


def write_random_states(path: Path, states: RandomStates) -> FileRecord:
    """Write and flush."""
    return write_tensors(path, *states)


def read_random_states(path: Path) -> RandomStates:
    """Inverse of `write_random_states`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata())
