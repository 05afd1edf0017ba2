"""A reward model: a transformer with a head of one output, whose value is read at each sequence's last token.

Its class is transformers' own for sequence classification with one label, so its folder opens there. The value at one
token of a causal model depends on the tokens before it alone, so a reward does not depend on batch or padding.

Shapes: B batch, S sequence (padded), H hidden, N places, E sequence ends that this rank holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.errors import UserError
from openrlhf.models.attention.choice import as_taken, choose_attention
from openrlhf.models.classifier import HEAD, classifier_facts, prepare_classifier
from openrlhf.models.loading import loading_in_parts, set_experts_implementation
from openrlhf.models.lora import lora_of
from openrlhf.models.next_token import ActorOutput, NextTokens
from openrlhf.models.prepared_model import PreparedModel, Routing, TransformerScorer
from openrlhf.models.reward_statistics import check_reward_statistics


class SequenceScores(NamedTuple):
    """The values that the model reads in a micro-batch."""

    values: Tensor  # (E,) float32 (float64 of a float64 model), with gradients
    hidden: Tensor  # (E, H) the states that the head has read
    aux_loss: Tensor | None  # scalar, this rank's share (see models/moe.py); None where it was not asked for

    @property
    def with_graph(self) -> Tensor:
        """What of the scores has a gradient."""
        return self.values


class RewardModel(PreparedModel):
    """Gives each sequence a number; trained like an `Actor`.

    `strategy.prepare`, `WindowStep`, `evaluate`, `Trainer` and `strategy.save_model` take it as they take an actor.
    `classifier_facts` (models/classifier.py) refuses, before data are prepared, what this constructor would refuse.

    Attributes:
        head_begins: the folder had no head; it starts by `head_seed`.
        normalizes: `forward` rewards lose the mean and the deviation that the config holds, in evaluation mode.
    """

    scorer: ValueScorer

    def __init__(
        self,
        pretrain_or_model: str | PreTrainedModel,
        attn_implementation: str = "auto",
        param_dtype: str = "bf16",
        lora_rank: int = 0,
        lora_alpha: int = 16,
        lora_dropout: float = 0.0,
        target_modules: Sequence[str] | str | None = None,
        ds_config: dict | None = None,
        packing_samples: bool = False,
        *,
        load_in_4bit: bool = False,
        use_liger_kernel: bool = False,
        ring_attn_size: int = 1,
        ring_head_stride: int = 0,
        trust_remote_code: bool = False,
        device_map: Any = None,
        experts_implementation: str | None = None,
        head_prefix: str = HEAD,
        head_seed: int = 42,
        begin_head: bool = False,
        lora: LoraConfig | None = None,
        **unknown: Any,
    ):
        """
        Args:
            pretrain_or_model: a causal language model or a reward model, of a folder or the hub; or one in memory.
            head_prefix: the head's name among the folder's weights; it is exported under transformers' own, `score`.
            head_seed: of the head's first weights, where the folder has no head. begin_head: do not take the folder's.
            others: as of `Actor`; with LoRA the head is trained whole.

        Raises UserError as `Actor`; where transformers has no classifier of that type, or one whose head is not plain,
        or the folder holds a classifier with several labels.
        """
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        attn_implementation = as_taken("RewardModel", attn_implementation, device_type, unknown)
        facts = classifier_facts(pretrain_or_model, param_dtype, trust_remote_code)
        attention = choose_attention(attn_implementation, device_type, packing_samples, ring_attn_size, facts)
        with loading_in_parts(ds_config):
            model, head_begins = prepare_classifier(
                pretrain_or_model,
                facts,
                is_packed=packing_samples,
                use_liger_kernel=use_liger_kernel,
                lora=lora or lora_of(lora_rank, lora_alpha, lora_dropout, target_modules),
                param_dtype=param_dtype,
                attn_implementation=attention.name,
                load_in_4bit=load_in_4bit,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                head_prefix=head_prefix,
                head_seed=head_seed,
                begin_head=begin_head,
            )
        super().__init__(ValueScorer(model), ring_head_stride, attention, ds_config)
        self.head_begins, self.normalizes = head_begins, False
        set_experts_implementation(self.scorer.base_model, experts_implementation)
        if packing_samples:
            self._check_packs_now(ring_attn_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_output: bool = False,
        *,
        ring_attn_group: ProcessGroup | None = None,
        packed_seq_lens: Sequence[int] | None = None,
        pad_sequence: bool = False,
    ) -> Any:
        """(B,) float32 rewards of rows.

        Args:
            input_ids: (B, S) token ids, padded left or right; with `packed_seq_lens` (1, T), one row after the other.
            attention_mask: (B, S), 1 for real tokens; None: all are.
            return_output: an `ActorOutput` comes back beside the rewards.
            packed_seq_lens: tokens of each row of a pack; no reward depends on another row.
            pad_sequence: part of OpenRLHF's interface; no row needs padding.

        Raises UserError for `ring_attn_group`.
        """
        if ring_attn_group is not None:
            raise UserError(
                "RewardModel.forward computes rows on one rank each, and ring_attn_group asks for a ring: leave it "
                "out, or train by RewardModelTrainer, whose sequences a ring may share."
            )
        rows = NextTokens.of(input_ids, attention_mask, None, packed_seq_lens)
        mask = rows.is_real.long()
        places = torch.arange(mask.shape[1], device=mask.device) * mask
        scores = self.score_sequences(
            input_ids=rows.sequences,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            attention_mask=mask,
            last_index=places.max(1).values + torch.arange(len(mask), device=mask.device) * mask.shape[1],
            with_aux_loss=return_output and self.is_mixture_of_experts,
        )
        rewards = self.normal(scores.values)
        aux_loss = rewards.new_zeros(()) if scores.aux_loss is None else scores.aux_loss
        return (rewards, ActorOutput(aux_loss, None)) if return_output else rewards

    def normal(self, rewards: Tensor) -> Tensor:
        """The rewards less their mean, over their deviation, where the model `normalizes`."""
        if not self.normalizes or self.training:
            return rewards
        # Those of the model before its training are taken away.
        check_reward_statistics(self.config, self.config.name_or_path or "the model")
        return (rewards - self.config.mean) / self.config.std

    def score_sequences(self, *, last_index: Tensor, **inputs: Any) -> SequenceScores:
        """The values at some tokens.

        Args:
            last_index: (E,) places in the flattened input of the tokens whose value is read; E may be 0: every
                parameter is part of the graph all the same.
            inputs: the micro-batch, as of `PreparedModel.compute`, which also says what is refused.
        """
        return self.compute(last_index=last_index, **inputs)

    def probe_states(self, places: Tensor, words: Tensor, **inputs: Any) -> Tensor:
        """(N, H) the hidden states themselves."""
        return self.score_sequences(last_index=places, **inputs).hidden


class ValueScorer(TransformerScorer):
    """The module that DeepSpeed's engine wraps; it holds the model of transformers."""

    def forward(self, inputs: dict[str, Any], last_index: Tensor, routing: Routing | None) -> SequenceScores:
        """See `RewardModel.score_sequences`."""
        inputs, routing = self._as_taken(inputs, routing)
        num_values = len(last_index)
        if num_values == 0:
            last_index = last_index.new_zeros(1)
        outputs, hidden = self._states_at(last_index, inputs)
        values = self.base_model.get_submodule(HEAD)(hidden)[:, 0]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        return SequenceScores(values[:num_values], hidden[:num_values], self._aux_loss(outputs, routing))


