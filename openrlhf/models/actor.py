"""The causal language model as the rest of the library sees it, with OpenRLHF's constructor.

How it scores a micro-batch stands in token_scorer.py; what it has in common with other models, in prepared_model.py;
how it is loaded and made ready, in loading.py.

Shapes: B batch, S sequence (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from openrlhf.engine.parameters import is_partitioned
from openrlhf.models.attention.choice import choose_attention
from openrlhf.models.loading import facts_of, loading_in_parts, prepare_causal_lm
from openrlhf.models.lora import LoraSettings
from openrlhf.models.token_scorer import ScoringModel, TokenScorer


class Actor(ScoringModel):
    """A causal language model, from a folder, a hub name or memory, that scores tokens and is trained."""

    def __init__(
        self,
        pretrain_or_model: str | PreTrainedModel,
        attn_implementation: str = "auto",
        param_dtype: str = "bf16",
        load_in_4bit: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        lora_dropout: float = 0.0,
        target_modules: Sequence[str] | str | None = None,
        ds_config: dict | None = None,
        device_map: Any = None,
        packing_samples: bool = False,
        temperature: float = 1.0,
        use_liger_kernel: bool = False,
        *,
        ring_attn_size: int = 1,
        ring_head_stride: int = 0,
        trust_remote_code: bool = False,
    ):
        """
        Args:
            pretrain_or_model: a folder, a hub name, or a model of transformers, which keeps its dtype and its place.
            attn_implementation: "auto", or a name that `choose_attention` knows.
            param_dtype: "bf16", "fp16" or "fp32": what weights are loaded in.
            lora_rank: above 0, the model is frozen and gets adapters in `target_modules` (default: all linear layers).
            ds_config: DeepSpeed's configuration; under ZeRO-3 weights are then loaded in shards.
            packing_samples: `score_targets` will be given packs.
            temperature: divides the logits.
            ring_attn_size: how many ranks share one pack; `score_targets` is then given their group.
            ring_head_stride: how many key heads travel round the ring at a time; 0: all (see models/attention/ring.py).

        Raises:
            UserError: no model there, a package missing, or attention that cannot be packed.
        """
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        facts = facts_of(pretrain_or_model, param_dtype, trust_remote_code)
        attention = choose_attention(attn_implementation, device_type, packing_samples, ring_attn_size, facts)
        with loading_in_parts(ds_config):
            model = prepare_causal_lm(
                pretrain_or_model,
                attn_implementation=attention.name,
                param_dtype=param_dtype,
                load_in_4bit=load_in_4bit,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
                is_packed=packing_samples,
                use_liger_kernel=use_liger_kernel,
                temperature=temperature,
                lora=LoraSettings(lora_rank, lora_alpha, lora_dropout, target_modules),
            )
        super().__init__(TokenScorer(model, temperature), ring_head_stride, attention)
        if packing_samples:
            self._check_packs_now(ring_attn_size)

    def forward(self, sequences: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Log-probs of each next token.

        Args:
            sequences: (B, S) token ids, padded left or right.
            attention_mask: (B, S), 1 for real tokens; None: all are.

        Returns:
            (B, S-1) float32: entry t is the log-prob of token t+1, and 0.0 where token t or t+1 is padding.
        """
        mask = torch.ones_like(sequences) if attention_mask is None else attention_mask
        is_real = mask.bool()
        rows, places = (is_real[:, :-1] & is_real[:, 1:]).nonzero(as_tuple=True)
        scores = self.score_targets(
            input_ids=sequences,
            position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
            attention_mask=mask,
            target_index=rows * sequences.shape[1] + places,
            target_ids=sequences[rows, places + 1],
        )
        log_probs = scores.log_probs.new_zeros(sequences.shape[0], sequences.shape[1] - 1)
        return log_probs.index_put((rows, places), scores.log_probs)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Token ids, prompt included, by the Hugging Face model's `generate`.

        Under ZeRO-3 all ranks call, and go on together until the last one is done: each step gathers every weight.
        """
        if any(is_partitioned(parameter) for parameter in self.model.parameters()):
            kwargs = {"synced_gpus": True} | kwargs
        return self.model.generate(input_ids=input_ids, **kwargs)
