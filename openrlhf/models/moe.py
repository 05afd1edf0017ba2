"""Mixture-of-experts models: the auxiliary load-balancing loss, and what ZeRO-3 must know about their modules.

The loss is that of Switch Transformers (arXiv 2101.03961, equations 4 to 6), over the tokens of all layers together as
transformers computes it: num_experts * sum over experts of (routed share * mean router probability). Its lowest value
is the number of experts per token.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig

_NUM_EXPERTS_NAMES = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def num_experts_per_token(config: PretrainedConfig) -> int | None:
    """How many experts a token is sent to; None for a model without experts."""
    fields = config.get_text_config().to_dict()
    fields |= fields.get("ffn_config") or {}  # DBRX's
    if not any(fields.get(name) for name in _NUM_EXPERTS_NAMES):
        return None
    top_k = next((fields[name] for name in _TOP_K_NAMES if fields.get(name)), None)
    return max(top_k) if isinstance(top_k, list) else top_k  # a list: of each layer


def expert_leaf_modules(model: nn.Module) -> list[type[nn.Module]]:
    """Classes of modules that hold experts: ZeRO-3 must gather each of these as a whole.

    The experts that run depend on the tokens, and so differ between ranks, while gathering is a collective.
    """
    blocks = (module for module in model.modules() if isinstance(getattr(module, "experts", None), nn.Module))
    return list(dict.fromkeys(type(block) for block in blocks))


def as_logits(probabilities: Tensor) -> Tensor:
    """Logits whose softmax is these."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def load_balancing_loss(
    router_logits: tuple[Tensor, ...],
    experts_per_token: int,
    is_real_token: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """This rank's share of the auxiliary loss; the shares of a group's ranks add up to the loss over all its tokens.

    Args:
        router_logits: for each layer with experts, (T, num_experts).
        is_real_token: (T,) True for tokens that count; None: all do. Padding must not.
        group: whose ranks' tokens are counted together; None: this rank's alone, and the share is the whole.

    Returns:
        A scalar, float32 at least; 0 where no token counts. Gradients flow through this rank's router probabilities.
    """
    num_experts = router_logits[0].shape[-1]
    dtype = torch.promote_types(router_logits[0].dtype, torch.float32)
    counts = torch.zeros(num_experts + 1, device=router_logits[0].device, dtype=dtype)  # per expert; last: tokens
    probability_sum: Tensor | float = 0.0
    for layer_logits in router_logits:
        probabilities = layer_logits.to(dtype).softmax(-1)
        weights = torch.ones_like(probabilities[:, 0]) if is_real_token is None else is_real_token.to(dtype)
        probability_sum = probability_sum + weights @ probabilities
        chosen = probabilities.topk(experts_per_token, dim=-1).indices.flatten()
        counts.scatter_add_(0, chosen, weights.repeat_interleave(experts_per_token))
        counts[-1] += weights.sum()
    if group is not None:
        dist.all_reduce(counts, group=group)
    num_tokens = counts[-1].clamp(min=1)
    return num_experts * (counts[:-1] / num_tokens * (probability_sum / num_tokens)).sum()
