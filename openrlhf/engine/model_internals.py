"""Facts of a model's class and configuration that transformers keeps under names of its own, and Liger's one call."""

from __future__ import annotations

import copy
import functools
import importlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel
from transformers import modeling_flash_attention_utils as formerly
from transformers.utils import is_flash_attn_greater_or_equal

from openrlhf.engine.parameters import whole_shape

_PROBABILITY_ROUTERS = {"Gemma4TextRouter", "DiffusionGemmaTextRouter"}  # with transformers 5.23


def carries_state(model_class: type[PreTrainedModel]) -> bool:
    """Whether a layer carries a state along the sequence, as state-space models do."""
    return model_class._is_stateful


def takes_any_attention(model_class: type[PreTrainedModel]) -> bool:
    """Whether its layers call attention through transformers' interface."""
    return model_class._supports_attention_backend


def takes_borders(model_class: type[PreTrainedModel], text_config: PretrainedConfig | None = None) -> bool:
    """Whether kernels that are told the borders of samples work in it.

    Args: text_config: of what is trained. From transformers 5.24 on a model that also sees may say no for the sake of
        its images alone: then the model that reads its text is asked.
    """
    kind: Any = type(text_config)
    reads_text = None if text_config is None or model_class.config_class is kind else MODEL_MAPPING.get(kind, None)
    return model_class._supports_flash_attn or getattr(reads_text, "_supports_flash_attn", False)


def computes_by_sdpa(model_class: type[PreTrainedModel]) -> bool:
    """Whether transformers lets it use torch's scaled_dot_product_attention."""
    return model_class._supports_sdpa


def sdpa_loses_soft_caps() -> bool:
    """Whether a class may say that it uses sdpa though that leaves out the soft caps of its scores: before 5.21."""
    return Version(version("transformers")) < Version("5.21")


def flash_attentions_of(model_class: type[PreTrainedModel]) -> list[str] | None:
    """The only kinds of flash attention that transformers lets it use, whatever is asked for; None: any."""
    return model_class._compatible_flash_implementations


def without_weights(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    attention: str,
    dtype: torch.dtype = torch.bfloat16,
) -> PreTrainedModel:
    """The model on the meta device, in training mode: every tensor is a shape without numbers."""
    with torch.device("meta"):
        return model_class._from_config(copy.deepcopy(config), attn_implementation=attention, dtype=dtype)


@contextmanager
def without_autocast() -> Iterator[None]:
    """PEFT switches autocast off around adapters of fused experts, which torch refuses on the meta device."""
    as_torch_has_it: Any = torch.autocast
    torch.autocast = lambda *args, **kwargs: nullcontext()  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = as_torch_has_it  # type: ignore[misc]


def attention_name(config: PretrainedConfig) -> str:
    """The attention that the model computes with, as transformers names it."""
    return str(config._attn_implementation)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of the model; none where it does not say what they are."""
    names = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def values_in_layers(text_config: Any, name: str) -> set[Any]:
    """Of a field that a configuration may give each layer of its own, as Gemma 4's; {None} where it is missing."""
    layers = text_config.per_layer_config if getattr(text_config, "is_heterogeneous", False) else [text_config]
    return {getattr(layer, name, None) for layer in layers}


def backbone_name(model: PreTrainedModel) -> str | None:
    """The name of the child that computes hidden states; None where it cannot be told.

    Some classes (Llama 4) name a child that their models do not have: it is then the only child that is a model itself.
    """
    children = dict(model.named_children())
    if model.base_model_prefix in children:
        return model.base_model_prefix
    models = [name for name, child in children.items() if isinstance(child, PreTrainedModel)]
    return models[0] if len(models) == 1 else None


def forget_renaming(model: PreTrainedModel, pattern: str) -> None:
    """Weights that were renamed at loading by `key_mapping={pattern: …}` are saved under the names that they have."""
    conversions: Any = getattr(model, "_weight_conversions", None)
    if conversions:
        conversions[:] = [one for one in conversions if pattern not in one.source_patterns]


def own_end_token_ids(model: PreTrainedModel) -> list[int]:
    """End tokens by the model's generation settings and its configuration, each once, as they stand there."""
    settings = (getattr(model, "generation_config", None), model.config, model.config.get_text_config())
    values = [getattr(one, "eos_token_id", None) for one in settings]
    ids = [id_ for value in values for id_ in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(id_ for id_ in ids if isinstance(id_, int)))


def train_end_tokens(model: PreTrainedModel) -> bool:
    """Lets the embedding of an end token that pads be trained; whether it was not.

    torch gives the row of `padding_idx` no gradient. Padding itself is masked: it adds nothing to the row.
    """
    try:
        embedding: Any = model.get_input_embeddings()
    except NotImplementedError:  # a class of the model's own does not say where they are
        return False
    is_frozen = getattr(embedding, "padding_idx", None) in own_end_token_ids(model)
    if is_frozen:
        embedding.padding_idx = None
    return is_frozen


def forget_conversions(model: PreTrainedModel) -> None:
    """The model is saved as one of its class that was never loaded, whatever its own files looked like."""
    vars(model).pop("_weight_conversions", None)


def routers_tell_probabilities(model: nn.Module) -> bool:
    """Whether what its routers record under the name of router logits is their softmax already."""
    return any(type(module).__name__ in _PROBABILITY_ROUTERS for module in model.modules())


