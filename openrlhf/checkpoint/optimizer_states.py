"""Master weights and optimizer state: to a file of each rank, and back on any number of ranks and ZeRO stage.

A rank's file holds one flat tensor for each fragment and kind (`master`, `exp_avg`, …), named
`<kind>|<parameter>`, and in its header where each fragment starts and how many steps each parameter has made.
Loading looks up, for every stretch that a rank owns now, the stretches in all files that overlap it, and
reads only those elements.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf.checkpoint.copy_room import CopyRoom
from openrlhf.engine.engine_state import data_rank_and_size, tensor_parallel_rank
from openrlhf.engine.fragments import (
    MUON_MOMENTUM,
    STEP,
    Fragment,
    StepCounts,
    base_optimizer,
    local_fragments,
    spread_master_weights,
)
from openrlhf.errors import UserError

MASTER = "master"
_PADDING_BYTES = 2**20  # between the copies


@dataclass
class OptimizerStates:
    """A rank's own copy of its fragments, on the CPU.

    tensors: by `<kind>|<parameter>`, each `(numel,)`; starts: the first element of each, by the same key;
    num_steps: updates each parameter has had; tensor_parallel_rank: whose shards of the parameters these are.
    """

    tensor_parallel_rank: int = 0

    tensors: dict[str, Tensor] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_steps: dict[str, float] = field(default_factory=dict)

    def header(self) -> dict[str, str]:
        """What is not a tensor, for a safetensors header."""
        return {
            "tensor_parallel_rank": str(self.tensor_parallel_rank),
            "starts": json.dumps(self.starts),
            "shapes": json.dumps(self.shapes),
            "steps": json.dumps(self.num_steps),
        }


def copy_optimizer_states(engine: Any, room: CopyRoom) -> OptimizerStates:
    """A true copy of what this rank has to save, in `room`; training may go on while it is written. No collective.

    What every rank has alike (ZeRO 0) is divided among the ranks.
    """
    room.clear(size_bytes_to_save(engine) + _PADDING_BYTES)
    states, steps = OptimizerStates(tensor_parallel_rank(engine)), StepCounts(engine)
    rank, num_ranks = data_rank_and_size(engine)
    for index, fragment in enumerate(local_fragments(engine)):
        if fragment.is_replicated and index % num_ranks != rank:
            continue
        name = fragment.name
        states.shapes[name] = fragment.shape
        for kind, tensor in _tensors_of(fragment, steps.state).items():
            states.starts[f"{kind}|{name}"] = fragment.start
            states.tensors[f"{kind}|{name}"] = room.copy_of(fragment.view_of(tensor))
        num_steps = steps.of(fragment.host)
        if num_steps is not None:
            states.num_steps[name] = num_steps
    return states


def size_bytes_to_save(engine: Any) -> int:
    """About what `copy_optimizer_states` will copy on this rank, in bytes."""
    state, (_, num_ranks) = base_optimizer(engine).state, data_rank_and_size(engine)
    total_bytes = 0
    for fragment in local_fragments(engine):
        tensors = _tensors_of(fragment, state).values()
        size_bytes = fragment.numel * sum(tensor.element_size() for tensor in tensors)
        total_bytes += size_bytes // num_ranks if fragment.is_replicated else size_bytes
    return total_bytes


@torch.no_grad()
def load_optimizer_states(engine: Any, files: Iterable[Path]) -> None:
    """Fill this rank's fragments from the files of all ranks that saved, then bring the model up to them.

    Collective. Raises UserError where the files lack a parameter of this model, or hold it in another shape.
    """
    saved = SavedFragments(files, tensor_parallel_rank(engine))
    steps = StepCounts(engine)
    fragments = local_fragments(engine)
    own_kinds = {(fragment.name, fragment.own_kind) for fragment in fragments}
    for fragment in fragments:
        saved.check_shape(fragment)
        for kind in _kinds_in(fragment, saved.kinds_of(fragment.name), own_kinds):
            host = _host_for(kind, fragment, saved, steps.state)
            fragment.view_of(host).copy_(saved.read(kind, fragment))
    steps.set(fragments, saved.num_steps)
    spread_master_weights(engine)


class SavedFragments:
    """All fragments of a checkpoint, whatever layout wrote them; element ranges are read on demand."""

    def __init__(self, files: Iterable[Path], tensor_parallel_rank: int = 0):
        from safetensors import safe_open

        self.num_steps: dict[str, float] = {}
        self._shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, list[tuple[int, Any]]] = {}  # by `<kind>|<parameter>`: start, lazy tensor
        self._open_files = []
        for path in sorted(files):
            file = safe_open(path, framework="pt")
            header = file.metadata()
            if int(header["tensor_parallel_rank"]) != tensor_parallel_rank:
                continue
            self._open_files.append(file)
            starts = json.loads(header["starts"])
            self._shapes.update(json.loads(header["shapes"]))
            self.num_steps.update(json.loads(header["steps"]))
            for key in list(file.keys()):
                self._pieces.setdefault(key, []).append((starts[key], file.get_slice(key)))
        self._kinds: dict[str, list[str]] = {}
        for key in self._pieces:
            kind, _, name = key.partition("|")
            self._kinds.setdefault(name, []).append(kind)

    def kinds_of(self, name: str) -> list[str]:
        """What was saved of a parameter: `master` and the names of its optimizer state."""
        return self._kinds[name]

    def dtype_of(self, kind: str, name: str) -> torch.dtype:
        """As saved."""
        _, piece = self._pieces[f"{kind}|{name}"][0]
        return piece[0:0].dtype

    def check_shape(self, fragment: Fragment) -> None:
        """Raise UserError if the fragment's parameter was not saved, or has another shape."""
        shape = self._shapes.get(fragment.name)
        if shape is None:
            raise UserError(
                f"The checkpoint holds no parameter {fragment.name}: it is of another model, or was saved with "
                "other parameters trained (--ds.lora.*). Load that model."
            )
        if tuple(shape) != fragment.shape:
            raise UserError(
                f"Parameter {fragment.name} has shape {tuple(shape)} in the checkpoint, "
                f"{fragment.shape} in the model. Load the model it was saved with."
            )

    def read(self, kind: str, fragment: Fragment) -> Tensor:
        """The fragment's elements of that kind, `(numel,)`, put together from the pieces that hold them."""
        values = torch.empty(fragment.numel, dtype=self.dtype_of(kind, fragment.name))
        position, end = fragment.start, fragment.start + fragment.numel
        for piece_start, piece in sorted(self._pieces[f"{kind}|{fragment.name}"], key=lambda pair: pair[0]):
            piece_end = min(end, piece_start + piece.get_shape()[0])
            if piece_start <= position < piece_end:
                part = piece[position - piece_start : piece_end - piece_start]
                values[position - fragment.start : piece_end - fragment.start] = part
                position = piece_end
        assert position == end, f"{kind} of {fragment.name}: elements from {position} on were not saved"
        return values


