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
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.engine.parameters import is_partitioned
from openrlhf.models.attention.choice import as_taken, choose_attention
from openrlhf.models.loading import facts_of, loading_in_parts, prepare_causal_lm, set_experts_implementation
from openrlhf.models.lora import lora_of
from openrlhf.models.next_token import ActorOutput, NextTokens
from openrlhf.models.token_scorer import ScoringModel, TokenScorer
from openrlhf.parallel.collectives import SumOverRanks


class Actor(ScoringModel):
    """A causal language model, from a folder, a hub name or memory, that scores tokens and is trained.

    Attributes: adapter_name_or_path: of the adapter that it starts from; None: it starts as its base.
    """

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
        experts_implementation: str | None = None,
        lora: LoraConfig | None = None,
        **unknown: Any,
    ):
        """
        Args:
            pretrain_or_model: a folder, a hub name, or a model of transformers, which keeps its dtype and its place.
            attn_implementation: "auto", or a name that `choose_attention` knows.
            param_dtype: "bf16", "fp16" or "fp32": what weights are loaded in.
            lora_rank: above 0, the model is frozen and gets adapters in `target_modules` (default: all linear layers).
            ds_config: DeepSpeed's configuration; under ZeRO-3 weights are then loaded in shards.
            packing_samples: `score_targets` will be given packs. temperature: divides the logits.
            ring_attn_size: how many ranks share one pack; `score_targets` is then given their group.
            ring_head_stride: how many key heads travel round the ring at a time; 0: all (see models/attention/ring.py).
            experts_implementation: how transformers computes experts, such as "grouped_mm"; None: its own choice.
            lora: in place of `lora_rank` and its like. unknown: told once, and changes nothing.

        Raises UserError: no model there, a package missing, or attention that cannot be packed.
        """
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
        attn_implementation = as_taken("Actor", attn_implementation, device_type, unknown)
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
                lora=(adapters := lora or lora_of(lora_rank, lora_alpha, lora_dropout, target_modules)),
            )
        super().__init__(TokenScorer(model, temperature), ring_head_stride, attention, ds_config)
        self.adapter_name_or_path = adapters.adapter_name_or_path
        set_experts_implementation(self.scorer.base_model, experts_implementation)
        if packing_samples:
            self._check_packs_now(ring_attn_size)

    def forward(
        self,
        sequences: Tensor,
        attention_mask: Tensor | None = None,
        action_mask: Tensor | None = None,
        return_output: bool = False,
        return_logprobs: bool = True,
        ring_attn_group: ProcessGroup | None = None,
        packed_seq_lens: Sequence[int] | None = None,
        return_entropy: bool = False,
    ) -> Any:
        """Log-probs of each next token.

        Args:
            sequences: (B, S) token ids, padded left or right; with `packed_seq_lens` (1, T), one row after the other.
            attention_mask: (B, S), 1 for real tokens; None: all are.
            action_mask: (B, A), of the last A log-probs, which alone come back, 0.0 where it is 0.
            return_output: an `ActorOutput` comes back beside the log-probs, or, without `return_logprobs`, alone.
            ring_attn_group: the ranks that compute this batch together; each gets the whole.
            packed_seq_lens: tokens of each row of a pack; no log-prob reaches from one into the next.

        Returns:
            (B, S-1) float32: entry t is the log-prob of token t+1, and 0.0 where token t or t+1 is padding.
        """
        tokens = NextTokens.of(sequences, attention_mask, ring_attn_group, packed_seq_lens)
        inputs, scored = tokens.inputs()
        has_aux_loss = return_output and self.is_mixture_of_experts
        scores = self.score_targets(**inputs, with_aux_loss=has_aux_loss, with_entropy=return_entropy)
        log_probs = tokens.spread(scores.log_probs, scored)
        if action_mask is not None:
            log_probs = log_probs[:, -action_mask.shape[1] :] * action_mask
        if not return_output:
            return log_probs
        aux_loss = log_probs.new_zeros(()) if scores.aux_loss is None else scores.aux_loss
        if ring_attn_group is not None:
            aux_loss = SumOverRanks.apply(aux_loss, ring_attn_group)
        output = ActorOutput(aux_loss, None if scores.entropy is None else tokens.spread(scores.entropy, scored))
        return (log_probs, output) if return_logprobs or action_mask is not None else output

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Token ids, prompt included, by the Hugging Face model's `generate`.

        Under ZeRO-3 all ranks call, and go on together until the last one is done: each step gathers every weight.
        """
        if any(is_partitioned(parameter) for parameter in self.model.parameters()):
            kwargs = {"synced_gpus": True} | kwargs
        return self.model.generate(input_ids=input_ids, **kwargs)
