"""The trained model as a Hugging Face folder: written to a staging folder, read back, put in place file by file.

In place, `config.json` (of an adapter: `adapter_config.json`) is taken away first and comes back last, so an
export that was interrupted has none and nothing opens it as a model. `manifest.json` lists the model's files with
checksums, and names the run and the step that they are of. A model that another run has put there moves to
`earlier_run_<n>/`; other files in the folder are left alone.
"""

import copy
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.atomic_file import flush_to_disk
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.lease import confirm, owning_together
from openrlhf.checkpoint.manifest import (
    MANIFEST_NAME,
    FileRecord,
    is_of_run,
    listed_names,
    record_of,
    saved_identity,
    verify,
    write_manifest,
)
from openrlhf.checkpoint.model_settings import write_settings
from openrlhf.checkpoint.tensor_file import INDEX_NAME, ShardWriter, write_tensors
from openrlhf.config.disk import ADAPTER_FILE
from openrlhf.engine.parameters import by_block, whole_weights
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_problems, rank_in

DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
_STAGING_NAME = ".writing-export"
_MOVING_NAME = ".moving-earlier-run"  # one name: a start that follows a kill goes on with it
_CONFIG_NAME = "config.json"
_CONFIGS = _CONFIG_NAME, ADAPTER_FILE
_ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_OLD_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_model\.(safetensors|bin)"
)
logger = logging.getLogger(__name__)
_THIS_PROCESS = {"run_id": secrets.token_hex(8)}  # the identity of an export that no run stands behind


def export_model(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    group: ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    identity: dict[str, Any] | None = None,
) -> None:
    """Put `model` into `folder` so that `from_pretrained` opens it, in place of one that this run has put there.

    All ranks call.

    Args:
        model: transformers model, or peft model (then the adapter alone is saved); weights may be cut up by
        ZeRO-3.
        tokenizer: None writes no tokenizer files.
        group: gloo, of all ranks, on which they tell one another whether it went well; None: this rank alone.
        max_shard_bytes: rank 0 holds about so much, and one layer, of a model at a time.
        identity: of the run, kept in the manifest; `is_export_of` compares its `run_id` and `optimizer_step`.

    Raises UserError on every rank if rank 0 could not write; what was in the folder is then untouched, unless
    the last moves failed, and then the folder has no configuration and cannot be mistaken for a model.
    """
    if not str(folder).strip():
        raise UserError("The folder of the exported model is empty, which would be the working folder: give its name.")
    folder = Path(folder)
    staging = folder / _STAGING_NAME
    with owning_together([folder], group):
        if rank_in(group) == 0:
            shutil.rmtree(staging, ignore_errors=True)
        records = write_model(model, tokenizer, staging, group, max_shard_bytes)
        with _OnRank0(folder, group) as rank_0:
            rank_0.attempt(_list_files, staging, records, identity or _THIS_PROCESS)
            rank_0.attempt(confirm, folder)
            rank_0.attempt(_put_in_place, staging, folder)


def is_export_of(folder: Path | str, run_id: str | None, optimizer_step: int) -> bool:
    """True where the folder holds, whole by its checksums, the model of that run after that step."""
    folder = Path(folder)
    if not is_exported(folder) or not is_of_run(folder, run_id):
        return False
    return saved_identity(folder).get("optimizer_step") == optimizer_step and not verify(folder)


def is_exported(folder: Path | str) -> bool:
    """True where a whole model is in the folder: the configuration comes last."""
    return (Path(folder) / _CONFIG_NAME).is_file() or (Path(folder) / ADAPTER_FILE).is_file()


def write_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    group: ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> list[FileRecord]:
    """Write, flush and read back a model in a folder that nobody reads yet. All ranks call.

    Returns: on rank 0, the records of the files of weights.
    Raises UserError on every rank if rank 0 could not write.
    """
    records = write_weights(model, folder, group, max_shard_bytes)
    with _OnRank0(folder, group) as rank_0:
        rank_0.attempt(write_settings, model, tokenizer, folder)
    return records


def write_weights(
    model: Any, folder: Path, group: ProcessGroup | None = None, max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES
) -> list[FileRecord]:
    """The files of weights alone; see `write_model`."""
    with _OnRank0(folder, group) as rank_0:
        rank_0.attempt(folder.mkdir, parents=True, exist_ok=True)
        fault_point("export.begun")
        if hasattr(model, "peft_config"):
            return _write_adapter(model, folder, rank_0)
        return _write_full_model(model, folder, rank_0, max_shard_bytes)


def _list_files(folder: Path, records: list[FileRecord], identity: dict[str, Any]) -> None:
    known = {record.name for record in records}
    others = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in known)
    write_manifest(folder, [*records, *(record_of(path, folder) for path in others)], identity)