def first_position(model: nn.Module) -> int:
    """The position id of a sample's first token. RoBERTa's family counts from the one after that of padding."""
    tables = (table for table in _position_tables(model) if isinstance(table, nn.Embedding))
    return next((table.padding_idx + 1 for table in tables if table.padding_idx is not None), 0)


def padding_position(model: nn.Module) -> int | None:
    """The row of padding in its table of positions, if it has one: the `pad_token_id` that the model was made with.

    Positions are counted from it, or it is a row of zeros (XGLM): with another id the model computes something else.
    """
    rows = (getattr(table, "padding_idx", None) for table in _position_tables(model))
    return next((row for row in rows if row is not None), None)


def _position_tables(model: nn.Module) -> Iterator[nn.Module]:
    names = ("position_embeddings", "embed_positions")
    return (module for name, module in model.named_modules() if name.endswith(names))


def computes_as_linear(module: nn.Linear) -> bool:
    """Whether a layer gives (..., out_features) for (..., in_features); a model's own class may do something else.

    A model's own class is tried out with weights that hold no numbers.
    """
    if not type(module).__module__.startswith("transformers.models."):
        return True
    stand_in = copy.copy(module)
    stand_in._parameters = {
        name: None if weight is None else nn.Parameter(torch.empty(whole_shape(weight), device="meta"))
        for name, weight in module._parameters.items()
    }
    try:
        output = stand_in(torch.empty(3, module.in_features, device="meta"))
    except Exception:  # whatever it is, the layer asks for more than a linear one does
        return False
    return isinstance(output, torch.Tensor) and output.shape == (3, module.out_features)


def computes_as_lookup(module: nn.Embedding) -> bool:
    """Whether embeddings give a token's row of the weight, or that times one number; a model's own class may do more.

    A model's own class is tried out with a weight of two rows, and its buffers at 1: on the meta device they hold none.
    """
    if not type(module).__module__.startswith("transformers.models."):
        return True
    weight = torch.stack([torch.linspace(*ends, module.embedding_dim) for ends in ((1.0, 2.0), (6.0, 3.0))])
    stand_in = copy.copy(module)
    stand_in._parameters = {"weight": nn.Parameter(weight)}
    stand_in._buffers = {
        name: torch.ones_like(buffer, device="cpu") for name, buffer in module.named_buffers(recurse=False)
    }
    stand_in.padding_idx = None
    try:
        factors = stand_in(torch.tensor([[0, 1]])) / weight
    except Exception:  # whatever it is, it asks for more than ids
        return False
    return factors.shape == (1, *weight.shape) and torch.allclose(factors, factors[0, 0, 0])


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> list[str]:
    """Names of the parameters that transformers holds in float32 where the model is loaded in that dtype."""
    lists = ["_keep_in_fp32_modules_strict"] * (dtype in (torch.float16, torch.bfloat16))
    lists += ["_keep_in_fp32_modules"] * (dtype == torch.float16)
    patterns = {one for child in module.modules() for name in lists for one in getattr(child, name, None) or ()}
    pattern = re.compile("|".join(sorted(one.replace("*", ".*") for one in patterns)) or "$.")
    return [name for name, _ in module.named_parameters() if pattern.search(name)]


def recomputes_layers(model_class: type[PreTrainedModel]) -> bool:
    """Whether gradient checkpointing works in it."""
    return model_class.supports_gradient_checkpointing


def recompute_layers(model: Any, settings: dict[str, Any] | None = None) -> None:
    """Switches gradient checkpointing on. Args: settings: of torch's checkpointing; None: not reentrant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the method's new name is not in all versions we support
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings or {"use_reentrant": False})
    if any(not parameter.requires_grad for parameter in model.parameters()):
        model.enable_input_require_grads()  # else frozen embeddings cut the graph before the first layer


def rope_by_length(module: nn.Module, layer_type: str | None = None) -> int | None:
    """The length up to which a rotary embedding with frequencies by length keeps its original ones; None for others.

    Args:
        layer_type: of the layers it is asked for, where it has frequencies for several; None: any that has.
    """
    types = getattr(module, "rope_type", None)
    if isinstance(types, dict):
        names = types if layer_type is None else [layer_type]
        return next((limit for name in names if (limit := _original_length(module, types[name], name))), None)
    return None if types is None else _original_length(module, types, None)


def _original_length(module: Any, rope_type: str, layer_type: str | None) -> int | None:
    if rope_type == "longrope":
        parameters = module.config.rope_parameters
        return (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    return module.original_max_seq_len if "dynamic" in rope_type else None


def import_ring_flash_attn() -> ModuleType:
    """The package, whose newest version (0.1.8) asks a module of transformers for a name that has moved to another."""
    name = "is_flash_attn_greater_or_equal_2_10"
    if not hasattr(formerly, name):
        setattr(formerly, name, functools.partial(is_flash_attn_greater_or_equal, "2.1.0"))
    return importlib.import_module("ring_flash_attn")


def liger_model_types() -> set[str]:
    """The types of models that Liger has kernels for; it leaves any other as it is, without a word."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return set(MODEL_TYPE_TO_APPLY_LIGER_FN)


def put_liger_kernels_into(model: PreTrainedModel) -> None:
    """Liger's fused norms, rotary embeddings and MLPs, in place; not its head and loss."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
