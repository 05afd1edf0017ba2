"""The trained model as the rest of the library sees it: token ids in, per-token log-probs out.

Shapes: B batch, S sequence (padded), T packed tokens, N target tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.parameters import whole_numel
from openrlhf.errors import UserError
from openrlhf.models.adapters import add_lora
from openrlhf.models.attention import check_causal, check_packable, choose_attention
from openrlhf.models.attention.ring_plan import make_ring
from openrlhf.models.compiled_layers import compile_layers
from openrlhf.models.head.head_probe import probe_head
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.head.tied_embedding import TiedEmbedding
from openrlhf.models.liger import apply_liger_kernels
from openrlhf.models.loading import announce_zero3, causal_lm_class, load_causal_lm, load_config
from openrlhf.models.moe import expert_leaf_modules, num_experts_per_token
from openrlhf.models.tensor_parallel import check_tensor_parallel, tensor_parallel_plan
from openrlhf.models.token_scorer import TokenScorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetScores:
    """What the model says about a micro-batch's target tokens."""

    log_probs: Tensor  # (N,) float32; float64 for a float64 model; without a gradient where weights were given
    weighted_sum: Tensor | None  # scalar, sum of weight * log-prob; None where no weights were given
    aux_loss: Tensor | None  # scalar, this rank's share (see models/moe.py); None where it was not asked for