class _OnRank0:
    """Actions that rank 0 alone does, while all ranks gather weights for it.

    After one that fails, no other is done; but rank 0 goes on with the collectives, since the others are in them too.
    At the end of the block all ranks learn of the problem.
    """

    def __init__(self, folder: Path, group: ProcessGroup | None):
        self.is_here = rank_in(group) == 0
        self._folder, self._group = folder, group
        self._problem: str | None = None

    def attempt(self, action: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not self.is_here or self._problem is not None:
            return
        try:
            action(*args, **kwargs)
        except Exception as error:  # of any kind: the other ranks wait to hear of it
            self._problem = f"{type(error).__name__}: {error}"

    def __enter__(self) -> "_OnRank0":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems = gather_problems(self._problem, self._group) if kind is None else ()
        if problems:
            raise UserError(f"The model could not be exported to {self._folder}: {'; '.join(problems)}.")


# --- weights ---


def _write_full_model(model: Any, folder: Path, rank_0: _OnRank0, max_shard_bytes: int) -> list[FileRecord]:
    shards = ShardWriter(folder, max_shard_bytes)
    for block in by_block(whole_weights(model, rank_0.is_here)):
        rank_0.attempt(_add_block, model, shards, block)
    rank_0.attempt(shards.finish)
    rank_0.attempt(fault_point, "export.written")
    return shards.records


def _add_block(model: Any, shards: ShardWriter, block: dict[str, Any]) -> None:
    """Hand a layer's weights on in the names and form of the model's files (experts one by one)."""
    from transformers.core_model_loading import revert_weight_conversion

    for name, value in revert_weight_conversion(model, block).items():
        shards.add(name, value)


def _write_adapter(model: Any, folder: Path, rank_0: _OnRank0) -> list[FileRecord]:
    """The weights and the configuration that peft saves of an adapter; the base model is not touched."""
    from peft import get_peft_model_state_dict

    def is_of_adapter(name: str, parameter: Any) -> bool:
        return parameter.requires_grad or model.base_model.prefix in name or "modules_to_save" in name

    gathered = dict(whole_weights(model, rank_0.is_here, only=is_of_adapter))
    records = []

    def write() -> None:
        weights = get_peft_model_state_dict(model, state_dict=gathered, save_embedding_layers=False)
        empty = [name for name, value in weights.items() if value.numel() == 0]
        if empty or not weights:
            raise ValueError(f"adapter weights without elements: {empty or 'all'}")
        records.append(write_tensors(folder / _ADAPTER_WEIGHTS_NAME, weights, {"format": "pt"}))
        config = copy.deepcopy(model.peft_config[model.active_adapter])
        config.inference_mode = True
        config.save_pretrained(folder)

    rank_0.attempt(write)
    return records


# --- in place ---


def _put_in_place(staging: Path, folder: Path) -> None:
    """Move the new files over the old, the configuration last; files that are no part of a model stay."""
    new = {path.name for path in staging.iterdir()}
    last = ADAPTER_FILE if ADAPTER_FILE in new else _CONFIG_NAME
    own = set(listed_names(folder)) if is_of_run(folder, saved_identity(staging)["run_id"]) else set()
    moving = folder / _MOVING_NAME
    # Without a configuration nothing opens the folder, so nobody can meet old weights beside new ones.
    for index, name in enumerate(_names_of_model(folder, new)):
        if name not in own or (folder / name).is_dir():
            moving.mkdir(exist_ok=True)
            os.replace(folder / name, moving / name)
        elif name in _CONFIGS or name not in new:
            (folder / name).unlink()
        if index == len(_CONFIGS):
            flush_to_disk(folder)
    if moving.exists():
        earlier = next(path for n in count(1) if not (path := folder / f"earlier_run_{n}").exists())
        os.replace(moving, earlier)
        logger.warning("%s held a model of another run or file of its names: it is in %s.", folder, earlier)
    fault_point("export.old_config_removed")
    # The manifest comes first: by it the next start knows, after a kill, which files are this run's own.
    for index, name in enumerate(sorted(new - {last}, key=lambda name: (name != MANIFEST_NAME, name))):
        os.replace(staging / name, folder / name)
        if index == 0:
            fault_point("export.half_in_place")
    flush_to_disk(folder)
    fault_point("export.before_config")
    os.replace(staging / last, folder / last)
    flush_to_disk(folder)
    staging.rmdir()
    fault_point("export.in_place")


def _names_of_model(folder: Path, new: set[str]) -> list[str]:
    """What belongs to the model in a folder, or stands in the way of the new one; the configuration comes first."""
    there = {path.name for path in folder.iterdir()} - {_STAGING_NAME}
    weights = {name for name in there if name == INDEX_NAME or _OLD_WEIGHTS.fullmatch(name)}
    listed = {Path(name).parts[0] for place in (folder, folder / _MOVING_NAME) for name in listed_names(place)}
    return sorted(there & {*_CONFIGS, *new, *listed} | weights, key=lambda name: (name not in _CONFIGS, name))
