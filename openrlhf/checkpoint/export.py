"""The trained model as a Hugging Face folder: written aside, read back, then put in place file by file.

In place, `config.json` (of an adapter: `adapter_config.json`) is taken away first and comes back last, so an
export that was interrupted has none and nothing opens it as a model. Other files in the folder are left
alone.
"""

import copy
import os
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from openrlhf.checkpoint.agreement import problems_of_all_ranks, this_rank
from openrlhf.checkpoint.durable import flush_file, flush_folder
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.generation_settings import generation_config_for
from openrlhf.checkpoint.shards import INDEX_NAME, ShardWriter
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.engine.parameters import by_block, model_dtype, whole_weights
from openrlhf.errors import UserError

DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
_ASIDE_NAME = ".writing-export"
_CONFIG_NAME, _ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"
_ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_OLD_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_model\.(safetensors|bin)"
)


def export_model(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    group: dist.ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> None:
    """Put `model` into `folder` so that `from_pretrained` opens it, in place of one that was there.

    All ranks call.

    Args:
        model: transformers model, or peft model (then the adapter alone is saved); weights may be cut up by
        ZeRO-3.
        tokenizer: None writes no tokenizer files.
        group: gloo, of all ranks, on which they tell one another whether it went well.
        max_shard_bytes: rank 0 holds about so much, and one layer, of a model at a time.

    Raises UserError on every rank if rank 0 could not write; what was in the folder is then untouched, unless
    the last moves failed, and then the folder has no configuration and cannot be mistaken for a model.
    """
    folder = Path(folder)
    aside = folder / _ASIDE_NAME
    if this_rank(group) == 0:
        shutil.rmtree(aside, ignore_errors=True)
    write_model(model, tokenizer, aside, group, max_shard_bytes)
    problem = None
    if this_rank(group) == 0:
        problem = _attempt(lambda: _put_in_place(aside, folder))
    _raise_if_any(problem, folder, group)


def is_exported(folder: Path | str) -> bool:
    """Whether a whole model is in the folder: the configuration comes last."""
    return (Path(folder) / _CONFIG_NAME).is_file() or (Path(folder) / _ADAPTER_CONFIG_NAME).is_file()


def write_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    group: dist.ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> None:
    """Write, flush and read back a model in a folder that nobody reads yet. All ranks call."""
    is_rank_0 = this_rank(group) == 0
    problem = _attempt(lambda: folder.mkdir(parents=True, exist_ok=True)) if is_rank_0 else None
    fault_point("export.begun")
    write_weights = _write_adapter if hasattr(model, "peft_config") else _write_full_model
    problem = write_weights(model, folder, is_rank_0, max_shard_bytes, problem)
    if is_rank_0 and problem is None:
        problem = _attempt(lambda: _write_settings(model, tokenizer, folder))
    _raise_if_any(problem, folder, group)


def _write_full_model(
    model: Any, folder: Path, is_rank_0: bool, max_shard_bytes: int, problem: str | None
) -> str | None:
    """Gather layer by layer and write. After an error rank 0 goes on gathering: the others are in it too."""
    shards = ShardWriter(folder, max_shard_bytes)
    for block in by_block(whole_weights(model, is_rank_0)):
        if is_rank_0 and problem is None:
            problem = _attempt(partial(_add_block, model, shards, block))
    if is_rank_0 and problem is None:
        problem = _attempt(shards.finish)
        fault_point("export.written")
    return problem


def _add_block(model: Any, shards: ShardWriter, block: dict[str, Any]) -> None:
    """Hand a layer's weights on in the names and form of the model's files (experts one by one)."""
    from transformers.core_model_loading import revert_weight_conversion

    for name, value in revert_weight_conversion(model, block).items():
        shards.add(name, value)


def _write_adapter(model: Any, folder: Path, is_rank_0: bool, _: int, problem: str | None) -> str | None:
    """What peft saves of an adapter, from gathered weights; the base model is not touched."""
    from peft import get_peft_model_state_dict

    def is_of_adapter(name: str, parameter: Any) -> bool:
        return parameter.requires_grad or model.base_model.prefix in name or "modules_to_save" in name

    gathered = dict(whole_weights(model, is_rank_0, only=is_of_adapter))
    if not is_rank_0 or problem is not None:
        return problem

    def write() -> None:
        weights = get_peft_model_state_dict(model, state_dict=gathered, save_embedding_layers=False)
        empty = [name for name, value in weights.items() if value.numel() == 0]
        if empty or not weights:
            raise ValueError(f"adapter weights without elements: {empty or 'all'}")
        write_tensors(folder / _ADAPTER_WEIGHTS_NAME, weights, {"format": "pt"})
        config = copy.deepcopy(model.peft_config[model.active_adapter])
        config.inference_mode = True
        config.save_pretrained(folder)

    return _attempt(write)


def _write_settings(model: Any, tokenizer: Any, folder: Path) -> None:
    """Tokenizer, configuration and generation settings; flushed, and opened again."""
    from transformers import AutoConfig, AutoTokenizer

    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    is_adapter = hasattr(model, "peft_config")
    base = model.get_base_model() if is_adapter else model
    generation_config_for(base, tokenizer).save_pretrained(folder)
    if not is_adapter:
        _write_config(model, tokenizer, folder)
    for path in folder.rglob("*"):
        flush_file(path)
    flush_folder(folder)
    if not is_adapter and not model.is_remote_code():
        AutoConfig.from_pretrained(folder, local_files_only=True)
        if tokenizer is not None:
            AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fault_point("export.read_back")


def _write_config(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers.dynamic_module_utils import custom_object_save

    config = copy.deepcopy(model.config)
    config.use_cache = True  # training turns it off; generation without it is slow
    config.architectures = [type(model).__name__]
    config.dtype = str(model_dtype(model)).removeprefix("torch.")
    if tokenizer is not None:
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
    if model.is_remote_code():
        custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)


def _put_in_place(aside: Path, folder: Path) -> None:
    """Move the new files over the old, the configuration last; files that are no part of a model stay."""
    new = {path.name for path in aside.iterdir()}
    last = _ADAPTER_CONFIG_NAME if _ADAPTER_CONFIG_NAME in new else _CONFIG_NAME
    for name in (_CONFIG_NAME, _ADAPTER_CONFIG_NAME):
        (folder / name).unlink(missing_ok=True)
    flush_folder(folder)
    fault_point("export.old_config_removed")
    for path in list(folder.iterdir()):
        if path.name not in new and (path.name == INDEX_NAME or _OLD_WEIGHTS.fullmatch(path.name)):
            path.unlink()
    for index, name in enumerate(sorted(new - {last})):
        _move(aside / name, folder / name)
        if index == 0:
            fault_point("export.half_in_place")
    flush_folder(folder)
    fault_point("export.before_config")
    _move(aside / last, folder / last)
    flush_folder(folder)
    aside.rmdir()
    fault_point("export.in_place")


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _attempt(action: Any) -> str | None:
    """Run; what went wrong, in words. The other ranks wait to hear of it, so nothing may escape."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _raise_if_any(problem: str | None, folder: Path, group: dist.ProcessGroup | None) -> None:
    problems = problems_of_all_ranks(problem, group)
    if problems:
        raise UserError(
            f"The model could not be exported to {folder}: {'; '.join(problems)}. "
            "The training checkpoint is not affected; mend the cause and run again."
        )
