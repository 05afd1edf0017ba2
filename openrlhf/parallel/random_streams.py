"""Random numbers as a function of (seed, optimizer step, micro-step, rank): nothing to store, nothing to restore."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds every generator of the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries draw from it)
    torch.manual_seed(seed)


def compute_deterministically() -> None:
    """Lets torch and packages of flash attention take kernels that give the same bits each time, or raise.

    flash-attn does not ask torch; cuBLAS wants its workspace named before the process first uses a GPU.
    """
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def seed_micro_step(seed: int, optimizer_step: int, micro_step: int, rank: int) -> None:
    """Seeds the stream of dropout in one forward pass: the same after a resume as in an unbroken run."""
    digest = hashlib.blake2b(f"{seed}/{optimizer_step}/{micro_step}/{rank}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # it would write down a stack trace for each kind of device that may come later: milliseconds
        torch.default_generator.manual_seed(number)
