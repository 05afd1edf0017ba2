"""Ring attention: each rank holds a share of the pack; keys and values go round, queries stay.

A rank that holds the whole pack computes its blocks alone: where sequences share a prompt (ring_plan.py). On the CPU a
kernel of ours takes all of them at once (causal_pack.py).

Forward: while a block of keys and values is computed with, it is sent on and the next one received; block outputs are
merged by their log-sum-exp in float32. Backward: keys and values go round once more, and with them the sums of their
gradients, which are home after the last step. Nothing but one rank's share is ever held, twice while it is exchanged.

Registered in transformers under `RING`, and by the package ring-flash-attn under `RING_FLASH_REGISTERED`; the layers
find the plan in the keyword `ring` (ring_plan.py).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from openrlhf.engine.model_internals import import_ring_flash_attn
from openrlhf.errors import UserError, first_line_of
from openrlhf.models.attention.causal_pack import attend_pack, computes_shared_prompts
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.per_sample import FLASH_DTYPES, CausalMask, attend_alone, is_flash_head_size
from openrlhf.models.attention.ring_kernels import SavedRows, choose_kernel
from openrlhf.models.attention.ring_plan import Block, Ring

RING, RING_FLASH = "ring", "ring_flash_attn"
RING_FLASH_REGISTERED = "ring_of_package"  # transformers loads a kernel of the hub for any name with "flash" in it
INSTALL_LINE = "pip install flash-attn ring-flash-attn --no-build-isolation"


def ring_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    ring: Ring | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, A, T, D), key and value (1, K, T, D) → (1, T, A, D).

    T is this rank's share of the pack. Rows beyond it, where a rank has none, see nothing and give zeros. Without
    `ring`, the inputs are whole, and computed here alone.
    """
    options = AttentionOptions.taken_from(kwargs)
    if ring is None:
        return attend_alone(module, query, key, value, attention_mask, options, **kwargs), None
    if options.dropout > 0:
        raise UserError(
            "Ring attention has no attention dropout: set the model's own to 0 (attention_dropout, attn_pdrop)."
        )
    assert query.shape[0] == 1, "a pack is one row"
    assert isinstance(attention_mask, CausalMask), "a mask of the model's own making cannot be shared by a ring"
    window = attention_mask.window
    sees_all = window is None or window >= ring.longest_sample
    options = replace(options, window=None if sees_all else window)
    query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)  # the gradient of query[0] would be copied
    if ring.size == 1 and computes_shared_prompts(query, key, value, options):
        return attend_pack(query, key, value, ring.lengths, options.scaling, ring.prompt_of)[None], None
    value_size = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - value_size))  # the kernels want equal head sizes
    query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    return _attend_by_head_groups(query, key, value, options, ring)[None, ..., :value_size], None


def _attend_by_head_groups(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions, ring: Ring) -> Tensor:
    """(T, A, D): `head_stride` key heads and their query heads at a time, so that less memory is in exchange."""
    num_key_heads = key.shape[1]
    stride = ring.head_stride or num_key_heads
    groups = query.shape[1] // num_key_heads
    outputs = []
    for first in range(0, num_key_heads, stride):
        keys = slice(first, first + stride)
        queries = slice(first * groups, (first + stride) * groups)
        sinks = None if options.sinks is None else options.sinks[queries]
        outputs.append(_RingAttention.apply(query[:, queries], key[:, keys], value[:, keys], sinks, options, ring))
    return torch.cat(outputs, dim=1)


