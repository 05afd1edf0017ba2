"""The way of a micro-batch through a model: token ids in, log-probs of the target tokens and their sum out.

It goes from `ScoringModel.score_targets` to `TokenScorer.forward`, through DeepSpeed's engine where there is one, and
from there to the head (head/log_prob_head.py).

Shapes: B batch, S sequence (padded), T packed tokens, N target tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import backbone_name, first_position
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError
from openrlhf.models.attention.ring_plan import borders_of_samples
from openrlhf.models.head.log_prob_head import HeadScores, LogProbHead, TargetWeights, scores_from_logits
from openrlhf.models.layout_probe import check_layout
from openrlhf.models.moe import load_balancing_loss, num_experts_per_token
from openrlhf.models.rope import RopeByLength


class TargetScores(NamedTuple):
    """The scores that the model gives a micro-batch's target tokens."""

    log_probs: Tensor  # (N,) float32; float64 for a float64 model; without a gradient where weights were given
    weighted_sum: Tensor | None  # scalar, sum of weight * log-prob; None where no weights were given
    aux_loss: Tensor | None  # scalar, this rank's share (see models/moe.py); None where it was not asked for
    is_likeliest: Tensor | None  # (N,) bool: no token has a greater logit, and none with a lower id an equal one
    entropy: Tensor | None  # (N,) of the distribution that predicts the target, in nats; None if not asked for


class _Targets(NamedTuple):
    """Of which tokens the head is asked what; as of `ScoringModel.score_targets`."""

    places: Tensor
    ids: Tensor
    weights: TargetWeights | None
    with_entropy: bool


class _Routing(NamedTuple):
    """The tokens that the experts' loads count, and the ranks over which; as of `ScoringModel.score_targets`."""

    is_real_token: Tensor | None
    group: ProcessGroup | None


class ScoringModel(nn.Module):
    """A causal language model that scores tokens, alone or inside DeepSpeed's engine.

    The engine wraps `trainable_module`; once `attach_engine` has been called, every forward pass goes through it.
    """

    def __init__(self, scorer: TokenScorer, ring_head_stride: int):
        """Args: ring_head_stride: as of `Actor`."""
        super().__init__()
        self.scorer = scorer
        self.trained: TrainedModel | None = None  # engine, schedule and guard, once it is prepared for training
        self._engine: nn.Module | None = None
        self._ring_head_stride = ring_head_stride
        self._checkpoints_reentrantly = False
        self._layouts_looked_at: set[bool] = set()  # whether packed

    @property
    def model(self) -> Any:
        """The Hugging Face model (PEFT's wrapper around it, with LoRA), an nn.Module."""
        return self.scorer.model

    @property
    def config(self) -> PretrainedConfig:
        return self.scorer.base_model.config

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.scorer.parameters()).device

    @property
    def trainable_module(self) -> nn.Module:
        """The module to hand to DeepSpeed."""
        return self.scorer

    def attach_engine(self, engine: nn.Module) -> None:
        """Sends every forward pass through `engine`, which wraps `trainable_module`."""
        object.__setattr__(self, "_engine", engine)  # nn.Module would make the engine, and so itself, a child

    @property
    def engine(self) -> Any:
        """The engine that `attach_engine` was given; None before."""
        return self._engine

    @property
    def is_mixture_of_experts(self) -> bool:
        return num_experts_per_token(self.config) is not None

    def score_targets(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        target_index: Tensor,
        target_ids: Tensor,
        target_weights: TargetWeights | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        sequence_group: ProcessGroup | None = None,
        with_aux_loss: bool = False,
        is_real_token: Tensor | None = None,
        router_group: ProcessGroup | None = None,
        with_entropy: bool = False,
    ) -> TargetScores:
        """Log-probs of a micro-batch's target tokens.

        Args:
            input_ids: (B, S) padded, or (1, T) packed.
            position_ids: the same shape; they restart at each sample of a pack. None: the model counts them itself.
            target_index: (N,) places in the flattened input whose hidden states predict the targets; N may be 0: every
                parameter is part of the graph all the same.
            target_ids: (N,) token ids of the targets.
            target_weights: what each log-prob counts in the loss. With weights, a pass over the vocabulary is saved,
                and only the weighted sum has a gradient; None: the log-probs have one. A function of the log-probs is
                not called where N is 0.
            attention_mask: (B, S) for a padded batch; None for a pack.
            cu_seqlens: (num_samples + 1,) int32 borders of the samples of the whole pack; None for a padded batch.
            max_seqlen: tokens in the pack's longest sample.
            sequence_group: the ranks that share the pack; the inputs are then this rank's `sequence_share` of T tokens.
            with_aux_loss: compute the load-balancing loss of a model with experts.
            is_real_token: (B*S,) or (T,), True for the tokens that the experts' loads count; None: those of
                `attention_mask`, or all of a pack.
            router_group: the ranks whose tokens are counted together for the experts' loads; None: this rank alone.
            with_entropy: compute the entropy of the distribution that predicts each target.

        Raises UserError for a pack whose samples the model would not keep apart, and for an auxiliary loss of a model
        without experts, or one that could have no gradient.
        """
        if cu_seqlens is not None:
            self.check_layout(True, sequence_group)
        if with_aux_loss:
            self._check_aux_loss()
        if is_real_token is None and attention_mask is not None:
            is_real_token = attention_mask.flatten().bool()
        borders = borders_of_samples(cu_seqlens, max_seqlen, sequence_group, self._ring_head_stride, input_ids.device)
        run = self.scorer if self._engine is None else self._engine
        inputs = dict(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **borders)
        return run(
            inputs={name: value for name, value in inputs.items() if value is not None},
            targets=_Targets(target_index, target_ids, target_weights, with_entropy),
            routing=_Routing(is_real_token, router_group) if with_aux_loss else None,
        )

    def check_layout(self, is_packed: bool, sequence_group: ProcessGroup | None) -> None:
        """Refuses a model that computes samples otherwise in packs, or in padded batches, than alone.

        Every rank calls. Only the first call looks; see models/layout_probe.py.
        """
        if is_packed in self._layouts_looked_at:
            return
        self._layouts_looked_at.add(is_packed)  # before: the probe scores packs, too
        try:
            check_layout(self, is_packed, sequence_group)
        except UserError:
            self._layouts_looked_at.remove(is_packed)
            raise

    def _check_aux_loss(self) -> None:
        if not self.is_mixture_of_experts:
            name = type(self.scorer.base_model).__name__
            raise UserError(f"{name} has no experts to balance: set --model.aux_loss_coef 0.")
        if self._checkpoints_reentrantly:
            raise UserError(
                "The auxiliary loss gets no gradient through reentrant gradient checkpointing. "
                "Use the other kind (use_reentrant=False), or set --model.aux_loss_coef 0."
            )


