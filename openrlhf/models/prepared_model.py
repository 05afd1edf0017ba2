"""What every model of ours has, whatever it scores: the way of a micro-batch into it, and services of the Hugging Face
model.

A micro-batch goes from `PreparedModel.compute` to a `TransformerScorer`, through DeepSpeed's engine where there is one.

Shapes: B batch, S sequence (padded), T packed tokens, N places, K numbers that stand for a hidden state.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import (
    backbone_name,
    first_position,
    layers_of,
    recompute_layers,
    routers_tell_probabilities,
)
from openrlhf.engine.parameters import is_partitioned, whole_numel
from openrlhf.engine.patches.float32_products import multiply_fast
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError
from openrlhf.models.attention.choice import AttentionChoice
from openrlhf.models.attention.ring_plan import borders_of_samples
from openrlhf.models.last_layer import LastLayer
from openrlhf.models.layers import compile_layers
from openrlhf.models.layout_probe import check_layout
from openrlhf.models.limits import check_checkpointing
from openrlhf.models.loading import keeps_weights_on_host
from openrlhf.models.moe import as_logits, expert_leaf_modules, load_balancing_loss, num_experts_per_token
from openrlhf.models.rope import RopeByLength
from openrlhf.models.tensor_parallel import check_tensor_parallel, tensor_parallel_plan


class Routing(NamedTuple):
    """The tokens that the experts' loads count, and the ranks over which; as of `PreparedModel.compute`."""

    is_real_token: Tensor | None
    group: ProcessGroup | None


_UNKNOWN = AttentionChoice(None)