class _RingAttention(torch.autograd.Function):
    """query (T, A, D), key and value (T, K, D), sinks (A,) or None → (T, A, D)"""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        options: AttentionOptions,
        ring: Ring,
    ) -> Tensor:
        kernel = choose_kernel(query, options)
        dtype = torch.promote_types(query.dtype, torch.float32)
        output = torch.zeros_like(query, dtype=dtype)
        # A sink is a place that takes weight and gives nothing: the log-sum-exp to begin with.
        log_sum_exp = query.new_full(query.shape[:2], -torch.inf, dtype=dtype)
        if sinks is not None:
            log_sum_exp = sinks.to(dtype).expand_as(log_sum_exp).clone()
        carried = torch.stack([key, value])[:, : ring.num_tokens[ring.rank]]
        for step in range(ring.size):
            # After s steps round the ring, what this rank holds is that of the rank s places before it.
            source = (ring.rank - step) % ring.size
            # The exchange runs while the block is computed; after the last step nobody needs the keys any more.
            exchange = _Exchange(ring, carried, source) if step < ring.size - 1 else None
            for block in ring.blocks[source]:
                keys, values = carried[:, block.keys.index]
                part = kernel.forward(query[block.queries.index], keys, values, block, options)
                _merge(output, log_sum_exp, block, *part)
            if exchange is not None:
                carried = exchange.wait()
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, sinks, output, log_sum_exp)
        ctx.options, ctx.ring = options, ring
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, sinks, output, log_sum_exp = ctx.saved_tensors
        options, ring = ctx.options, ctx.ring
        kernel = choose_kernel(query, options)
        grad_query = torch.zeros_like(query, dtype=log_sum_exp.dtype)
        carried = torch.stack([key, value])[:, : ring.num_tokens[ring.rank]]
        arriving: _Exchange | None = None  # the sum of the gradients of `carried` so far, on its way here
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            exchange = _Exchange(ring, carried, source) if step < ring.size - 1 else None
            # With output and log-sum-exp of the whole attention, a block's gradients need no other block.
            grad_carried = torch.zeros_like(carried, dtype=log_sum_exp.dtype)
            for block in ring.blocks[source]:
                rows = block.queries.index
                keys, values = carried[:, block.keys.index]
                saved = SavedRows(grad[rows], query[rows], keys, values, output[rows], log_sum_exp[rows])
                dq, dk, dv = kernel.backward(saved, block, options)
                grad_query[rows] += dq
                for into, part in zip(grad_carried, (dk, dv), strict=True):
                    into.index_add_(0, block.keys.index, part.to(into.dtype))  # a shared prompt's keys come again
            # The keys' gradients travel one step behind the keys: the sum of the ranks before is added here and sent
            # on. After the last step it has come to the rank whose keys they are.
            if arriving is not None:
                grad_carried += arriving.wait()
            arriving = _Exchange(ring, grad_carried, source)
            if exchange is not None:
                carried = exchange.wait()
        assert arriving is not None, "a ring has a step"
        grad_key, grad_value = (_with_rows(part, key) for part in arriving.wait())
        grad_sinks = _grad_sinks(sinks, grad, output, log_sum_exp) if ctx.needs_input_grad[3] else None
        return grad_query.to(query.dtype), grad_key, grad_value, grad_sinks, None, None


def num_exchanges_begun() -> int:
    """Of keys and values, and of their gradients, by this rank."""
    return _Exchange.num_begun


class _Exchange:
    """Sends a tensor (2, tokens, heads, D) to the next rank while the previous one's is received."""

    num_begun: ClassVar[int] = 0  # by this rank; as many by each rank of the ring

    def __init__(self, ring: Ring, tensor: Tensor, source: int):
        """Args: source: the rank whose tokens `tensor` is about; the tensor received is about the rank before it."""
        self._device = tensor.device
        if ring.size == 1:  # what is sent on is at home
            self._received, self._works = tensor, []
            return
        _Exchange.num_begun += 1
        # gloo sends from the CPU alone; it serves CUDA where ranks share a GPU
        travels_on = "cpu" if dist.get_backend(ring.group) == "gloo" else tensor.device
        self._sent = tensor.to(travels_on).contiguous()  # kept alive until it is sent
        num_arriving = ring.num_tokens[(source - 1) % ring.size]
        self._received = self._sent.new_empty(tensor.shape[0], num_arriving, *tensor.shape[2:])
        operations = []
        if self._sent.numel():
            operations.append(dist.P2POp(dist.isend, self._sent, ring.next_rank, ring.group))
        if self._received.numel():
            operations.append(dist.P2POp(dist.irecv, self._received, ring.previous_rank, ring.group))
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._received.to(self._device)