def get_llm_for_sequence_regression(
    model_name_or_path: str,
    model_type: str,
    *,
    param_dtype: str = "bf16",
    bf16: bool | None = None,
    attn_implementation: str = "auto",
    use_flash_attention_2: bool = False,
    normalize_reward: bool = False,
    init_value_head: bool = False,
    value_head_prefix: str = HEAD,
    **settings: Any,
) -> RewardModel:
    """A reward model by OpenRLHF's signature, in evaluation mode, as transformers loads models.

    Args:
        model_type: "reward".
        bf16: False: float32, in place of `param_dtype`.
        use_flash_attention_2: in place of `attn_implementation`.
        normalize_reward: as of `RewardModel.normalizes`.
        init_value_head: begin the head anew where the folder has one, too.
        value_head_prefix: `head_prefix` of `RewardModel`.
        settings: more arguments of `RewardModel`.

    Raises UserError as `RewardModel`; for another `model_type`, and where normal rewards lack mean and deviation.
    """
    if model_type != "reward":
        raise UserError(f"model_type {model_type}: reward models alone are made here (model_type reward).")
    model = RewardModel(
        model_name_or_path,
        "flash_attention_2" if use_flash_attention_2 else attn_implementation,
        param_dtype if bf16 is None else "bf16" if bf16 else "fp32",
        head_prefix=value_head_prefix,
        begin_head=init_value_head,
        **settings,
    )
    if normalize_reward:
        check_reward_statistics(model.config, model_name_or_path)
    model.normalizes = normalize_reward
    return model.eval()