def _tensors_of(fragment: Fragment, state: dict[Tensor, dict[str, Any]]) -> dict[str, Tensor]:
    """The host and everything in the optimizer's state that is shaped like it; or what lies in its own tensor."""
    of_host = state.get(fragment.host, {})
    if fragment.own_kind is not None:
        return {fragment.own_kind: of_host[fragment.own_kind]} if fragment.own_kind in of_host else {}
    tensors = {MASTER: fragment.host}
    for kind, value in of_host.items():
        if kind == STEP or (kind == MUON_MOMENTUM and value.shape != fragment.host.shape):
            continue
        fits = torch.is_tensor(value) and value.shape == fragment.host.shape
        assert fits, f"optimizer state {kind!r} of {fragment.name} is not shaped like its weights; it cannot be saved"
        tensors[kind] = value
    return tensors


def _host_for(kind: str, fragment: Fragment, saved: SavedFragments, state: dict[Tensor, dict[str, Any]]) -> Tensor:
    """The tensor to load into; an optimizer that has made no step yet gets its state made here."""
    if kind == MASTER:
        return fragment.host
    of_host = state.setdefault(fragment.host, {})
    if kind not in of_host:
        shape = (fragment.own_numel,) if fragment.own_kind else fragment.host.shape
        dtype = saved.dtype_of(kind, fragment.name)
        of_host[kind] = torch.zeros(shape, dtype=dtype, device=fragment.host.device)
    return of_host[kind]


def _kinds_in(fragment: Fragment, saved: list[str], own_kinds: set[tuple[str, str | None]]) -> list[str]:
    """Which of the saved kinds belong into this fragment."""
    if fragment.own_kind is not None:
        return [kind for kind in saved if kind == fragment.own_kind]
    return [kind for kind in saved if (fragment.name, kind) not in own_kinds]
