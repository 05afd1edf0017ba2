"""The way of a micro-batch through a causal language model: token ids in, log-probs of the target tokens and their sum
out.

It goes from `ScoringModel.score_targets` to `TokenScorer.forward` (see prepared_model.py), and from there to the head
(head/log_prob_head.py).

Shapes: B batch, S sequence (padded), T packed tokens, N target tokens, K words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrlhf.models.head.log_prob_head import HeadScores, LogProbHead, TargetWeights, scores_from_logits
from openrlhf.models.prepared_model import PreparedModel, Routing, TransformerScorer


class TargetScores(NamedTuple):
    """The scores that the model gives a micro-batch's target tokens."""

    log_probs: Tensor  # (N,) float32; float64 for a float64 model; without a gradient where weights were given
    weighted_sum: Tensor | None  # scalar, sum of weight * log-prob; None where no weights were given
    aux_loss: Tensor | None  # scalar, this rank's share (see models/moe.py); None where it was not asked for
    is_likeliest: Tensor  # (N,) bool: no token has a greater logit, and none with a lower id an equal one
    entropy: Tensor | None  # (N,) of the distribution that predicts the target, in nats; None if not asked for

    @property
    def with_graph(self) -> Tensor:
        """What of the scores has a gradient."""
        return self.log_probs if self.weighted_sum is None else self.weighted_sum


class _Targets(NamedTuple):
    """Of which tokens the head is asked what; as of `ScoringModel.score_targets`."""

    places: Tensor
    ids: Tensor
    weights: TargetWeights | None
    with_entropy: bool


class ScoringModel(PreparedModel):
    """A causal language model that scores tokens, alone or inside DeepSpeed's engine."""

    def score_targets(
        self,
        *,
        target_index: Tensor,
        target_ids: Tensor,
        target_weights: TargetWeights | None = None,
        with_entropy: bool = False,
        **inputs: Any,
    ) -> TargetScores:
        """Log-probs of a micro-batch's target tokens.

        Args:
            target_index: (N,) places in the flattened input whose hidden states predict the targets; N may be 0: every
                parameter is part of the graph all the same.
            target_ids: (N,) token ids of the targets.
            target_weights: what each log-prob counts in the loss. With weights, a pass over the vocabulary is saved,
                and only the weighted sum has a gradient; None: the log-probs have one. A function of the log-probs is
                not called where N is 0.
            with_entropy: compute the entropy of the distribution that predicts each target.
            inputs: the micro-batch, as of `PreparedModel.compute`, which also says what is refused.
        """
        return self.compute(targets=_Targets(target_index, target_ids, target_weights, with_entropy), **inputs)

    def probe_states(self, places: Tensor, words: Tensor, **inputs: Any) -> Tensor:
        """(N, K) log-probs of the words, less their mean."""
        log_probs = self.score_targets(
            target_index=places.repeat_interleave(len(words)), target_ids=words.repeat(len(places)), **inputs
        ).log_probs.view(len(places), len(words))
        return log_probs - log_probs.mean(1, keepdim=True)


class TokenScorer(TransformerScorer):
    """The module that DeepSpeed's engine wraps; it holds the Hugging Face model.

    Log-probs are computed at target tokens only, where the model's head allows it.
    """

    def __init__(self, model: nn.Module, temperature: float):
        """Args: model: a causal language model of transformers, or one wrapped by PEFT."""
        super().__init__(model)
        self.temperature = temperature

    def forward(self, inputs: dict[str, Any], targets: _Targets, routing: Routing | None) -> TargetScores:
        """Args: inputs: of transformer and attention, by name; routing: None: no auxiliary loss is asked for."""
        inputs, routing = self._as_taken(inputs, routing)
        # Without a target one row is scored all the same, and left out of the result: every parameter is then part of
        # the graph, and ranks that gather parameters (ZeRO-3) or reduce gradients stay in step.
        num_targets = targets.ids.shape[0]
        if num_targets == 0:
            weights = None if targets.weights is None else torch.zeros_like
            targets = _Targets(targets.places.new_zeros(1), targets.ids.new_zeros(1), weights, targets.with_entropy)
        outputs, scores = self._outputs_and_scores(inputs, targets)
        return TargetScores(
            log_probs=scores.log_probs[:num_targets],
            weighted_sum=scores.weighted_sum,
            aux_loss=self._aux_loss(outputs, routing),
            is_likeliest=scores.is_likeliest[:num_targets],
            entropy=None if scores.entropy is None else scores.entropy[:num_targets],
        )

    def _outputs_and_scores(self, inputs: dict[str, Any], targets: _Targets) -> tuple[Any, HeadScores]:
        """The model's outputs, and the scores by its head, or by all its logits where the head is not plain."""
        places, ids, weights, with_entropy = targets
        head = self.base_model.get_output_embeddings()
        if isinstance(getattr(head, "original_module", head), LogProbHead):  # PEFT's copy that is trained, around it
            outputs, hidden = self._states_at(places, inputs)
            return outputs, head(hidden, ids, weights, with_entropy)
        outputs = self.base_model(**inputs)
        logits = outputs.logits.flatten(0, 1)[places]
        return outputs, scores_from_logits(logits, ids, weights, with_entropy, self.temperature)
