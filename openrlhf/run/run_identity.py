"""What makes a run the same run: what a checkpoint is compared with before training goes on from it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from openrlhf.batching import StepWindowLoader
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.strategy.checkpoints import shape_of

NO_ADAPTER = "none"
_BLOCKS_A_FILE, _BLOCK_BYTES = 16, 65_536


def run_identity(
    train_dataloader: Any,
    module: Any,
    tokenizer: Any,
    *,
    model: Any,
    optimizer: str,
    param_dtype: str,
    seed: int,
    batch_size: int,
    loss_reduction: str,
    num_steps: int,
) -> RunIdentity:
    """The identity of a run; of a DataLoader of the user's own nothing is known but its name.

    Args:
        module: what DeepSpeed wraps; `model`: the transformers or peft model in it.
        optimizer, param_dtype: as --optim and --ds.param_dtype name them.
    """
    is_ours = isinstance(train_dataloader, StepWindowLoader)
    return RunIdentity(
        data_fingerprint=getattr(train_dataloader.dataset, "fingerprint", "unknown") if is_ours else "unknown",
        num_samples=len(train_dataloader.dataset) if is_ours else -1,
        seed=seed,
        batch_size=batch_size,
        model_shape=shape_of(module),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        loss_reduction=loss_reduction,
        schedule_num_steps=num_steps,
        optimizer=optimizer,
        param_dtype=param_dtype,
        adapter=adapter_in_words(model),
        base_model=base_model_fingerprint(model.config.name_or_path) if hasattr(model, "peft_config") else NO_ADAPTER,
    )


def adapter_in_words(model: Any) -> str:
    """What decides how much adapters say; their places are part of the model's shape."""
    if not hasattr(model, "peft_config"):
        return NO_ADAPTER
    (config,) = model.peft_config.values()
    base = " on 4 bits" if getattr(model, "is_loaded_in_4bit", False) else ""
    return f"rank {config.r}, alpha {config.lora_alpha}, dropout {config.lora_dropout}{base}"


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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of vocabulary, special tokens and chat template; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