class Actor(nn.Module):
    """A causal language model that scores tokens, alone or inside DeepSpeed's engine.

    The engine wraps `trainable_module`; once `attach_engine` has been called, every forward pass goes through it.
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
        super().__init__()
        self._engine: nn.Module | None = None
        self._ring_head_stride = ring_head_stride
        self._zero3_config = announce_zero3(ds_config)
        attention = choose_attention(attn_implementation, _device_type(), packing_samples, ring_attn_size)
        model: Any
        if isinstance(pretrain_or_model, str):
            config = load_config(pretrain_or_model, trust_remote_code)
            if packing_samples and (model_class := causal_lm_class(config)):
                check_packable(model_class, config)  # before the weights are read
            model = load_causal_lm(
                pretrain_or_model,
                config=config,
                param_dtype=param_dtype,
                attn_implementation=attention,
                load_in_4bit=load_in_4bit,
                device_map=device_map,
                trust_remote_code=trust_remote_code,
            )
        else:
            model = pretrain_or_model
            if attention is not None:
                model.set_attn_implementation(attention)
        if packing_samples:
            check_packable(type(model), model.config)
            check_causal(model)
        if use_liger_kernel:
            apply_liger_kernels(model)
        _install_log_prob_head(model, temperature)
        if lora_rank > 0:
            model = add_lora(model, lora_rank, lora_alpha, lora_dropout, target_modules)
        self.scorer = TokenScorer(model, temperature)
        self._checkpoints_reentrantly = False

    # --- what the strategy uses

    @property
    def model(self) -> Any:
        """The Hugging Face model (PEFT's wrapper around it, with LoRA), an nn.Module."""
        return self.scorer.model

    @property
    def config(self) -> PretrainedConfig:
        return self.scorer.base_model.config

    @property
    def trainable_module(self) -> nn.Module:
        """The module to hand to DeepSpeed."""
        return self.scorer

    def attach_engine(self, engine: nn.Module) -> None:
        """Sends every forward pass through `engine`, which wraps `trainable_module`."""
        object.__setattr__(self, "_engine", engine)  # nn.Module would make the engine, and so itself, a child

    @property
    def engine(self) -> Any:
        """What `attach_engine` was given; None before."""
        return self._engine

    def zero3_leaf_modules(self) -> list[type[nn.Module]]:
        """Classes of the modules that hold experts."""
        return expert_leaf_modules(self.scorer)

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """How `size` ranks share each layer, by a pattern of its name. Raises UserError where they cannot."""
        check_tensor_parallel(self.config, size)
        return tensor_parallel_plan(self.scorer, self.model)

    @property
    def is_mixture_of_experts(self) -> bool:
        return num_experts_per_token(self.config) is not None

    # --- log-probs

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

    def score_targets(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        target_index: Tensor,
        target_ids: Tensor,
        target_weights: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        sequence_group: ProcessGroup | None = None,
        with_aux_loss: bool = False,
        is_real_token: Tensor | None = None,
        router_group: ProcessGroup | None = None,
    ) -> TargetScores:
        """Log-probs of a micro-batch's target tokens.

        Args:
            input_ids: (B, S) padded, or (1, T) packed.
            position_ids: the same shape; they restart at each sample of a pack.
            target_index: (N,) places in the flattened input whose hidden states predict the targets; N may be 0: every
                parameter is part of the graph all the same.
            target_ids: (N,) token ids of the targets.
            target_weights: (N,) float32, what each log-prob counts in the loss; known beforehand, they save a pass over
                the vocabulary, and only their sum with the log-probs has a gradient. None: the log-probs have one.
            attention_mask: (B, S) for a padded batch; None for a pack.
            cu_seqlens: (num_samples + 1,) int32 borders of the samples of the whole pack; None for a padded batch.
            max_seqlen: tokens in the pack's longest sample.
            sequence_group: the ranks that share the pack; the inputs are then this rank's share (`sequence_share`), and
                T its tokens.
            with_aux_loss: compute the load-balancing loss of a model with experts.
            is_real_token: (B*S,) or (T,), True for the tokens that the experts' loads count; None: those of
                `attention_mask`, or all of a pack.
            router_group: the ranks whose tokens are counted together for the experts' loads; None: this rank alone.
        """
        if with_aux_loss:
            self._check_aux_loss()
        if is_real_token is None and attention_mask is not None:
            is_real_token = attention_mask.flatten().bool()
        if input_ids.numel() == 0:  # a rank whose share of a short pack is empty computes one token that counts nowhere
            input_ids, position_ids = input_ids.new_zeros(1, 1), position_ids.new_zeros(1, 1)
            is_real_token = torch.zeros(1, dtype=torch.bool, device=input_ids.device)
        log_probs, weighted_sum, aux_loss = self._run(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            target_index=target_index,
            target_ids=target_ids,
            target_weights=target_weights,
            attention_kwargs=self._attention_kwargs(cu_seqlens, max_seqlen, sequence_group, input_ids.device),
            with_aux_loss=with_aux_loss,
            is_real_token=is_real_token,
            router_group=router_group,
        )
        return TargetScores(log_probs, weighted_sum, aux_loss)

    def _check_aux_loss(self) -> None:
        if not self.is_mixture_of_experts:
            name = type(self.scorer.base_model).__name__
            raise UserError(f"{name} has no experts to balance: set --model.aux_loss_coef 0.")
        if self._checkpoints_reentrantly:
            raise UserError(
                "The auxiliary loss gets no gradient through reentrant gradient checkpointing. "
                "Use the other kind (use_reentrant=False), or set --model.aux_loss_coef 0."
            )

    def _run(self, **inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.scorer(**inputs) if self._engine is None else self._engine(**inputs)

    def _attention_kwargs(
        self,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        sequence_group: ProcessGroup | None,
        device: torch.device,
    ) -> dict[str, Any]:
        """The names that transformers' flash kernels and ours read the samples' borders from."""
        if cu_seqlens is None:
            return {}
        if sequence_group is not None:
            return {"ring": make_ring(sequence_group, cu_seqlens, self._ring_head_stride, device)}
        return dict(
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
        )

    # --- the model's own services

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Token ids, prompt included, by the Hugging Face model's `generate`."""
        return self.model.generate(input_ids=input_ids, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recomputes layers in the backward pass; not reentrant unless {"use_reentrant": True} is given."""
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self._checkpoints_reentrantly = settings["use_reentrant"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the method's new name is not in all versions we support
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        if any(not parameter.requires_grad for parameter in self.model.parameters()):
            self.model.enable_input_require_grads()  # else frozen embeddings cut the graph before the first layer

    def compile_layers(self) -> None:
        """Lets torch.compile fuse the element-wise work of each layer (see models/compiled_layers.py)."""
        compile_layers(self.scorer.base_model)

    def gradient_checkpointing_disable(self) -> None:
        self._checkpoints_reentrantly = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model.gradient_checkpointing_disable()

    def print_trainable_parameters(self) -> None:
        sizes = [(whole_numel(parameter), parameter.requires_grad) for parameter in self.parameters()]
        total = sum(size for size, _ in sizes)
        trainable = sum(size for size, is_trainable in sizes if is_trainable)
        print(f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / total:.2f}%)")


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _install_log_prob_head(model: PreTrainedModel, temperature: float) -> None:
    """Puts our head in the place of a simple one; leaves any other, with a line in the log."""
    finding = probe_head(model)
    if finding.transform is None:
        logger.warning("%s: log-probs are computed from full logits: %s", type(model).__name__, finding.reason)
        return
    head = LogProbHead(model.get_output_embeddings(), replace(finding.transform, temperature=temperature))
    model.set_output_embeddings(head)
    TiedEmbedding.install(model.get_input_embeddings(), head)
