"""What a model has to tell when it is made: once for all ranks, in the log."""

from __future__ import annotations

import functools
import logging

import torch.distributed as dist

logger = logging.getLogger(__name__)


def tell(sentence: str) -> None:
    """Once for all ranks."""
    if not (dist.is_initialized() and dist.get_rank()):
        logger.warning(sentence)


@functools.cache
def tell_once(sentence: str) -> None:
    """Also where the model is made again: padded in place of packed, or as its own reference."""
    tell(sentence)
