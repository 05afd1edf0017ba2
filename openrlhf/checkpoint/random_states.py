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
    """States of torch (CPU and the current CUDA device), numpy and Python: tensors, and what is not a tensor."""
    numpy_name, numpy_keys, numpy_position, numpy_has_gauss, numpy_gauss = numpy.random.get_state()
    python_version, python_words, python_gauss = random.getstate()
    tensors = {
        "torch_cpu": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_keys.astype("int64")),
        "python": torch.tensor(python_words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        tensors["torch_cuda"] = torch.cuda.get_rng_state()
    rest = {
        "numpy": json.dumps([numpy_name, int(numpy_position), int(numpy_has_gauss), float(numpy_gauss)]),
        "python": json.dumps([python_version, python_gauss]),
    }
    return tensors, rest


def restore_random_states(states: RandomStates) -> None:
    """Inverse of `capture_random_states`. A CUDA state is left alone where there is no CUDA."""
    tensors, rest = states
    numpy_name, *numpy_rest = json.loads(rest["numpy"])
    python_version, python_gauss = json.loads(rest["python"])
    torch.set_rng_state(tensors["torch_cpu"])
    numpy.random.set_state((numpy_name, tensors["numpy"].numpy().astype("uint32"), *numpy_rest))
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
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())
