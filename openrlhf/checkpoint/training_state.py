"""All that a run is made of, to a folder and back: weights, optimizer, schedule, counters, randomness.

Each rank writes two files, rank 0 three more:

    optim_states_rank<r>.safetensors   master weights and optimizer state of the rank's share
    random_rank<r>.safetensors         its random generators
    buffers.safetensors                the model's persistent buffers
    training_state.json                counters of the engine, schedule, loss scale, the caller's own state
    progress.json                      TrainingProgress

Parameters that are not trained are not here: they come from the model that the run started from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from openrlhf.checkpoint.copy_room import CopyRoom
from openrlhf.checkpoint.durable import write_json, write_text
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.manifest import FileRecord, record_of
from openrlhf.checkpoint.optimizer_states import OptimizerStates, copy_optimizer_states, load_optimizer_states
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.random_states import (
    RandomStates,
    capture_random_states,
    read_random_states,
    restore_random_states,
    write_random_states,
)
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.engine.engine_state import (
    counters_of,
    learning_rates_of,
    loss_scale_of,
    set_counters,
    set_learning_rates,
    set_loss_scale,
    tensor_parallel_size,
    zero_stage_of,
)
from openrlhf.errors import UserError

_STATE_NAME, _PROGRESS_NAME, _BUFFERS_NAME = "training_state.json", "progress.json", "buffers.safetensors"


@dataclass
class TrainingState:
    """A rank's copy of a run's state, to be written while training goes on."""

    optimizer_states: OptimizerStates
    random_states: RandomStates
    rest: "RestOfState | None"  # rank 0 alone


@dataclass
class RestOfState:
    """What rank 0 writes for all."""

    buffers: dict[str, Tensor]
    values: dict[str, Any]
    progress: TrainingProgress


@dataclass(frozen=True)
class LoadedState:
    """What a checkpoint gives back to the trainer; the engine and the random generators are set already.

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
    room: CopyRoom,
    client_state: dict[str, Any] | None = None,
    scheduler: Any = None,
) -> TrainingState:
    """Copy to the CPU what this rank will write. No collective.

    Args:
        room: for the copies; the last ones in it are given up.
        client_state: the caller's own, of JSON values.
        scheduler: if the engine does not hold it.
    """
    rest = None
    if rank == 0:
        values = _values_of(engine, num_ranks, scheduler or engine.lr_scheduler, client_state or {})
        rest = RestOfState(_copy_buffers(engine.module), values, progress)
    return TrainingState(copy_optimizer_states(engine, room), capture_random_states(), rest)


def write_training_state(state: TrainingState, folder: Path, rank: int) -> list[FileRecord]:
    """Write and flush this rank's files; needs neither the engine nor other ranks."""
    records = [
        write_tensors(
            folder / _optimizer_file_name(rank),
            state.optimizer_states.tensors,
            state.optimizer_states.header(),
            at_half=lambda: fault_point("save.half_of_tensors_written"),
            before_flush=lambda: fault_point("save.tensors_written"),
        )
    ]
    fault_point("save.tensors_flushed")
    records.append(write_random_states(folder / _random_file_name(rank), state.random_states))
    fault_point("save.random_states_written")
    if state.rest is not None:
        records += _write_rest(state.rest, folder)
    return records


def load_training_state(engine: Any, folder: Path, rank: int, num_ranks: int, scheduler: Any = None) -> LoadedState:
    """Set engine, schedule and random generators to a checkpoint, whatever ranks and ZeRO stage wrote it.

    Collective. Raises UserError where the model is another one, or tensor parallelism has another size.
    """
    values = json.loads((folder / _STATE_NAME).read_text(encoding="utf-8"))
    _check_tensor_parallel_size(values["tensor_parallel_size"], tensor_parallel_size(engine))
    load_optimizer_states(engine, folder.glob(_optimizer_file_name("*")))
    _load_buffers(engine.module, folder / _BUFFERS_NAME)
    _restore_values(engine, values, scheduler or engine.lr_scheduler)
    is_same_layout = values["num_ranks"] == num_ranks
    if is_same_layout:
        restore_random_states(read_random_states(folder / _random_file_name(rank)))
    return LoadedState(folder, read_progress(folder), values["client_state"], is_same_layout)


def read_progress(folder: Path) -> TrainingProgress:
    """How far the run had come at a checkpoint, without an engine."""
    return TrainingProgress.from_json((folder / _PROGRESS_NAME).read_text(encoding="utf-8"))


def _optimizer_file_name(rank: int | str) -> str:
    return (
        f"optim_states_rank{rank:05d}.safetensors" if isinstance(rank, int) else f"optim_states_rank{rank}.safetensors"
    )


def _random_file_name(rank: int) -> str:
    return f"random_rank{rank:05d}.safetensors"


def _write_rest(rest: RestOfState, folder: Path) -> list[FileRecord]:
    write_json(folder / _STATE_NAME, rest.values)
    write_text(folder / _PROGRESS_NAME, rest.progress.to_json())
    return [
        record_of(folder / _STATE_NAME, folder),
        record_of(folder / _PROGRESS_NAME, folder),
        write_tensors(folder / _BUFFERS_NAME, rest.buffers),
    ]


def _values_of(engine: Any, num_ranks: int, scheduler: Any, client_state: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_ranks": num_ranks,
        "zero_stage": zero_stage_of(engine),
        "tensor_parallel_size": tensor_parallel_size(engine),
        "counters": counters_of(engine),
        "loss_scale": loss_scale_of(engine),
        "scheduler": _json_part(scheduler.state_dict()) if scheduler else {},
        "learning_rates": learning_rates_of(engine),
        "client_state": client_state,
    }


def _restore_values(engine: Any, values: dict[str, Any], scheduler: Any) -> None:
    set_counters(engine, values["counters"])
    set_loss_scale(engine, values["loss_scale"])
    if scheduler and values["scheduler"]:
        scheduler.load_state_dict({**scheduler.state_dict(), **values["scheduler"]})
        set_learning_rates(engine, values["learning_rates"])


def _json_part(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that JSON holds exactly; a schedule's functions are made anew by whoever resumes."""
    return {name: value for name, value in values.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _copy_buffers(module: Any) -> dict[str, Tensor]:
    persistent = module.state_dict(keep_vars=True).keys()
    return {name: buffer.detach().to("cpu", copy=True) for name, buffer in module.named_buffers() if name in persistent}


def _load_buffers(module: Any, path: Path) -> None:
    from safetensors.torch import load_file

    saved = load_file(path)
    for name, buffer in module.named_buffers():
        if name in saved:
            buffer.data.copy_(saved[name])


def _check_tensor_parallel_size(saved: int, now: int) -> None:
    if saved != now:
        raise UserError(
            f"The checkpoint was saved with --ds.tensor_parallel_size {saved}, this run has {now}. "
            f"Resume with {saved}, or start a new run from the exported model."
        )
