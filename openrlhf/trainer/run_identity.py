"""The identity of a live run, for `openrlhf.checkpoint.identity` to compare with a checkpoint's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.config.schema import Root, settings, values_of
from openrlhf.errors import UserError
from openrlhf.models.config_values import values_of_function

_BLOCKS_A_FILE, _BLOCK_BYTES = 16, 65_536


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

    Raises UserError where a file cannot be read.
    """
    files = sorted(Path(name_or_path).glob("*.safetensors")) or sorted(Path(name_or_path).glob("*.bin"))
    if not files:
        return name_or_path
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            for part in _parts_of(path):
                digest.update(part)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _parts_of(path: Path) -> Iterator[bytes]:
    """A file's size and 16 blocks."""
    size_bytes = path.stat().st_size
    yield str(size_bytes).encode()
    with path.open("rb") as file:
        for number in range(_BLOCKS_A_FILE):
            file.seek(max(0, size_bytes - _BLOCK_BYTES) * number // (_BLOCKS_A_FILE - 1))
            yield file.read(_BLOCK_BYTES)


def function_of_config(flag: str, config: PretrainedConfig) -> dict[str, Any]:
    """Values that must match: what the config.json of that flag's model says of the function that it computes."""
    return {f"{flag} (config.json: {key})": value for key, value in values_of_function(config).items()}
