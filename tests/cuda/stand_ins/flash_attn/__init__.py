"""flash-attn 2.8.3: its functions have these signatures."""

from tests.cuda.stand_ins.reference import padded, varlen


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    return padded(
        q, k, v, scale=softmax_scale, causal=causal, window=window_size, softcap=softcap, deterministic=deterministic,
    )  # fmt: skip


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert dropout_p == 0.0, "the stand-in has no dropout"
    return varlen(
        q, k, v, cu_seqlens_q, max_seqlen_q, scale=softmax_scale, causal=causal, window=window_size, softcap=softcap,
        deterministic=deterministic,
    )  # fmt: skip


def flash_attn_with_kvcache(q, k_cache, v_cache, **kwargs):
    raise NotImplementedError("nothing is generated here")
