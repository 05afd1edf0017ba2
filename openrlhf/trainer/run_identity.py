"""What makes a run the same run: what a checkpoint is compared with before training goes on from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from openrlhf.batching import StepWindowLoader
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.utils.deepspeed.checkpoints import shape_of


def run_identity(
    train_dataloader: Any,
    module: Any,
    tokenizer: Any,
    *,
    seed: int,
    batch_size: int,
    loss_reduction: str,
    num_steps: int,
) -> RunIdentity:
    """The identity of a run; of a DataLoader of the user's own nothing is known but its name."""
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
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of vocabulary, special tokens and chat template; empty without a tokenizer."""
    if tokenizer is None:
        return ""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
