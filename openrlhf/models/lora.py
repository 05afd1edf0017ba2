"""Low-rank adapters (arXiv 2106.09685) beside a model's linear layers, by PEFT."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from openrlhf.engine.model_internals import computes_as_linear
from openrlhf.engine.parameters import whole_numel, whole_shape
from openrlhf.errors import UserError

ALL_LINEAR = "all-linear"
# Their fused kernels read the weight of this layer without calling it; PEFT refuses it.
_MODEL_TYPES_WITH_FUSED_OUT_PROJ = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraSettings:
    """Where adapters stand, and how large they are."""

    rank: int  # 0: none
    alpha: int
    dropout: float
    target_modules: Sequence[str] | str | None  # names of layers; None or "all-linear": all but the output layer

    @property
    def layer_names(self) -> str | list[str]:
        """The names asked for, or "all-linear"."""
        names = self.target_modules or ALL_LINEAR
        names = [names] if isinstance(names, str) else list(names)
        return ALL_LINEAR if names == [ALL_LINEAR] else names


def add_lora(model: PreTrainedModel, lora: LoraSettings) -> nn.Module:
    """Freezes the model and puts trainable adapters beside its linear layers.

    Layers that are linear by their class alone (routers, grouped projections) get none.

    Raises:
        UserError: PEFT is not installed, or no layer that takes adapters has one of these names.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise UserError("--ds.lora.rank needs the package peft: pip install peft") from None
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left_out = [name for name, module in linear.items() if not computes_as_linear(module)]
    takes_all = lora.layer_names == ALL_LINEAR
    if takes_all and model.config.model_type in _MODEL_TYPES_WITH_FUSED_OUT_PROJ:
        left_out += [name for name in linear if name.endswith(".out_proj")]
    suitable = sorted(_counts_by_last_name(name for name in linear if name not in left_out))
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if model.can_generate() else TaskType.SEQ_CLS,  # the latter trains its head whole
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.layer_names,
        exclude_modules=left_out or None,
        bias="none",
    )
    sizes = {name: whole_numel(parameter) for name, parameter in model.named_parameters()}
    fused = [
        name
        for path, module in model.named_modules()
        if "expert" in f"{path} {type(module).__name__}".lower()
        for name, parameter in module.named_parameters(path, recurse=False)
        if len(whole_shape(parameter)) == 3
    ]
    try:
        with_adapters = get_peft_model(model, config)
    except ValueError as error:
        flag = "--ds.lora.rank" if takes_all else f"--ds.lora.target_modules {','.join(lora.layer_names)}"
        if lora.dropout and "lora_dropout" in str(error):  # of weights that are no layers: fused experts
            flag = f"--ds.lora.dropout {lora.dropout:g} (set 0 to adapt the experts)"
        raise UserError(f"{flag}: {error} Layers of this model that take adapters: {', '.join(suitable)}.") from error
    if takes_all:
        # PEFT knows the fused experts of some models by the names of the layers that they were.
        adapted = getattr(with_adapters.peft_config["default"], "target_parameters", None) or ()
        fused = [name for name in fused if not name.endswith(tuple(adapted))]
        _tell_of_weights_without_adapters(left_out, fused, sum(sizes[name] for name in fused) / sum(sizes.values()))
    return with_adapters


def _tell_of_weights_without_adapters(left_out: Sequence[str], fused: Sequence[str], share_fused: float) -> None:
    """One line, where "all linear layers" leaves out what a reader may count among them."""
    parts = [f"{count} layers named {name}" for name, count in _counts_by_last_name(left_out).items()]
    if fused:
        names = " and ".join(_counts_by_last_name(fused))
        parts.append(f"the experts' fused weights ({names}, {share_fused:.0%} of all weights)")
    if parts and not (dist.is_initialized() and dist.get_rank()):
        logger.warning("LoRA: no adapters for %s. They stay as they are.", ", nor for ".join(parts))


def _counts_by_last_name(names: Iterable[str]) -> dict[str, int]:
    """How many of the layers or weights have which name, without the path to them."""
    counts: dict[str, int] = {}
    for name in names:
        last = name.rpartition(".")[2]
        counts[last] = counts.get(last, 0) + 1
    return counts
