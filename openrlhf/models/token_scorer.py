"""The module that DeepSpeed's engine wraps: token ids in, log-probs of the target tokens and their sum out.

Shapes: B batch, S sequence (padded), T packed tokens, N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.moe import load_balancing_loss, num_experts_per_token


class TokenScorer(nn.Module):
    """Holds the Hugging Face model and computes log-probs, at target tokens only where its head allows it."""

    def __init__(self, model: nn.Module, temperature: float):
        """Args: model: a causal language model of transformers, or one wrapped by PEFT."""
        super().__init__()
        self.model = model
        self.temperature = temperature

    @property
    def base_model(self) -> PreTrainedModel:
        """The causal language model itself, also inside PEFT's wrapper (adapters sit in its layers)."""
        model: Any = self.model
        return model if isinstance(model, PreTrainedModel) else model.get_base_model()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        target_index: Tensor,
        target_ids: Tensor,
        target_weights: Tensor | None,
        attention_kwargs: dict[str, Any],
        with_aux_loss: bool,
        is_real_token: Tensor | None,
        router_group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(log_probs (N,), weighted sum or None, aux_loss or None); arguments as of `Actor.score_targets`."""
        inputs = dict(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **attention_kwargs)
        if "position_ids" in inspect.signature(self._backbone.forward).parameters:
            inputs["position_ids"] = position_ids
        if with_aux_loss:
            inputs["output_router_logits"] = True
        # Without a target one row is scored all the same, and left out of the result: every parameter is then part of
        # the graph, and ranks that gather parameters (ZeRO-3) or reduce gradients stay in step.
        num_targets = target_ids.shape[0]
        if num_targets == 0:
            target_index, target_ids = target_index.new_zeros(1), target_ids.new_zeros(1)
            target_weights = None if target_weights is None else target_weights.new_zeros(1)
        outputs, log_probs, weighted_sum = self._outputs_and_scores(inputs, target_index, target_ids, target_weights)
        aux_loss = self._aux_loss(outputs, is_real_token, router_group) if with_aux_loss else None
        return log_probs[:num_targets], weighted_sum, aux_loss

    @property
    def _backbone(self) -> nn.Module:
        return getattr(self.base_model, self.base_model.base_model_prefix)

    def _outputs_and_scores(
        self, inputs: dict[str, Any], target_index: Tensor, target_ids: Tensor, target_weights: Tensor | None
    ) -> tuple[Any, Tensor, Tensor | None]:
        """The model's outputs, log-probs, and the weighted sum if there are weights."""
        head = self.base_model.get_output_embeddings()
        if isinstance(head, LogProbHead):
            outputs = self._backbone(**inputs)
            scores = head(outputs[0].flatten(0, 1)[target_index], target_ids, target_weights)
            return outputs, *((scores, None) if target_weights is None else scores)
        outputs = self.base_model(**inputs)
        logits = outputs.logits.flatten(0, 1)[target_index]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        log_probs = logits.log_softmax(-1).gather(1, target_ids[:, None])[:, 0]
        return outputs, log_probs, None if target_weights is None else (log_probs * target_weights).sum()

    def _aux_loss(self, outputs: Any, is_real_token: Tensor | None, router_group: ProcessGroup | None) -> Tensor:
        experts_per_token = num_experts_per_token(self.base_model.config)
        assert experts_per_token is not None, "an auxiliary loss needs a model with experts"
        router_logits = tuple(layer.flatten(0, -2) for layer in outputs.router_logits)
        return load_balancing_loss(router_logits, experts_per_token, is_real_token, router_group)
