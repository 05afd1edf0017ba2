"""flash-attn-4, which lies in a folder of flash-attn's name and brings no `flash_attn/__init__.py`."""

from tests.cuda.stand_ins.reference import padded, varlen


def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    deterministic=False,
):  # fmt: skip
    return padded(
        q, k, v, scale=softmax_scale, causal=causal, window=(_left(window_size), 0), softcap=softcap,
        sinks=learnable_sink, deterministic=deterministic,
    )  # fmt: skip


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None, seqused_k=None,
    page_table=None, softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    num_splits=1, pack_gqa=None, deterministic=False,
):  # fmt: skip
    return varlen(
        q, k, v, cu_seqlens_q, max_seqlen_q, scale=softmax_scale, causal=causal, window=(_left(window_size), 0),
        softcap=softcap, sinks=learnable_sink, deterministic=deterministic,
    )  # fmt: skip


def _left(window_size):
    return -1 if window_size[0] is None else window_size[0]
