"""The whole state of a run, to a folder and back: weights, optimizer, schedule, counters, random generators.

Each rank writes two files, rank 0 three more:

    optim_states_rank<r>.safetensors   master weights and optimizer state of the rank's share
    random_rank<r>.safetensors         its random generators
    buffers.safetensors                the model's persistent buffers
    training_state.json                counters of the engine, schedule, loss scale, the caller's own state
    progress.json                      TrainingProgress

Parameters that are not trained are not here: they come from the model that the run started from.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from openrlhf.atomic_file import write_flushed
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.host_buffer import HostBuffer
from openrlhf.checkpoint.manifest import FileRecord, listed_files, record_of
from openrlhf.checkpoint.optimizer_states import OptimizerStates, copy_optimizer_states, load_optimizer_states
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.engine.engine_state import (
    counters_of,
    learning_rates_of,
    loss_scale_of,
    set_counters,
    set_learning_rates,
    set_loss_scale,
    tensor_parallel_size,
)
from openrlhf.errors import UserError

_OPTIMIZER_NAME, _RANDOM_NAME = "optim_states_rank{:05d}.safetensors", "random_rank{:05d}.safetensors"
_STATE_NAME, _PROGRESS_NAME, _BUFFERS_NAME = "training_state.json", "progress.json", "buffers.safetensors"

RandomStates = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors, and JSON for values that are not tensors; both by generator."""


@dataclass
class TrainingState:
    """A rank's copy of a run's state, to be written while training goes on."""

    optimizer_states: OptimizerStates
    random_states: RandomStates
    # The same on all ranks, and written by rank 0 alone; None and empty on the others.
    buffers: dict[str, Tensor] | None
    json_files: dict[str, str]  # name to content


@dataclass(frozen=True)
class LoadedState:
    """The part of a checkpoint for the trainer; the engine and the random generators are set already.

    `is_random_restored` is False on another number of ranks: their generators cannot go on where they were.
    """

    path: Path
    progress: TrainingProgress
    client_state: dict[str, Any]
    is_random_restored: bool


def copy_training_state(
    engine: Any,
    progress: TrainingProgress,
    rank: int,
    num_ranks: int,
    buffer: HostBuffer,
    client_state: dict[str, Any] | None = None,
    scheduler: Any = None,
) -> TrainingState:
    """Copy to the CPU all that this rank will write. No collective.

    Args:
        buffer: for the copies; those of the last save are discarded.
        client_state: the caller's own, of JSON values.
        scheduler: if the engine does not hold it.
    """
    buffers, json_files = None, {}
    if rank == 0:
        buffers = _copy_buffers(engine.module)
        values = _values_of(engine, num_ranks, scheduler or engine.lr_scheduler, client_state or {})
        values_text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        json_files = {_STATE_NAME: values_text, _PROGRESS_NAME: progress.to_json()}
    return TrainingState(copy_optimizer_states(engine, buffer), capture_random_states(), buffers, json_files)


def write_training_state(state: TrainingState, folder: Path, rank: int) -> list[FileRecord]:
    """Write and flush this rank's files; needs neither the engine nor other ranks."""
    records = [
        write_tensors(
            folder / _OPTIMIZER_NAME.format(rank),
            state.optimizer_states.tensors,
            state.optimizer_states.header(),
            at_half=lambda: fault_point("save.half_of_tensors_written"),
            before_flush=lambda: fault_point("save.tensors_written"),
        )
    ]
    fault_point("save.tensors_flushed")
    records.append(write_tensors(folder / _RANDOM_NAME.format(rank), *state.random_states))
    fault_point("save.random_states_written")
    for name, text in state.json_files.items():
        write_flushed(folder / name, text)
        records.append(record_of(folder / name, folder))
    if state.buffers is not None:
        records.append(write_tensors(folder / _BUFFERS_NAME, state.buffers))
    return records


def load_training_state(
    engine: Any, folder: Path, rank: int, num_ranks: int, scheduler: Any = None, is_same_optimizer: bool = True
) -> LoadedState:
    """Set engine, schedule and random generators to a checkpoint, whatever ranks and ZeRO stage wrote it.

    Another optimizer begins with no state but the weights, and with its own learning rates.

    Collective. Raises UserError where the model is another one, or tensor parallelism has another size.
    """
    values = json.loads((folder / _STATE_NAME).read_text(encoding="utf-8"))
    saved_size, size = values["tensor_parallel_size"], tensor_parallel_size(engine)
    if saved_size != size:
        raise UserError(
            f"The checkpoint was saved with --ds.tensor_parallel_size {saved_size}, this run has {size}. "
            f"Resume with {saved_size}, or start a new run from the exported model."
        )
    load_optimizer_states(engine, listed_files(folder, "optim_states_rank*.safetensors"), is_same_optimizer)
    _load_buffers(engine.module, folder / _BUFFERS_NAME)
    _restore_values(engine, values, scheduler or engine.lr_scheduler, is_same_optimizer)
    is_same_layout = values["num_ranks"] == num_ranks
    if is_same_layout:
        restore_random_states(read_random_states(folder / _RANDOM_NAME.format(rank)))
    return LoadedState(folder, read_progress(folder), values["client_state"], is_same_layout)


def read_progress(folder: Path) -> TrainingProgress:
    """The progress of the run at a checkpoint; needs no engine."""
    return TrainingProgress.from_json((folder / _PROGRESS_NAME).read_text(encoding="utf-8"))


# --- counters, schedule, loss scale ---


def _values_of(engine: Any, num_ranks: int, scheduler: Any, client_state: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_ranks": num_ranks,
        "tensor_parallel_size": tensor_parallel_size(engine),
        "counters": counters_of(engine),
        "loss_scale": loss_scale_of(engine),
        "scheduler": _json_part(scheduler.state_dict()) if scheduler else {},
        "learning_rates": learning_rates_of(engine),
        "client_state": client_state,
    }


def _restore_values(engine: Any, values: dict[str, Any], scheduler: Any, is_same_optimizer: bool) -> None:
    set_counters(engine, values["counters"])
    set_loss_scale(engine, values["loss_scale"])
    if not scheduler or not values["scheduler"]:
        return
    if is_same_optimizer and len(values["learning_rates"]) == len(learning_rates_of(engine)):
        scheduler.load_state_dict({**scheduler.state_dict(), **values["scheduler"]})
        set_learning_rates(engine, values["learning_rates"])
    else:  # the rates of other groups of parameters
        place = {name: value for name, value in values["scheduler"].items() if name not in ("base_lrs", "_last_lr")}
        scheduler.load_state_dict({**scheduler.state_dict(), **place})


def _json_part(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that JSON holds exactly; a schedule's functions are made anew by the run that resumes."""
    return {name: value for name, value in values.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


# --- buffers of the model ---


def _copy_buffers(module: torch.nn.Module) -> dict[str, Tensor]:
    persistent = module.state_dict(keep_vars=True).keys()
    return {name: buffer.detach().to("cpu", copy=True) for name, buffer in module.named_buffers() if name in persistent}


def _load_buffers(module: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    saved = load_file(path)
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.data.copy_(saved[name])


# --- random generators of one rank ---


def capture_random_states() -> RandomStates:
    """States of torch (CPU and the current CUDA device), numpy and Python."""
    numpy_state = numpy.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is meant
    python_version, python_words, python_gauss = random.getstate()
    tensors = {
        "torch_cpu": torch.get_rng_state(),
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype("int64")),
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


def read_random_states(path: Path) -> RandomStates:
    """From a file written by `write_tensors(path, *states)`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata())
