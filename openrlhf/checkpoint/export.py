"""The trained model as a Hugging Face folder: written to a staging folder, read back, put in place file by file.

In place, `config.json` (of an adapter: `adapter_config.json`) is taken away first and comes back last, so an
export that was interrupted has none and nothing opens it as a model. Other files in the folder are left
alone.
"""

import copy
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.atomic_file import flush_to_disk
from openrlhf.checkpoint.fault_points import fault_point
from openrlhf.checkpoint.tensor_file import INDEX_NAME, ShardWriter, write_tensors
from openrlhf.engine.parameters import by_block, model_dtype, whole_weights
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_problems, rank_in

DEFAULT_MAX_SHARD_BYTES = 5 * 10**9
_STAGING_NAME = ".writing-export"
_CONFIG_NAME, _ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"
_ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
_OLD_WEIGHTS = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?|adapter_model\.(safetensors|bin)"
)
_QUESTION, _ANSWER = "question", "answer"


def export_model(
    model: Any,
    tokenizer: Any,
    folder: Path | str,
    group: ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> None:
    """Put `model` into `folder` so that `from_pretrained` opens it, in place of one that was there.

    All ranks call.

    Args:
        model: transformers model, or peft model (then the adapter alone is saved); weights may be cut up by
        ZeRO-3.
        tokenizer: None writes no tokenizer files.
        group: gloo, of all ranks, on which they tell one another whether it went well; None: this rank alone.
        max_shard_bytes: rank 0 holds about so much, and one layer, of a model at a time.

    Raises UserError on every rank if rank 0 could not write; what was in the folder is then untouched, unless
    the last moves failed, and then the folder has no configuration and cannot be mistaken for a model.
    """
    folder = Path(folder)
    staging = folder / _STAGING_NAME
    if rank_in(group) == 0:
        shutil.rmtree(staging, ignore_errors=True)
    write_model(model, tokenizer, staging, group, max_shard_bytes)
    with _OnRank0(folder, group) as rank_0:
        rank_0.attempt(_put_in_place, staging, folder)


def is_exported(folder: Path | str) -> bool:
    """True where a whole model is in the folder: the configuration comes last."""
    return (Path(folder) / _CONFIG_NAME).is_file() or (Path(folder) / _ADAPTER_CONFIG_NAME).is_file()


def write_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    group: ProcessGroup | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
) -> None:
    """Write, flush and read back a model in a folder that nobody reads yet. All ranks call.

    Raises UserError on every rank if rank 0 could not write.
    """
    with _OnRank0(folder, group) as rank_0:
        rank_0.attempt(folder.mkdir, parents=True, exist_ok=True)
        fault_point("export.begun")
        if hasattr(model, "peft_config"):
            _write_adapter(model, folder, rank_0)
        else:
            _write_full_model(model, folder, rank_0, max_shard_bytes)
        rank_0.attempt(_write_settings, model, tokenizer, folder)


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
            raise UserError(
                f"The model could not be exported to {self._folder}: {'; '.join(problems)}. "
                "The training checkpoint is not affected; mend the cause and run again."
            )


# --- weights ---


def _write_full_model(model: Any, folder: Path, rank_0: _OnRank0, max_shard_bytes: int) -> None:
    shards = ShardWriter(folder, max_shard_bytes)
    for block in by_block(whole_weights(model, rank_0.is_here)):
        rank_0.attempt(_add_block, model, shards, block)
    rank_0.attempt(shards.finish)
    rank_0.attempt(fault_point, "export.written")


def _add_block(model: Any, shards: ShardWriter, block: dict[str, Any]) -> None:
    """Hand a layer's weights on in the names and form of the model's files (experts one by one)."""
    from transformers.core_model_loading import revert_weight_conversion

    for name, value in revert_weight_conversion(model, block).items():
        shards.add(name, value)


