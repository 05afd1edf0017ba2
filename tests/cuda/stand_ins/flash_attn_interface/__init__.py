"""flash-attn-3: no dropout, no sinks."""

from tests.cuda.stand_ins.reference import padded, varlen


def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False):
    return padded(
        q, k, v, scale=softmax_scale, causal=causal, window=window_size, softcap=softcap, deterministic=deterministic,
    )  # fmt: skip


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
    causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):  # fmt: skip
    return varlen(
        q, k, v, cu_seqlens_q, max_seqlen_q, scale=softmax_scale, causal=causal, window=window_size, softcap=softcap,
        deterministic=deterministic,
    )  # fmt: skip


def flash_attn_with_kvcache(q, k_cache, v_cache, **kwargs):
    raise NotImplementedError("nothing is generated here")
