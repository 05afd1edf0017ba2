"""A reward model: a transformer with a head of one output, whose value is read at each sequence's last token.

Its class is transformers' own for sequence classification with one label, so its folder opens there. The value at one
token of a causal model depends on the tokens before it alone, so a reward does not depend on batch or padding.

Shapes: B batch, S sequence (padded), T packed tokens, E sequence ends that this rank holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PretrainedConfig, PreTrainedModel

from openrlhf.engine.parameters import whole_for_writing
from openrlhf.errors import UserError
from openrlhf.models.attention.choice import check_causal, check_packable, choose_attention
from openrlhf.models.attention.ring_plan import borders_of_samples
from openrlhf.models.layers import LoraSettings, add_lora
from openrlhf.models.loading import PARAM_DTYPES, load_config, loading_in_parts
from openrlhf.models.token_scorer import ScoringModel

HEAD = "score"  # the name of the head in transformers' classes


class RewardModel(ScoringModel):
    """Gives each sequence a number; trained like an `Actor`."""

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
        ring_attn_size: int = 1,
        ring_head_stride: int = 0,
        trust_remote_code: bool = False,
        head_seed: int = 42,
    ):
        """
        Args:
            pretrain_or_model: a causal language model or a reward model, as a folder or hub name; or a model of
                transformers for sequence classification, which keeps its dtype.
            head_seed: of the head's first weights, where the folder has no head.
            others: as of `Actor`; with LoRA the head is trained whole.

        Raises UserError where transformers has no classifier of that type, or one whose head is not plain.
        """
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        attention = choose_attention(attn_implementation, device_type, packing_samples, ring_attn_size)
        if isinstance(pretrain_or_model, str):
            with loading_in_parts(ds_config):
                model = _load(pretrain_or_model, param_dtype, attention, trust_remote_code, head_seed)
        else:
            model = pretrain_or_model
            if attention is not None:
                model.set_attn_implementation(attention)
        _check_head(model)
        if packing_samples:
            check_packable(type(model), model.config)
            check_causal(model)
        lora = LoraSettings(lora_rank, lora_alpha, lora_dropout, target_modules)
        super().__init__(ValueScorer(add_lora(model, lora) if lora_rank > 0 else model), ring_head_stride)

    def score_sequences(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        last_index: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        sequence_group: ProcessGroup | None = None,
    ) -> Tensor:
        """(E,) float32 (float64 of a float64 model) values, with gradients.

        Args:
            last_index: (E,) places in the flattened input of the tokens whose value is read.
            others: as of `ScoringModel.score_targets`.
        """
        borders = borders_of_samples(cu_seqlens, max_seqlen, sequence_group, self._ring_head_stride, input_ids.device)
        run: Any = self.scorer if self._engine is None else self._engine
        inputs = dict(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **borders)
        return run(inputs=inputs, last_index=last_index)


class ValueScorer(nn.Module):
    """The module that DeepSpeed's engine wraps; it holds the model of transformers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def base_model(self) -> PreTrainedModel:
        """The classifier itself, also inside PEFT's wrapper."""
        model: Any = self.model
        return model if isinstance(model, PreTrainedModel) else model.get_base_model()

    def forward(self, inputs: dict[str, Any], last_index: Tensor) -> Tensor:
        """See `RewardModel.score_sequences`."""
        num_values = len(last_index)
        if inputs["input_ids"].numel() == 0:  # a rank whose share of a short pack is empty computes one token
            inputs = inputs | {name: inputs[name].new_zeros(1, 1) for name in ("input_ids", "position_ids")}
        if num_values == 0:  # every parameter is part of the graph all the same
            last_index = last_index.new_zeros(1)
        model: Any = self.base_model
        hidden = getattr(model, model.base_model_prefix)(**inputs, use_cache=False)[0].flatten(0, 1)
        values = getattr(model, HEAD)(hidden[last_index])[:, 0]
        return values.to(torch.promote_types(values.dtype, torch.float32))[:num_values]


def _load(
    path: str, param_dtype: str, attn_implementation: str | None, trust_remote_code: bool, head_seed: int
) -> PreTrainedModel:
    config = load_config(path, trust_remote_code)
    model_class = _class_of(config, path)
    config.num_labels = 1
    model, info = model_class.from_pretrained(
        path, config=config, dtype=PARAM_DTYPES[param_dtype], attn_implementation=attn_implementation,
        output_loading_info=True,
    )  # fmt: skip
    if any(name.startswith(f"{HEAD}.") for name in info["missing_keys"]):
        _start_head(getattr(model, HEAD), head_seed)
    return model


def _class_of(config: PretrainedConfig, path: str) -> type[PreTrainedModel]:
    found: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        raise UserError(
            f"{path} is a {config.model_type} model, of which transformers has no classifier: choose another base for "
            "the reward model."
        )
    return found


def _check_head(model: PreTrainedModel) -> None:
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        found = type(head).__name__ if not isinstance(head, nn.Linear) else f"{head.out_features} outputs"
        raise UserError(
            f"{type(model).__name__} has no head `{HEAD}` of one output (found: {found}): it cannot be a reward model."
        )


@torch.no_grad()
def _start_head(head: nn.Linear, seed: int) -> None:
    """Small random weights by the seed alone, the same on every rank and in every layout."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, head.in_features, generator=draw) / (head.in_features + 1)
    with whole_for_writing(head.parameters()):
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()
