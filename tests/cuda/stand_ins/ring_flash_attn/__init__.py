"""ring-flash-attn 0.1.8: what it imports of transformers when it is imported itself."""

from transformers.modeling_flash_attention_utils import is_flash_attn_greater_or_equal_2_10

NEEDS = is_flash_attn_greater_or_equal_2_10


def zigzag_ring_flash_attn_varlen_func(
    q, k, v, cu_seqlens, max_seqlen, softmax_scale=None, causal=False, deterministic=False, group=None
):
    return q
