"""Packed attention on one rank: sample by sample, or on CUDA by torch's own variable-length kernel.

Its cost is the sum of the squares of the samples' lengths. No flash-attn package is needed. What torch's kernel does
not know (float32, dropout, soft-capped scores, sinks) goes sample by sample.

Registered in transformers under `PER_SAMPLE` and `TORCH_VARLEN`. Both read the samples' borders under transformers' own
name for them, `cu_seq_lens_q`, and without them compute padded batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from openrlhf.engine.torch_operators import fewer_key_heads
from openrlhf.errors import UserError
from openrlhf.models.attention.causal_pack import attend_pack, computes
from openrlhf.models.attention.dense import AttentionOptions, attend, attend_causally

PER_SAMPLE, TORCH_VARLEN = "per_sample", "torch_varlen"
FLASH_DTYPES = (torch.float16, torch.bfloat16)  # that flash kernels on CUDA know


def is_flash_head_size(head_size: int) -> bool:
    """Whether flash kernels on CUDA, torch's own among them, compute heads of this size."""
    return head_size <= 256 and head_size % 8 == 0


@dataclass(frozen=True)
class CausalMask:
    """Stands for a causal mask that is not written out: what a model's layers hand on to our attention."""

    window: int | None  # what the model asked its mask for; some models tell it to their attention nowhere else
    has_several_samples: bool  # transformers saw by the position ids that a row is a pack

    def __getitem__(self, parts: tuple[Any, ...]) -> CausalMask:
        """Some models cut their mask to the places that they go on with: in training, to all of them.

        Raises UserError where they are fewer, as while it generates.
        """
        if any(part not in (slice(None), slice(0, None)) for part in parts):
            raise UserError(
                "the model goes on with some of a row's places alone, for which its causal mask must be written out. "
                "Use --ds.attn_implementation sdpa or eager."
            )
        return self


def per_sample_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, A, S, D), key and value (B, K, S, D) → (B, S, A, D)."""
    options = AttentionOptions.taken_from(kwargs)
    return attend_alone(module, query, key, value, attention_mask, options, **kwargs), None


def torch_varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, A, S, D), key and value (B, K, S, D) → (B, S, A, D)."""
    options = AttentionOptions.taken_from(kwargs)
    is_plain = options.is_plain and options.dropout == 0.0 and query.dtype in FLASH_DTYPES
    knows_all = is_plain and value.shape[-1] == query.shape[-1] and is_flash_head_size(query.shape[-1])
    if cu_seq_lens_q is None or not isinstance(attention_mask, CausalMask) or not knows_all:
        return attend_alone(module, query, key, value, attention_mask, options, cu_seq_lens_q, **kwargs), None
    from torch.nn.attention.varlen import varlen_attn

    assert query.shape[0] == 1, "a pack is one row"
    assert max_length_q is not None, "a pack comes with the length of its longest sample"
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=options.scaling,
        window_size=(-1, 0) if attention_mask.window is None else (attention_mask.window - 1, 0),
        **fewer_key_heads(query.shape[1], key.shape[1]),
    )
    assert isinstance(output, Tensor), "no log-sum-exp was asked for"
    return output[None], None


def attend_alone(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    options: AttentionOptions,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_host: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Attention of a pack, sample by sample, or of a padded batch, on this rank alone: (B, S, A, D).

    Args: cu_seq_lens_host: the same borders on the host; without them it waits for the device.
    """
    if not isinstance(attention_mask, CausalMask):  # a padded batch, generation, or a mask of the model's own making
        return padded_attention(module, query, key, value, attention_mask, options, **kwargs)
    options = replace(options, window=attention_mask.window)
    if cu_seq_lens_q is None:
        refuse_pack_without_borders(module, attention_mask)
        return attend_causally(query, key, value, options).transpose(1, 2).contiguous()
    assert query.shape[0] == 1, "a pack is one row"
    lengths = (cu_seq_lens_q if cu_seq_lens_host is None else cu_seq_lens_host).diff().tolist()
    if computes(query, value, options):
        # Not query[0]: its gradient would be copied into zeros.
        return attend_pack(query.squeeze(0), key.squeeze(0), value.squeeze(0), lengths, options.scaling)[None]
    samples = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    outputs = [attend_causally(*sample, options) for sample in samples]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def refuse_pack_without_borders(module: nn.Module, mask: CausalMask) -> None:
    """Raises UserError where samples would see one another because the model lost their borders on the way."""
    if mask.has_several_samples:
        raise UserError(
            f"{type(module).__name__} is given a pack but not its samples' borders: this model does not hand them on "
            "to its attention. Remove --ds.packing_samples to train it on padded batches."
        )


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: AttentionOptions,
    **kwargs: Any,
) -> Tensor:
    """Attention of a padded batch, or of a step of generation, as transformers computes it: (B, S, A, D)."""
    if options.is_plain:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, options.dropout, options.scaling, **kwargs
        )
        return output
    if attention_mask is None and query.shape[2] == 1:
        attention_mask = torch.ones(1, key.shape[2], dtype=torch.bool, device=query.device)
    return attend(query, key, value, options, attention_mask).transpose(1, 2).contiguous()


def causal_mask_unwritten(
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | CausalMask | None:
    """transformers' mask interface: a plain causal mask without padding is described, any other written out.

    Where transformers sees by the position ids that several samples stand in a row, it forbids to skip the mask.
    """
    is_unusual = use_vmap or allow_is_bidirectional_skip
    if attention_mask is None and q_length == kv_length and not is_unusual:
        return CausalMask(local_size, has_several_samples=not allow_is_causal_skip)
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        use_vmap=use_vmap,
        **kwargs,
    )
