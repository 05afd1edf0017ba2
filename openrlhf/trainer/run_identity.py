"""The identity of a live run, for `openrlhf.checkpoint.identity` to compare with a checkpoint's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.config.schema import Root, settings, values_of

_BLOCKS_A_FILE, _BLOCK_BYTES = 16, 65_536
# Keys of config.json that say nothing of the function, are settings of the run, or are changed by an export of ours.
_NOT_COMPARED = {"_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version"}
_NOT_COMPARED |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "mean", "std"}


def settings_identity(config: Root) -> RunIdentity:
    """What the settings of a run say of its identity; the facts of `RunIdentity` are the caller's to add."""
    table, values = settings(type(config)), values_of(config)
    by_rule: dict[str, dict[str, Any]] = {"must_match": {}, "kept": {}, "taken": {}, "free": {}}
    for name, value in values.items():
        if not _is_idle(name, values):
            by_rule[table[name].resume][name] = list(value) if isinstance(value, tuple) else value  # as JSON holds it
    return RunIdentity(by_rule["must_match"], by_rule["kept"], by_rule["taken"])


def _is_idle(name: str, values: dict[str, Any]) -> bool:
    """Whether another setting makes this one do nothing: its value then says nothing of the run."""
    if name.startswith("muon."):
        return values["optim"] != "muon"
    if name in ("ds.lora.alpha", "ds.lora.dropout"):
        return values["ds.lora.rank"] == 0
    if name == "model.simpo_gamma":
        return "simpo" not in values["model.loss_type"]
    if name == "model.aux_loss_scope":
        return values["model.aux_loss_coef"] == 0
    return name == "eval.split" and values["eval.dataset"] is None


def base_model_fingerprint(name_or_path: str) -> str:
    """Of weights that no checkpoint holds: of each file its size and 16 blocks. A name on the hub stands for itself.

    A folder may move. Not all is read, since training on from other weights changes every one of them.
    """
    files = sorted(Path(name_or_path).glob("*.safetensors")) or sorted(Path(name_or_path).glob("*.bin"))
    if not files:
        return name_or_path
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size_bytes = path.stat().st_size
        digest.update(str(size_bytes).encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS_A_FILE):
                file.seek(max(0, size_bytes - _BLOCK_BYTES) * number // (_BLOCKS_A_FILE - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def function_of_config(flag: str, config: PretrainedConfig) -> dict[str, Any]:
    """What the config.json of that flag's model says of the function that its weights compute; of the text's part.

    Values that must match, as JSON holds them. No path and no layout changes them.
    """
    values = json.loads(config.get_text_config().to_json_string(use_diff=False))
    return {f"{flag} (config.json: {key})": value for key, value in values.items() if key not in _NOT_COMPARED}
