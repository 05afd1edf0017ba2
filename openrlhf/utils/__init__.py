"""The public import path of the strategy and the tokenizer; loads DeepSpeed only when the strategy is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openrlhf.config import SFTConfig, from_namespace

if TYPE_CHECKING:
    from openrlhf.strategy import DeepspeedStrategy


def get_strategy(args: Any) -> DeepspeedStrategy:
    """The strategy that `args` ask for: any object with the names of the command line, nested or flat."""
    from openrlhf.strategy import DeepspeedStrategy

    return DeepspeedStrategy.of(from_namespace(SFTConfig, args), args)


def get_tokenizer(
    name: str, model: Any, padding_side: str = "left", strategy: Any = None, use_fast: bool = True
) -> Any:
    """The tokenizer saved in `name`, with a padding token; the model's configuration learns its id.

    Args:
        model: an Actor, a model of transformers, or None.
        padding_side: for generation "left"; training pads by itself.
        strategy: not used; part of OpenRLHF's interface.
    """
    from openrlhf.datasets.tokenizer import get_tokenizer as load_tokenizer

    tokenizer = load_tokenizer(name, padding_side=padding_side, use_fast=use_fast)
    if model is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


__all__ = ["get_strategy", "get_tokenizer"]