def _merge(output: Tensor, log_sum_exp: Tensor, block: Block, part: Tensor, part_log_sum_exp: Tensor) -> None:
    """Takes a block's output into the running one, in place.

    Both are means of values, over the keys seen so far and over the block's. In the mean over all of these each weighs
    its sum of exponentials: exp(log_sum_exp - that of all), which is at most 1, so that nothing overflows.
    """
    rows = block.queries.index
    before, part_log_sum_exp = log_sum_exp[rows], part_log_sum_exp.to(log_sum_exp.dtype)
    after = torch.logaddexp(before, part_log_sum_exp)
    kept, added = (before - after).exp()[..., None], (part_log_sum_exp - after).exp()[..., None]
    output[rows] = output[rows] * kept + part.to(output.dtype) * added
    log_sum_exp[rows] = after


def _with_rows(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient with zeros for the rows beyond the rank's share, in the dtype of `like`."""
    full = torch.zeros_like(like)
    full[: grad.shape[0]] = grad
    return full


def _grad_sinks(sinks: Tensor, grad: Tensor, output: Tensor, log_sum_exp: Tensor) -> Tensor:
    """(A,): a sink's weight in each row, times what that row loses by it."""
    weight = (sinks.to(log_sum_exp.dtype) - log_sum_exp).exp()
    loss = (grad.to(log_sum_exp.dtype) * output.to(log_sum_exp.dtype)).sum(-1)
    return -(weight * loss).sum(0).to(sinks.dtype)


# --- the packages ring-flash-attn and flash-attn behind the same interface ------------------------------------------
#
# Their zigzag shares a sample as ours does (parallel/sequence_shares.py) where its length is a multiple of twice the
# ring's size. Our own ring computes all that they do not know: other lengths, windows, soft-capped scores, sinks,
# float32.


def require_ring_flash(device_type: str) -> None:
    """Raises UserError, with the reason in one line, where the packages cannot be used here."""
    flag = f"--ds.attn_implementation {RING_FLASH}"
    missing = [name for name in ("flash_attn", "ring_flash_attn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{flag} needs packages that are not installed ({', '.join(missing)}): {INSTALL_LINE} (or use auto: our "
            "own ring needs none)."
        )
    if device_type != "cuda":
        raise UserError(f"{flag} runs on CUDA only, not on {device_type}. Use auto.")
    try:
        import_ring_flash_attn()
    except Exception as error:  # whatever it is, the packages are of no use
        raise UserError(
            f"{flag} cannot be used with transformers {transformers.__version__}: importing ring_flash_attn fails with "
            f"{type(error).__name__}: {first_line_of(error)}. Use auto."
        ) from error


def ring_flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    ring: Ring | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (1, A, T, D), key and value (1, K, T, D) → (1, T, A, D)."""
    window = attention_mask.window if isinstance(attention_mask, CausalMask) else None
    options = replace(AttentionOptions.taken_from(dict(kwargs)), window=window)
    if ring is None or not ring_flash_knows(query, value, options, ring):
        return ring_attention(module, query, key, value, attention_mask, ring=ring, **kwargs)
    zigzag_ring_flash_attn_varlen_func = import_ring_flash_attn().zigzag_ring_flash_attn_varlen_func
    borders = torch.tensor((0, *ring.sample_lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    output = zigzag_ring_flash_attn_varlen_func(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        (borders // ring.size).to(query.device),
        ring.longest_sample // ring.size,
        softmax_scale=options.scaling,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        group=ring.group,
    )
    return output[None], None


def ring_flash_knows(query: Tensor, value: Tensor, options: AttentionOptions, ring: Ring) -> bool:
    """Whether the packages compute this, on shares cut as ours are."""
    sees_all = options.window is None or options.window >= ring.longest_sample
    is_plain = options.is_plain and options.dropout == 0.0 and sees_all and query.dtype in FLASH_DTYPES
    is_plain = is_plain and ring.prompt_of is None
    divides = all(length % (2 * ring.size) == 0 for length in ring.sample_lengths)
    heads_fit = value.shape[-1] == query.shape[-1] and is_flash_head_size(query.shape[-1])
    return is_plain and divides and heads_fit