def _write_adapter(model: Any, folder: Path, rank_0: _OnRank0) -> None:
    """The weights and the configuration that peft saves of an adapter; the base model is not touched."""
    from peft import get_peft_model_state_dict

    def is_of_adapter(name: str, parameter: Any) -> bool:
        return parameter.requires_grad or model.base_model.prefix in name or "modules_to_save" in name

    gathered = dict(whole_weights(model, rank_0.is_here, only=is_of_adapter))

    def write() -> None:
        weights = get_peft_model_state_dict(model, state_dict=gathered, save_embedding_layers=False)
        empty = [name for name, value in weights.items() if value.numel() == 0]
        if empty or not weights:
            raise ValueError(f"adapter weights without elements: {empty or 'all'}")
        write_tensors(folder / _ADAPTER_WEIGHTS_NAME, weights, {"format": "pt"})
        config = copy.deepcopy(model.peft_config[model.active_adapter])
        config.inference_mode = True
        config.save_pretrained(folder)

    rank_0.attempt(write)


# --- tokenizer, configuration, generation settings ---


def _write_settings(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write them, flush the whole folder, and open them again."""
    from transformers import AutoConfig, AutoTokenizer

    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    is_adapter = hasattr(model, "peft_config")
    base = model.get_base_model() if is_adapter else model
    generation_config_for(base, tokenizer).save_pretrained(folder)
    if not is_adapter:
        _write_config(model, tokenizer, folder)
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)
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


def generation_config_for(model: Any, tokenizer: Any) -> Any:
    """A copy of the model's generation settings whose end, pad and start tokens are the tokenizer's.

    `eos_token_id` is one id, or a list where the chat template ends a turn with another token than the
    tokenizer's end token. The model's own earlier tokens are not trusted: they may belong to another tokenizer
    or template.
    """
    config = copy.deepcopy(model.generation_config)
    if tokenizer is None:
        return config
    end_ids = end_token_ids(tokenizer)
    config.eos_token_id = end_ids[0] if len(end_ids) == 1 else end_ids or None
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    return config


def end_token_ids(tokenizer: Any) -> list[int]:
    """Ids that end an answer: the tokenizer's end token and the chat template's end of a turn, each once."""
    ids = (tokenizer.eos_token_id, end_of_turn_token_id(tokenizer))
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def end_of_turn_token_id(tokenizer: Any) -> int | None:
    """The special token that the chat template puts first after an assistant's turn, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise anything; one that cannot render two plain turns tells nothing
        return None
    after_answer = text.rpartition(_ANSWER)[2]
    ids = tokenizer(after_answer, add_special_tokens=False)["input_ids"]
    special_ids = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((id_ for id_ in ids if id_ in special_ids or id_ in tokenizer.all_special_ids), None)


# --- in place ---


def _put_in_place(staging: Path, folder: Path) -> None:
    """Move the new files over the old, the configuration last; files that are no part of a model stay."""
    new = {path.name for path in staging.iterdir()}
    last = _ADAPTER_CONFIG_NAME if _ADAPTER_CONFIG_NAME in new else _CONFIG_NAME
    # Without a configuration nothing opens the folder, so nobody can meet old weights beside new ones.
    for name in (_CONFIG_NAME, _ADAPTER_CONFIG_NAME):
        (folder / name).unlink(missing_ok=True)
    flush_to_disk(folder)
    fault_point("export.old_config_removed")
    for path in list(folder.iterdir()):
        if path.name not in new and (path.name == INDEX_NAME or _OLD_WEIGHTS.fullmatch(path.name)):
            path.unlink()
    for index, name in enumerate(sorted(new - {last})):
        _move(staging / name, folder / name)
        if index == 0:
            fault_point("export.half_in_place")
    flush_to_disk(folder)
    fault_point("export.before_config")
    _move(staging / last, folder / last)
    flush_to_disk(folder)
    staging.rmdir()
    fault_point("export.in_place")


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)
