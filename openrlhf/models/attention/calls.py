"""What a model asks of its attention, found before its weights are read: it runs once, on shapes without numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from openrlhf.engine.model_internals import without_weights
from openrlhf.models.attention.per_sample import CausalMask, is_flash_head_size

_RECORDED = "recorded"  # under this name transformers knows the attention that only notes how it is called


class ModelFacts(NamedTuple):
    """What the choice of attention knows of a model."""

    model_class: type[PreTrainedModel] | None  # None: the model brings its own code
    config: PretrainedConfig
    dtype: torch.dtype  # that it computes in


class AttentionCall(NamedTuple):
    """How a layer calls its attention."""

    head_size: int  # of queries and keys
    value_size: int
    dropout: float
    has_softcap: bool
    has_sinks: bool
    mask_window: int | None  # the window that the model asked its mask for
    told_window: int | None  # the window that the layer tells its attention
    has_own_mask: bool  # a mask of the model's own making, more than causal or a window

    def beyond_torchs_kernel(self) -> str | None:
        """What of it torch's variable-length kernel does not compute, in a few words."""
        if self.has_softcap:
            return "soft-capped scores"
        if self.has_sinks:
            return "attention sinks"
        if self.dropout > 0:
            return "attention dropout"
        if self.has_own_mask:
            return "masks of its own making"
        if self.value_size != self.head_size:
            return f"values of size {self.value_size} beside keys of size {self.head_size}"
        return self.beyond_flash_heads()

    def beyond_flash_heads(self) -> str | None:
        """The head size, where no flash kernel computes it."""
        return None if is_flash_head_size(self.head_size) else f"heads of size {self.head_size}"


def attention_calls(model: ModelFacts) -> frozenset[AttentionCall] | None:
    """How the model's layers call their attention in training; None where it does not run without weights.

    On the meta device a tensor is a shape: a model of any size runs in about half a second, in no memory.
    """
    if model.model_class is None:
        return None
    calls: set[AttentionCall] = set()

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: CausalMask | Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        calls.add(
            AttentionCall(
                head_size=query.shape[-1],
                value_size=value.shape[-1],
                dropout=kwargs.get("dropout", 0.0),
                has_softcap=kwargs.get("softcap") is not None,
                has_sinks=kwargs.get("s_aux") is not None,
                mask_window=mask.window if isinstance(mask, CausalMask) else None,
                told_window=kwargs.get("sliding_window"),
                has_own_mask=not isinstance(mask, CausalMask),
            )
        )
        return value.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    AttentionInterface.register(_RECORDED, record)
    AttentionMaskInterface.register(_RECORDED, mask_without_padding)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy = without_weights(model.model_class, model.config, _RECORDED)
            token_ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
            copy(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
    except Exception:  # a model that looks at its numbers on the way: what it asks is known only with its weights
        return None
    return frozenset(calls)


def mask_without_padding(
    local_size: int | None = None, allow_is_bidirectional_skip: bool = False, use_vmap: bool = False, **kwargs: Any
) -> CausalMask | None:
    """transformers' mask interface, without padding."""
    return None if use_vmap or allow_is_bidirectional_skip else CausalMask(local_size, has_several_samples=False)