class TokenScorer(nn.Module):
    """The module that DeepSpeed's engine wraps; it holds the Hugging Face model.

    Log-probs are computed at target tokens only, where the model's head allows it.
    """

    def __init__(self, model: nn.Module, temperature: float):
        """Args: model: a causal language model of transformers, or one wrapped by PEFT."""
        super().__init__()
        self.model = model
        self.temperature = temperature
        self._backbone_name = backbone_name(self.base_model)
        self._first_position = first_position(self.base_model)
        self._rope = RopeByLength(self.base_model)

    @property
    def base_model(self) -> PreTrainedModel:
        """The causal language model itself, also inside PEFT's wrapper (adapters sit in its layers)."""
        model: Any = self.model
        return model if isinstance(model, PreTrainedModel) else model.get_base_model()

    @property
    def _backbone(self) -> nn.Module:
        """What computes hidden states; the model as a whole where that cannot be told."""
        name = self._backbone_name
        return self.base_model if name is None else self.base_model.get_submodule(name)

    def forward(self, inputs: dict[str, Any], targets: _Targets, routing: _Routing | None) -> TargetScores:
        """Args: inputs: of transformer and attention, by name; routing: None: no auxiliary loss is asked for."""
        inputs = inputs | {"use_cache": False}
        if self._rope.is_needed:
            self._rope.look_at(inputs)
        if inputs["input_ids"].numel() == 0:  # a rank whose share of a short pack is empty computes one token
            inputs |= {name: inputs[name].new_zeros(1, 1) for name in ("input_ids", "position_ids")}
            counts_nowhere = torch.zeros(1, dtype=torch.bool, device=inputs["input_ids"].device)
            routing = routing and routing._replace(is_real_token=counts_nowhere)
        if "position_ids" not in inspect.signature(self._backbone.forward).parameters:
            inputs.pop("position_ids", None)
        elif "position_ids" in inputs and self._first_position:
            inputs["position_ids"] = inputs["position_ids"] + self._first_position
        if routing is not None:
            inputs["output_router_logits"] = True
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
            aux_loss=None if routing is None else self._aux_loss(outputs, routing),
            is_likeliest=scores.is_likeliest[:num_targets],
            entropy=None if scores.entropy is None else scores.entropy[:num_targets],
        )

    def _outputs_and_scores(self, inputs: dict[str, Any], targets: _Targets) -> tuple[Any, HeadScores]:
        """The model's outputs, and the scores by its head, or by all its logits where the head is not plain."""
        places, ids, weights, with_entropy = targets
        head = self.base_model.get_output_embeddings()
        if isinstance(head, LogProbHead):
            outputs = self._backbone(**inputs)
            return outputs, head(outputs[0].flatten(0, 1)[places], ids, weights, with_entropy)
        outputs = self.base_model(**inputs)
        logits = outputs.logits.flatten(0, 1)[places]
        return outputs, scores_from_logits(logits, ids, weights, with_entropy, self.temperature)

    def _aux_loss(self, outputs: Any, routing: _Routing) -> Tensor:
        experts_per_token = num_experts_per_token(self.base_model.config)
        assert experts_per_token is not None, "an auxiliary loss needs a model with experts"
        found = getattr(outputs, "router_logits", None) or ()
        router_logits = tuple(layer.flatten(0, -2) for layer in found if layer is not None)
        if not router_logits:  # its layers are all dense, or it does not tell them
            name = type(self.base_model).__name__
            raise UserError(
                f"{name} tells no router's logits, so no load can be balanced: set --model.aux_loss_coef 0."
            )
        return load_balancing_loss(router_logits, experts_per_token, *routing)