class PreparedModel(nn.Module, ABC):
    """A model of transformers that scores micro-batches, alone or inside DeepSpeed's engine.

    The engine wraps `trainable_module`; once `attach_engine` has been called, every forward pass goes through it.
    """

    def __init__(
        self,
        scorer: TransformerScorer,
        ring_head_stride: int,
        attention: AttentionChoice = _UNKNOWN,
        ds_config: dict | None = None,
    ):
        """Args: ring_head_stride, ds_config: as of `Actor`; attention: what `choose_attention` has found."""
        super().__init__()
        self._offload = keeps_weights_on_host(ds_config)  # `strategy.prepare` reads it; scripts of OpenRLHF set it
        self.scorer = scorer
        self.attention = attention
        self.trained: TrainedModel | None = None  # engine, schedule and guard, once it is prepared for training
        self._engine: nn.Module | None = None
        self._ring_head_stride = ring_head_stride
        self._checkpoints_reentrantly = False
        self.is_compiled = False  # its layers; lengths of another kind may make another graph, which takes seconds
        self._layouts_looked_at: set[tuple[bool, bool]] = set()  # whether packed, and with shared prompts

    @property
    def model(self) -> Any:
        """The Hugging Face model (PEFT's wrapper around it, with LoRA), an nn.Module."""
        return self.scorer.model

    @property
    def config(self) -> PretrainedConfig:
        return self.scorer.base_model.config

    @property
    def draws_random_numbers(self) -> bool:
        """Whether it drops or blurs in training, by its configuration or by a module, such as an adapter's dropout."""
        fields = self.config.get_text_config().to_dict().items()
        rates = [value for name, value in fields if "drop" in name or "jitter" in name]  # experts' routers jitter
        modules = [module.p for module in self.modules() if isinstance(module, nn.Dropout)]
        return any(isinstance(rate, float) and rate > 0 for rate in rates + modules)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.scorer.parameters()).device

    @property
    def is_mixture_of_experts(self) -> bool:
        return num_experts_per_token(self.config) is not None

    # --- a micro-batch's way

    def compute(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        prompt_of: Sequence[int | None] | None = None,
        sequence_group: ProcessGroup | None = None,
        with_aux_loss: bool = False,
        is_real_token: Tensor | None = None,
        router_group: ProcessGroup | None = None,
        **asked: Any,
    ) -> Any:
        """What the scorer gives for a micro-batch.

        Args:
            input_ids: (B, S) padded, or (1, T) packed.
            position_ids: the same shape; they restart at each sample of a pack. None: the model counts them itself.
            attention_mask: (B, S) for a padded batch; None for a pack.
            cu_seqlens: (num_samples + 1,) int32 borders of the samples of the whole pack; None for a padded batch.
            max_seqlen: tokens in the pack's longest sample.
            prompt_of: for each sample of a pack the number of the sample that it goes on from, a prompt that several
                share. Given on all ranks, or on none. It needs the attention `ring`, on one rank too.
            sequence_group: the ranks that share the pack; the inputs are then this rank's `sequence_share` of T tokens.
            with_aux_loss: compute the load-balancing loss of a model with experts.
            is_real_token: (B*S,) or (T,), True for the tokens that the experts' loads count; None: those of
                `attention_mask`, or all of a pack.
            router_group: the ranks whose tokens are counted together for the experts' loads; None: this rank alone.
            asked: handed on to the scorer.

        Raises UserError for a pack whose samples the model would not keep apart, and for an auxiliary loss of a model
        without experts, or one that could have no gradient.
        """
        if cu_seqlens is not None:
            self.check_layout(True, sequence_group, prompt_of is not None)
        if with_aux_loss:
            self._check_aux_loss()
        if is_real_token is None and attention_mask is not None:
            is_real_token = attention_mask.flatten().bool()
        borders = borders_of_samples(
            cu_seqlens, max_seqlen, sequence_group, self._ring_head_stride, input_ids.device, prompt_of
        )
        run = self.scorer if self._engine is None else self._engine
        inputs = dict(input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, **borders)
        return run(
            inputs={name: value for name, value in inputs.items() if value is not None},
            routing=Routing(is_real_token, router_group) if with_aux_loss else None,
            **asked,
        )

    @abstractmethod
    def probe_states(self, places: Tensor, words: Tensor, **inputs: Any) -> Tensor:
        """(N, K) numbers that stand for the hidden states at N places of a micro-batch; see models/layout_probe.py.

        Args:
            places: (N,) in the flattened input.
            words: (K,) token ids, of which a model may give log-probs.
            inputs: as of `compute`.
        """

    def check_layout(self, is_packed: bool, sequence_group: ProcessGroup | None, shares_prompts: bool = False) -> None:
        """Refuses a model that computes samples otherwise in packs, or in padded batches, than alone.

        Every rank calls. Only the first call looks; see models/layout_probe.py.
        """
        layout = (is_packed, shares_prompts)
        if layout in self._layouts_looked_at:
            return
        self._layouts_looked_at.add(layout)  # before: the probe scores packs, too
        try:
            check_layout(self, is_packed, sequence_group, shares_prompts)
        except UserError:
            self._layouts_looked_at.remove(layout)
            raise

    def _check_packs_now(self, ring_attn_size: int) -> None:
        """Looks at packs where the model can compute already.

        Elsewhere it waits for its device, its engine or its ring, and is looked at when it has them.
        """
        is_whole = not any(is_partitioned(one) for one in self.model.parameters())
        if ring_attn_size == 1 and is_whole and not torch.cuda.is_available():
            self.check_layout(True, None)

    def _check_aux_loss(self) -> None:
        if not self.is_mixture_of_experts:
            name = type(self.scorer.base_model).__name__
            raise UserError(f"{name} has no experts to balance: set --model.aux_loss_coef 0.")
        if self._checkpoints_reentrantly:
            raise UserError(
                "The auxiliary loss gets no gradient through reentrant gradient checkpointing. "
                "Use the other kind (use_reentrant=False), or set --model.aux_loss_coef 0."
            )

    # --- what the engine asks

    @property
    def trainable_module(self) -> nn.Module:
        """The module to hand to DeepSpeed."""
        return self.scorer

    @property
    def engine(self) -> Any:
        """The engine that `attach_engine` was given; None before."""
        return self._engine

    def attach_engine(self, engine: nn.Module) -> None:
        """Sends every forward pass through `engine`, which wraps `trainable_module`."""
        object.__setattr__(self, "_engine", engine)  # nn.Module would make the engine, and so itself, a child
        multiply_fast(self.scorer)  # the engine may have changed its precision

    def zero3_leaf_modules(self) -> list[type[nn.Module]]:
        """Classes of the modules that hold experts."""
        return expert_leaf_modules(self.scorer)

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """How `size` ranks share each layer, by a pattern of its name. Raises UserError where they cannot."""
        check_tensor_parallel(self.config, size)
        return tensor_parallel_plan(self.model)

    # --- the model's own services

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recomputes layers in the backward pass; not reentrant unless {"use_reentrant": True} is given.

        Raises UserError for a model that cannot.
        """
        check_checkpointing(type(self.scorer.base_model))
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self._checkpoints_reentrantly = settings["use_reentrant"]
        recompute_layers(self.model, settings)

    @property
    def is_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.scorer.modules())

    def gradient_checkpointing_disable(self) -> None:
        self._checkpoints_reentrantly = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model.gradient_checkpointing_disable()

    def compile_layers(self) -> None:
        """Lets torch.compile fuse the element-wise work of each layer (see models/layers.py)."""
        compile_layers(self.scorer.base_model)
        self.is_compiled = True

    def leave_out_unread(self) -> None:
        """Lets the last layer compute no more than is read (see models/last_layer.py).

        For weights, and packs, that are whole on every rank. Does nothing to a model with experts, whose loads count
        all tokens.
        """
        base_model, backbone = self.scorer.base_model, self.scorer._backbone
        if not self.is_mixture_of_experts:
            self.scorer.last_layer = LastLayer.of(backbone, layers_of(base_model))

    def print_trainable_parameters(self) -> None:
        sizes = [(whole_numel(parameter), parameter.requires_grad) for parameter in self.parameters()]
        total = sum(size for size, _ in sizes)
        trainable = sum(size for size, is_trainable in sizes if is_trainable)
        print(f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / total:.2f}%)")


class TransformerScorer(nn.Module):
    """The module that DeepSpeed's engine wraps; it holds the Hugging Face model. A subclass says what is scored."""

    def __init__(self, model: nn.Module):
        """Args: model: a model of transformers, or one wrapped by PEFT."""
        super().__init__()
        multiply_fast(model)
        self.model = model
        self._backbone_name = backbone_name(self.base_model)
        self._first_position = first_position(self.base_model)
        self._routers_tell_probabilities = routers_tell_probabilities(self.base_model)
        self._rope = RopeByLength(self.base_model)
        self.last_layer: LastLayer | None = None  # None: it is computed whole

    @property
    def base_model(self) -> PreTrainedModel:
        """The model itself, also inside PEFT's wrapper (adapters sit in its layers)."""
        model: Any = self.model
        return model if isinstance(model, PreTrainedModel) else model.get_base_model()

    @property
    def _backbone(self) -> nn.Module:
        """What computes hidden states; the model as a whole where that cannot be told."""
        name = self._backbone_name
        return self.base_model if name is None else self.base_model.get_submodule(name)

    def _states_at(self, places: Tensor, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The backbone's outputs, and the hidden states (N, H) at N places of the flattened input."""
        if self.last_layer is not None:
            return self.last_layer.states_at(places, inputs)
        outputs = self._backbone(**inputs)
        return outputs, outputs[0].flatten(0, 1)[places]

    def _as_taken(self, inputs: dict[str, Any], routing: Routing | None) -> tuple[dict[str, Any], Routing | None]:
        """The inputs as the transformer takes them.

        Args: inputs: of transformer and attention, by name; routing: None: no auxiliary loss is asked for.
        """
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
        return inputs, routing

    def _aux_loss(self, outputs: Any, routing: Routing | None) -> Tensor | None:
        if routing is None:
            return None
        experts_per_token = num_experts_per_token(self.base_model.config)
        assert experts_per_token is not None, "an auxiliary loss needs a model with experts"
        found = getattr(outputs, "router_logits", None) or ()
        router_logits = tuple(layer.flatten(0, -2) for layer in found if layer is not None)
        if not router_logits:  # its layers are all dense, or it does not tell them
            name = type(self.base_model).__name__
            raise UserError(
                f"{name} tells no router's logits, so no load can be balanced: set --model.aux_loss_coef 0."
            )
        if self._routers_tell_probabilities:
            router_logits = tuple(map(as_logits, router_logits))
        return load_balancing_loss(router_logits, experts_per_token, *routing)
