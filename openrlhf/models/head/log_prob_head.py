"""The output layer of a causal language model, which can also answer with scores of target tokens instead of logits.

Log-probs, their weighted sum, whether each target was the likeliest token, and the entropy of the distribution that it
was taken from: all by one scan of the vocabulary in tiles (tiles.py), or from a model's own logits.

Shapes: N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrlhf.models.head.tiles import PLAIN, KeptTiles, LogitTransform, TiledHead, gradients, scan

KEPT_BYTES_CPU = 128 * 2**20
KEPT_BYTES_ACCELERATOR = 512 * 2**20

# (N,) float32, what each log-prob counts in the weighted sum; or a function that computes that from the log-probs (N,).
# The weights are constants for the gradient, also where they are computed.
TargetWeights = Tensor | Callable[[Tensor], Tensor]


class HeadScores(NamedTuple):
    """The scores that the head gives target tokens; all (N,) but the sum."""

    log_probs: Tensor  # float32, or float64 for a float64 model; with a gradient where no weights were given
    weighted_sum: Tensor | None  # scalar, sum of weight * log-prob, with a gradient; None without weights
    is_likeliest: Tensor  # bool: no token has a greater logit; of equal ones that with the lowest id is the likeliest
    entropy: Tensor | None  # of the predicted distribution, in nats, as the log-probs' dtype; None if not asked for


class LogProbHead(nn.Linear):
    """Takes the place of a plain linear head, sharing its parameters (tied ones stay tied).

    It is called as a module in both modes, so that whatever hangs on modules (ZeRO-3 gathers a module's weights before
    its forward and backward pass) works as it does with the head that it replaces.
    """

    def __init__(self, head: nn.Linear, transform: LogitTransform):
        nn.Module.__init__(self)  # nn.Linear's own would allocate another weight
        self.in_features = head.in_features
        self.out_features = head.out_features
        self.weight = head.weight
        self.bias = head.bias
        self.transform = transform

    def forward(
        self,
        hidden: Tensor,
        target_ids: Tensor | None = None,
        target_weights: TargetWeights | None = None,
        with_entropy: bool = False,
    ) -> Any:
        """Logits (..., V) of hidden states (..., H); or, given target ids (N,), `HeadScores` for hidden (N, H)."""
        if target_ids is None:
            return super().forward(hidden)
        arguments = (hidden, self.weight, self.bias, target_ids)
        if target_weights is None or self.weight.dtype == torch.float16:  # float16: see weighted_log_probs
            scores = target_log_probs(*arguments, self.transform, with_entropy=with_entropy)
            return _with_weighted_sum(scores, target_weights)
        return weighted_log_probs(*arguments, target_weights, self.transform, with_entropy=with_entropy)


def scores_from_logits(
    logits: Tensor, target_ids: Tensor, target_weights: TargetWeights | None, with_entropy: bool, temperature: float
) -> HeadScores:
    """The same scores from a model's own logits (N, V), for models whose head is not plain."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    by_token = logits.log_softmax(-1)
    log_probs = by_token.gather(1, target_ids[:, None])[:, 0]
    is_likeliest = logits.argmax(-1) == target_ids
    entropy = torch.special.entr(by_token.detach().exp()).sum(-1) if with_entropy else None
    return _with_weighted_sum(HeadScores(log_probs, None, is_likeliest, entropy), target_weights)


def target_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    transform: LogitTransform = PLAIN,
    tile_bytes: int | None = None,
    with_entropy: bool = False,
) -> HeadScores:
    """log softmax(transform(hidden @ weight.T + bias)) at the target ids, with a gradient; no weighted sum.

    Args:
        hidden: (N, H), N at least 1.
        weight: (V, H); bias: (V,) or None.
        target_ids: (N,) int64.
        tile_bytes: size of one tile of float32 logits; by default 8 MiB on the CPU, 256 MiB elsewhere.
        with_entropy: compute the entropy too, in the same scan.
    """
    head = TiledHead(hidden.to(weight.dtype), weight, bias, target_ids, transform, tile_bytes)
    log_probs, is_likeliest, entropy = _TargetLogProbs.apply(head.hidden, weight, bias, head, with_entropy)
    return HeadScores(log_probs, None, is_likeliest, entropy)


