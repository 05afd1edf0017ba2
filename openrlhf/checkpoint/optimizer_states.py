"""Master weights and optimizer state: to a file of each rank, and back on any number of ranks and ZeRO stage.

A rank's file holds one flat tensor for each fragment and kind (`master`, `exp_avg`, …), named
`<kind>|<parameter>`. Its header says where each fragment starts in its parameter and how many steps each parameter
has made. Nothing in it depends on the layout that wrote it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openrlhf.checkpoint.host_buffer import HostBuffer
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

StateByHost = dict[Tensor, dict[str, Any]]
"""The `state` of a torch optimizer, by the tensor that it optimizes."""


@dataclass
class OptimizerStates:
    """A rank's own copy of its fragments, on the CPU.

    tensor_parallel_rank: the rank whose shards of the parameters these are.
    tensors: by `<kind>|<parameter>`, each `(numel,)`.
    starts: index in the flattened parameter of the first element of each tensor, by the same key.
    shapes, num_steps: by parameter: its whole shape; the updates it has had.
    """

    tensor_parallel_rank: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_steps: dict[str, float] = field(default_factory=dict)

    def header(self) -> dict[str, str]:
        """All but the tensors, for a safetensors header."""
        return {
            "tensor_parallel_rank": str(self.tensor_parallel_rank),
            "starts": json.dumps(self.starts),
            "shapes": json.dumps(self.shapes),
            "steps": json.dumps(self.num_steps),
        }


def copy_optimizer_states(engine: Any, buffer: HostBuffer) -> OptimizerStates:
    """A copy, in `buffer`, of all that this rank has to save; training may go on while it is written. No collective."""
    buffer.reset(size_bytes_to_save(engine) + _PADDING_BYTES)
    states, steps = OptimizerStates(tensor_parallel_rank(engine)), StepCounts(engine)
    for fragment, tensors in _to_save(engine):
        name = fragment.name
        states.shapes[name] = fragment.shape
        for kind, tensor in tensors.items():
            states.starts[f"{kind}|{name}"] = fragment.start
            states.tensors[f"{kind}|{name}"] = buffer.copy_of(fragment.view_of(tensor))
        num_steps = steps.of(fragment.host)
        if num_steps is not None:
            states.num_steps[name] = num_steps
    return states


def size_bytes_to_save(engine: Any) -> int:
    """The bytes that `copy_optimizer_states` will copy on this rank."""
    return sum(
        fragment.numel * tensor.element_size() for fragment, tensors in _to_save(engine) for tensor in tensors.values()
    )


def problem_of_state(engine: Any) -> str | None:
    """Why no checkpoint can hold what the optimizer keeps on this rank; None where it can, and before any update."""
    try:
        size_bytes_to_save(engine)
    except UserError as error:
        return str(error)
    return None


def _to_save(engine: Any) -> Iterator[tuple[Fragment, dict[str, Tensor]]]:
    """The fragments that this rank saves, with their tensors by kind."""
    state, (rank, num_ranks) = base_optimizer(engine).state, data_rank_and_size(engine)
    for index, fragment in enumerate(local_fragments(engine)):
        # Under ZeRO 0 all ranks hold the same: they take turns, and each writes its part of the whole.
        if not fragment.is_replicated or index % num_ranks == rank:
            yield fragment, _tensors_of(fragment, state)


@torch.no_grad()
def load_optimizer_states(engine: Any, files: Iterable[Path], is_same_optimizer: bool = True) -> None:
    """Fill this rank's fragments from the files of all ranks that saved, then bring the model up to them.

    Another optimizer begins anew on the master weights. Collective. Raises UserError where the files lack a parameter
    of this model, or hold it in another shape.
    """
    # A fragment is a region of a flattened parameter, and it means the same in every layout. So loading in another
    # layout is one lookup for each fragment that this rank owns now: which saved pieces of that parameter overlap it.
    saved = SavedFragments(files, tensor_parallel_rank(engine))
    steps = StepCounts(engine)
    fragments = local_fragments(engine)
    own_kinds = {(fragment.name, fragment.own_kind) for fragment in fragments}
    for fragment in fragments:
        saved.check_shape(fragment)
        for kind in saved.kinds_of(fragment.name) if is_same_optimizer else [MASTER]:
            # Muon's momentum of a parameter may have a fragment of its own (`own_kind`), beside the one of its master
            # weights: each kind is loaded into the fragment that it belongs to, and only there.
            is_of_own_fragment = (fragment.name, kind) in own_kinds
            if kind == fragment.own_kind or (fragment.own_kind is None and not is_of_own_fragment):
                host = _host_for(kind, fragment, saved, steps.state)
                fragment.view_of(host).copy_(saved.read(kind, fragment))
    steps.set(fragments, saved.num_steps if is_same_optimizer else {})
    spread_master_weights(engine)


class SavedFragments:
    """All fragments of a checkpoint, whatever layout wrote them; element ranges are read on demand.

    Attributes:
        num_steps: updates that each parameter has had, by name.
    """

    def __init__(self, files: Iterable[Path], tensor_parallel_rank: int = 0):
        from safetensors import safe_open

        self.num_steps: dict[str, float] = {}
        self._shapes: dict[str, list[int]] = {}
        self._pieces: dict[str, dict[str, list[tuple[int, Any]]]] = {}  # by parameter and kind: start, lazy tensor
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
                kind, _, name = key.partition("|")
                pieces = self._pieces.setdefault(name, {}).setdefault(kind, [])
                pieces.append((starts[key], file.get_slice(key)))

    def kinds_of(self, name: str) -> list[str]:
        """Kinds that were saved of a parameter: `master` and the names of its optimizer state."""
        return list(self._pieces[name])

    def dtype_of(self, kind: str, name: str) -> torch.dtype:
        """As saved."""
        _, piece = self._pieces[name][kind][0]
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
        # Example: a parameter of 10 elements, saved by two ranks as [0, 5) and [5, 10), wanted by the second of three
        # ranks as [4, 8). Going through the pieces in order, `position` moves 4 → 5 → 8: from each piece comes the
        # stretch between `position` and the end of the piece or of the fragment. Only those bytes are read.
        values = torch.empty(fragment.numel, dtype=self.dtype_of(kind, fragment.name))
        position, end = fragment.start, fragment.start + fragment.numel
        for piece_start, piece in sorted(self._pieces[fragment.name][kind], key=lambda pair: pair[0]):
            piece_end = min(end, piece_start + piece.get_shape()[0])
            # Pieces may repeat elements (each rank saves Muon's momentum of whole matrices): those behind `position`
            # are passed over.
            if piece_start <= position < piece_end:
                part = piece[position - piece_start : piece_end - piece_start]
                values[position - fragment.start : piece_end - fragment.start] = part
                position = piece_end
        assert position == end, f"{kind} of {fragment.name}: elements from {position} on were not saved"
        return values


def _tensors_of(fragment: Fragment, state: StateByHost) -> dict[str, Tensor]:
    """By kind, the tensors that hold the fragment's elements: the host and the optimizer's state of its shape.

    For a fragment with `own_kind` it is the one tensor of that kind, once there is one. Raises UserError where there is
    a state of another shape, or one that is no tensor.
    """
    of_host = state.get(fragment.host, {})
    if fragment.own_kind is not None:
        return {kind: value for kind, value in of_host.items() if kind == fragment.own_kind}
    tensors = {MASTER: fragment.host}
    for kind, value in of_host.items():
        fits = torch.is_tensor(value) and value.shape == fragment.host.shape
        if kind == STEP or (kind == MUON_MOMENTUM and not fits):
            continue
        if not fits:
            raise UserError(
                f"no checkpoint can hold the optimizer's state: {kind!r} of {fragment.name} is not shaped like its "
                "weights. Take an optimizer whose state is (strategy.create_optimizer makes one), or write no training "
                "checkpoints (disable_ds_ckpt); strategy.save_model exports the model all the same."
            )
        tensors[kind] = value
    return tensors


def _host_for(kind: str, fragment: Fragment, saved: SavedFragments, state: StateByHost) -> Tensor:
    """The tensor to load into; an optimizer that has made no step yet gets its state made here."""
    if kind == MASTER:
        return fragment.host
    of_host = state.setdefault(fragment.host, {})
    if kind not in of_host:
        shape = (fragment.own_numel,) if fragment.own_kind else fragment.host.shape
        dtype = saved.dtype_of(kind, fragment.name)
        of_host[kind] = torch.zeros(shape, dtype=dtype, device=fragment.host.device)
    return of_host[kind]
