"""The export of the trained model, tried before the first step: what would fail at the end fails now."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

from openrlhf.atomic_file import write_flushed
from openrlhf.checkpoint.export import DEFAULT_MAX_SHARD_BYTES
from openrlhf.checkpoint.model_settings import notes_of_export, save_settings
from openrlhf.checkpoint.store import SPACE_FACTOR
from openrlhf.engine.parameters import model_dtype, whole_numel, whole_shape
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_objects, rank_in

_FOLDER_NAME = ".trying-export"


def try_export(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    group: ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    is_merged: bool = False,
) -> list[str]:
    """Writes on rank 0 all but the weights, asks for their names and for the space that they take. All ranks call.

    Args: is_merged: the base with the adapter merged into it is written too.

    Returns: what the export will mend, in words, on rank 0.
    Raises UserError on every rank where the export could not succeed.
    """
    problem, notes = None, []
    if rank_in(group) == 0:
        try:
            _try(model, tokenizer, Path(folder), max_shard_bytes, is_merged)
            notes = notes_of_export(model, tokenizer)
        except Exception as error:  # of any kind: it would be raised at the end
            problem = f"{type(error).__name__}: {error}"
    if problem := gather_objects(problem, group)[0]:
        raise UserError(
            f"The trained model could not be exported to {folder}: {problem}. Nothing is trained; mend this first, or "
            "give another --ckpt.output_dir."
        )
    return notes


def _try(model: Any, tokenizer: Any, folder: Path, max_shard_bytes: int, is_merged: bool) -> None:
    trial = folder / _FOLDER_NAME
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir(parents=True)
    try:
        write_flushed(trial / "written", "so")
        save_settings(model, tokenizer, trial)
        if not hasattr(model, "peft_config"):
            _try_names(model)
        merged_bytes = _bytes_of(model, model.parameters()) if is_merged else 0
        _check_file_limit(model, max_shard_bytes, merged_bytes)
        needed = (exported_bytes(model) + merged_bytes) * SPACE_FACTOR
        free = shutil.disk_usage(folder).free
        if free < needed:
            needed_gib = math.ceil(100 * needed / 2**30) / 100  # a small model does not need nothing
            raise OSError(f"it needs about {needed_gib:.2f} GiB, {free / 2**30:.2f} GiB are free")
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _check_file_limit(model: Any, max_shard_bytes: int, merged_bytes: int) -> None:
    """Raises OSError where the system lets no file of this process grow as large as a file of weights."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    is_cut = not hasattr(model, "peft_config")  # an adapter is one file
    exported = min(exported_bytes(model), max_shard_bytes) if is_cut else exported_bytes(model)
    largest = max(exported, min(merged_bytes, max_shard_bytes))
    if limit != resource.RLIM_INFINITY and limit < largest:
        raise OSError(
            f"a file of weights may take {largest:,} bytes, and the limit of this process is {limit:,}: `ulimit -f "
            "unlimited` lifts it, and a smaller --ckpt.export_shard_size cuts all but adapters"
        )


def exported_bytes(model: Any) -> int:
    """Bytes of the weights that are exported: all of them, or the adapter's alone."""
    return _bytes_of(model, (p for p in model.parameters() if p.requires_grad or not hasattr(model, "peft_config")))


def _bytes_of(model: Any, parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(map(whole_numel, parameters)) * model_dtype(model).itemsize


def _try_names(model: Any) -> None:
    """The names in the model's files, asked for without their values."""
    from transformers.core_model_loading import revert_weight_conversion

    weights = {name: torch.empty(whole_shape(p), dtype=p.dtype, device="meta") for name, p in model.named_parameters()}
    revert_weight_conversion(model, weights)