def weighted_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_ids: Tensor,
    target_weights: TargetWeights,
    transform: LogitTransform = PLAIN,
    tile_bytes: int | None = None,
    kept_bytes: int | None = None,
    with_entropy: bool = False,
) -> HeadScores:
    """The log-probs of `target_log_probs`, without a gradient, and sum(target_weights * log_probs), with one.

    The gradients are computed with the values, as the weights are known; the backward pass only scales them. That saves
    the second computation of the logits where they may be kept. In float16 they would vanish, as the scale of the loss
    comes too late: give those models `target_log_probs`.

    Args:
        target_weights: (N,) float32, or a function of the log-probs, called once between the two.
        kept_bytes: how much logits may take from their sum to their gradient; by default 128 MiB on the CPU, 512 MiB
            elsewhere.
    """
    head = TiledHead(hidden.to(weight.dtype), weight, bias, target_ids, transform, tile_bytes)
    if kept_bytes is None:
        kept_bytes = KEPT_BYTES_CPU if head.is_on_cpu else KEPT_BYTES_ACCELERATOR
    return HeadScores(
        *_WeightedLogProbs.apply(head.hidden, weight, bias, head, target_weights, kept_bytes, with_entropy)
    )


def _with_weighted_sum(scores: HeadScores, target_weights: TargetWeights | None) -> HeadScores:
    """Adds the weighted sum of log-probs that have a gradient of their own, if there are weights."""
    if target_weights is None:
        return scores
    weights = _weights(target_weights, scores.log_probs)
    return scores._replace(weighted_sum=(scores.log_probs * weights).sum())


def _weights(target_weights: TargetWeights, log_probs: Tensor) -> Tensor:
    if isinstance(target_weights, Tensor):
        return target_weights
    weights = target_weights(log_probs.detach()).detach()
    assert weights.shape == log_probs.shape, f"weights {tuple(weights.shape)} for log-probs {tuple(log_probs.shape)}"
    return weights


class _TargetLogProbs(torch.autograd.Function):
    """(log-probs with a gradient, is_likeliest, entropy or None)"""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: TiledHead, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        found = scan(head, None, with_entropy)
        # The weight is saved as the very Parameter: ZeRO-3 empties it after the forward pass and fills it again before
        # the backward pass of the module that called this.
        ctx.save_for_backward(hidden, weight, bias, head.target_ids, found.log_sum_exp)
        ctx.transform, ctx.tile_bytes = head.transform, head.tile_bytes
        _mark_constant(ctx, found.is_likeliest, found.entropy)
        return found.target_logits - found.log_sum_exp, found.is_likeliest, found.entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target_ids, log_sum_exp = ctx.saved_tensors
        head = TiledHead(hidden, weight, bias, target_ids, ctx.transform, ctx.tile_bytes)
        return *gradients(head, log_sum_exp, grads[0], ctx.needs_input_grad, kept=None), None, None


class _WeightedLogProbs(torch.autograd.Function):
    """(log-probs without a gradient, weighted sum with one, is_likeliest, entropy or None)"""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: TiledHead,
        target_weights: TargetWeights,
        kept_bytes: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        fits = hidden.shape[0] * weight.shape[0] * hidden.element_size() <= kept_bytes
        kept: KeptTiles | None = {} if fits and any(ctx.needs_input_grad) else None
        found = scan(head, kept, with_entropy)
        log_probs = found.target_logits - found.log_sum_exp
        weights = _weights(target_weights, log_probs)
        ctx.gradients = gradients(head, found.log_sum_exp, weights, ctx.needs_input_grad, kept)
        _mark_constant(ctx, log_probs, found.is_likeliest, found.entropy)
        return log_probs, (log_probs * weights).sum(), found.is_likeliest, found.entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients are scaled in place: there is one backward pass"
        parts, ctx.gradients = ctx.gradients, None
        scaled = [None if part is None else part.mul_(grads[1]) for part in parts]
        return *scaled, None, None, None, None


def _mark_constant(ctx: Any, *outputs: Tensor | None) -> None:
    """Outputs without a gradient; autograd wants them all in one call."""
    ctx.mark_non_differentiable(*(output for output in outputs if output is not None))
