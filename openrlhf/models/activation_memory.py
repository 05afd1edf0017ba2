"""The memory of a forward and backward pass, found before any weight is read: the model runs once on shapes.

Shapes: T tokens of a micro-batch, H hidden, V vocabulary.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.engine.model_internals import backbone_name, recompute_layers, without_autocast, without_weights
from openrlhf.engine.processor import has_bfloat16_products
from openrlhf.engine.state_memory import BUCKET_NUMBERS
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts, mask_without_padding
from openrlhf.models.attention.dense import AttentionOptions, attend_by_products, causal_mask, repeat_heads
from openrlhf.models.head.log_prob_head import KEPT_BYTES_ACCELERATOR, KEPT_BYTES_CPU
from openrlhf.models.head.tiles import TILE_BYTES_ACCELERATOR, TILE_BYTES_CPU
from openrlhf.models.lora import add_lora, freeze_all_but
from openrlhf.models.moe import num_experts_per_token
from openrlhf.models.tensor_parallel import layers_shared_out

_AS_KERNELS_DO = "counted"  # under this name transformers knows an attention that keeps what the kernels keep
_WITH_SCORES = "counted_with_scores"  # and under this one an attention that keeps scores too
# oneDNN keeps the code of about a thousand products by their shapes, and those of experts differ in every micro-batch.
# It makes the products of bfloat16, where the processor has them.
_CODE_OF_EXPERTS_CPU = 220 * 2**20
_TOKENS_TRIED = 8192  # many, so that gradients of weights, which do not grow with them, count for little


@dataclass(frozen=True)
class ModelMemory:
    """What is known of a model's memory before its weights are read.

    Attributes:
        num_parameters, num_trained: weights; those of the adapters are among both.
        kept_a_token: bytes of activations from the forward pass to the backward pass.
        peaks: (bytes of activations, numbers that have a gradient by then), at the most, through the backward pass: a
            layer that is computed again takes its most when all layers behind it have their gradients. The head's bytes
            come on top of the kept ones.
        hidden_size, vocab_size: of the head; vocab_size 0 for a model without one.
        head_is_trained: its weight gets a gradient.
        weight_bytes: of a number.
        has_experts: each computes as many tokens as come.
        num_linear: weights of linear layers, without the head's and the adapters'.
        num_shared_out, num_trained_shared_out: numbers, and trained ones, of which tensor parallelism gives each rank
            a part.
        scores_kept, scores_at_peak: bytes of attention scores that are kept, by pairs of tokens of a sample; the most
            in the backward pass. 0 where no scores are kept.
    """

    num_parameters: int
    num_trained: int
    kept_a_token: float
    peaks: tuple[tuple[float, int], ...]
    hidden_size: int
    vocab_size: int
    head_is_trained: bool
    weight_bytes: int
    has_experts: bool
    num_linear: int
    num_shared_out: int
    num_trained_shared_out: int
    scores_kept: float = 0.0
    scores_at_peak: float = 0.0

    def activation_bytes(self, num_tokens: int, on_cpu: bool, waiting_bytes: int = 0, num_pairs: int = 0) -> int:
        """The most that a micro-batch of T tokens takes from its embeddings to its gradients, each token a target.

        Args: waiting_bytes: of a gradient's number until it is sent, as `MemoryEstimate` has it. num_pairs: of tokens
        of one sample, the sum of the squares of the samples' lengths.
        """
        head_gradient = self.vocab_size * self.hidden_size * self.weight_bytes if self.head_is_trained else 0
        kept = num_tokens * self.kept_a_token + num_pairs * self.scores_kept
        at_head = kept + head_gradient + self._head_bytes(num_tokens, on_cpu)
        code = _CODE_OF_EXPERTS_CPU if on_cpu and self.has_experts and has_bfloat16_products() else 0
        scores = num_pairs * self.scores_at_peak
        behind = [scores + num_tokens * held + waiting_bytes * min(done, BUCKET_NUMBERS) for held, done in self.peaks]
        return code + int(max(at_head, *(one + head_gradient for one in behind)))

    def _head_bytes(self, num_tokens: int, on_cpu: bool) -> int:
        """Logits that are kept or tiles of them, and a gradient of the hidden states; see models/head."""
        logits = num_tokens * self.vocab_size * self.weight_bytes
        kept, tile = (KEPT_BYTES_CPU, TILE_BYTES_CPU) if on_cpu else (KEPT_BYTES_ACCELERATOR, TILE_BYTES_ACCELERATOR)
        hidden = num_tokens * self.hidden_size * (4 + 2 * self.weight_bytes)
        return (logits if logits <= kept else 0) + min(2 * tile, 4 * num_tokens * self.vocab_size) + hidden


def memory_of(
    facts: ModelFacts,
    lora: LoraConfig,
    recomputes: bool,
    trained: Sequence[str] | None = None,
    keeps_scores: bool = False,
) -> ModelMemory | None:
    """What a model needs, and None for one that does not run without its numbers.

    Args: recomputes: layers are computed again in the backward pass (gradient checkpointing). trained: the only weights
    that are, as of `freeze_all_but`; None: all. keeps_scores: its attention does, see `keeps_scores` of
    `attention/choice.py`.
    Raises UserError as `add_lora` and `freeze_all_but`.
    """
    if facts.model_class is None:
        return None
    AttentionInterface.register(_AS_KERNELS_DO, _attention)
    AttentionMaskInterface.register(_AS_KERNELS_DO, mask_without_padding)
    AttentionInterface.register(_WITH_SCORES, _attention_with_scores)
    AttentionMaskInterface.register(_WITH_SCORES, mask_without_padding)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), without_autocast():
            warnings.simplefilter("ignore")  # they come when the model itself is made
            return _of_shapes(facts, lora, recomputes, trained, keeps_scores)
    except UserError:
        raise
    except Exception:  # it looks at its numbers on the way, or cannot recompute its layers
        return None


def _of_shapes(
    facts: ModelFacts, lora: LoraConfig, recomputes: bool, trained: Sequence[str] | None, keeps_scores: bool
) -> ModelMemory:
    model, base, linear = _made(facts, lora, recomputes, trained, _AS_KERNELS_DO)
    kept, peaks = _bytes_of_a_pass(model, base)
    scores_kept, scores_at_peak = 0, 0
    if keeps_scores:
        with_scores, peaks_with_scores = _bytes_of_a_pass(*_made(facts, lora, recomputes, trained, _WITH_SCORES)[:2])
        scores_kept = with_scores - kept
        scores_at_peak = max(held for held, _ in peaks_with_scores) - max(held for held, _ in peaks)
    shared_out = [weight for layer in layers_shared_out(base, facts.config) for weight in layer.parameters()]
    head, weights = base.get_output_embeddings(), list(model.parameters())
    return ModelMemory(
        num_parameters=sum(one.numel() for one in weights),
        num_trained=sum(one.numel() for one in weights if one.requires_grad),
        kept_a_token=kept / _TOKENS_TRIED,
        peaks=tuple((held / _TOKENS_TRIED, done) for held, done in peaks),
        hidden_size=0 if head is None else head.in_features,
        vocab_size=0 if head is None else head.out_features,
        head_is_trained=head is not None and head.weight.requires_grad,
        weight_bytes=facts.dtype.itemsize,
        has_experts=num_experts_per_token(facts.config) is not None,
        num_linear=linear,
        num_shared_out=sum(one.numel() for one in shared_out),
        num_trained_shared_out=sum(one.numel() for one in shared_out if one.requires_grad),
        scores_kept=scores_kept / _TOKENS_TRIED**2,
        scores_at_peak=scores_at_peak / _TOKENS_TRIED**2,
    )


def _made(
    facts: ModelFacts, lora: LoraConfig, recomputes: bool, trained: Sequence[str] | None, attention: str
) -> tuple[nn.Module, Any, int]:
    """(the model on shapes, the same without PEFT's wrapper, weights of its linear layers but the head)."""
    assert facts.model_class is not None, "asked before"
    base: Any = without_weights(facts.model_class, facts.config, attention, facts.dtype)
    head = base.get_output_embeddings()
    linear = [one for one in base.modules() if isinstance(one, nn.Linear) and one is not head]
    num_linear = sum(one.weight.numel() for one in linear)
    model: nn.Module = add_lora(base, lora, of_shapes=True) if lora.is_used else base
    model.to(facts.dtype)  # PEFT makes adapters in float32
    if trained:
        freeze_all_but(model, trained)
    if recomputes:
        recompute_layers(base)
    return model, base, num_linear


def _bytes_of_a_pass(model: nn.Module, base: Any) -> tuple[int, list[tuple[int, int]]]:
    """(held between forward and backward pass, `peaks` of the backward pass), without weights and their gradients."""
    ids = torch.zeros(1, _TOKENS_TRIED, dtype=torch.long, device="meta")
    name = backbone_name(base)
    body = base if name is None else base.get_submodule(name)
    live = _LiveBytes(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(live.forget_gradient)
    with live:
        hidden = body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        between = live.now
        hidden.backward(torch.zeros_like(hidden))
    return between, live.peaks()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes that operations have made and that somebody still holds."""

    def __init__(self, model: nn.Module) -> None:
        """Args: model: what it holds already is not counted."""
        super().__init__()
        self.now = 0
        self._done, self._most = 0, {0: 0}  # numbers that have a gradient; the most that was held at so many
        held = [*model.parameters(), *model.buffers()]
        self._counted: Any = WeakIdKeyDictionary({one.untyped_storage(): True for one in held})

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._counted:
            return
        self._counted[storage] = True
        self.now += storage.nbytes()
        self._most[self._done] = max(self._most[self._done], self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes

    def forget_gradient(self, parameter: Tensor) -> None:
        """DeepSpeed takes it up at once."""
        parameter.grad = None
        self._done += parameter.numel()
        self._most[self._done] = self.now

    def peaks(self) -> list[tuple[int, int]]:
        """(bytes, numbers that had a gradient), without those that both exceed."""
        found: list[tuple[int, int]] = []
        for done, held in sorted(self._most.items(), reverse=True):
            if not found or held > found[-1][0]:
                found.append((held, done))
        return found


class _AsKernelsDo(torch.autograd.Function):
    """Attention that keeps what every kernel keeps: inputs, output, a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    return _AsKernelsDo.apply(query, key, value), None


def _attention_with_scores(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> Any:
    options = AttentionOptions.taken_from(kwargs)
    key, value = (repeat_heads(one, query.shape[1]) for one in (key, value))
    sees = causal_mask(query.shape[2], None, query.device)
    return attend_by_products(query, key, value, options, sees).transpose(1, 2).contiguous(), None
