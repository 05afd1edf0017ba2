"""Low-rank adapters (arXiv 2106.09685) beside a model's layers, by PEFT; and models of which a part is trained."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from openrlhf.config.adapter_settings import LoraConfig
from openrlhf.engine.model_internals import computes_as_linear, computes_as_lookup
from openrlhf.engine.parameters import whole_numel, whole_shape
from openrlhf.errors import UserError, first_line_of, is_out_of_memory

ALL_LINEAR = "all-linear"
# By type: layers whose weight is read without a call, so that an adapter beside them is never trained.
_UNCALLED_LAYERS = {
    "bamba": {"out_proj"},
    "falcon_h1": {"out_proj"},
    "falcon_mamba": {"dt_proj", "out_proj"},
    "granitemoehybrid": {"out_proj"},
    "jamba": {"dt_proj"},
    "mamba": {"dt_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "nemotron_h": {"out_proj"},
    "zamba2": {"out_proj"},
}
_NEVER_TRAINED = "the model reads the layer's weight without calling it: its adapter would not be trained."

logger = logging.getLogger(__name__)


def lora_of(rank: int, alpha: int, dropout: float, target_modules: Sequence[str] | str | None) -> LoraConfig:
    """The settings that OpenRLHF's signature has; None for the layers: all linear ones."""
    modules = [target_modules] if isinstance(target_modules, str) else target_modules
    return LoraConfig(rank, alpha, dropout, tuple(modules or (ALL_LINEAR,)))


def check_peft() -> None:
    """Raises UserError where PEFT is not installed, or a package that it looks at when it is loaded is broken."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--ds.lora.rank needs the package peft: pip install peft")
    try:
        import peft  # noqa: F401
    except Exception as error:  # bitsandbytes without its CUDA is an OSError
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"--ds.lora.rank: PEFT cannot be loaded, as the package {_package_at_fault(error)} fails here "
            f"({type(error).__name__}: {first_line_of(error)}). Update or remove it."
        ) from error


def _package_at_fault(error: Exception) -> str:
    """The innermost one that was at work, and is not Python's own."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return [package for name in frames if (package := name.partition(".")[0]) not in sys.stdlib_module_names][-1]


def add_lora(model: PreTrainedModel, lora: LoraConfig, of_shapes: bool = False, keeps_dtype: bool = True) -> nn.Module:
    """Freezes the model and puts trainable adapters beside its layers: new ones, or those of a folder.

    With "all-linear", layers that are linear by their class alone (routers, grouped projections) get none.
    In a model `of_shapes`, on the meta device, no adapter is loaded and nothing is told. Adapters have the model's
    dtype, unless `keeps_dtype` is False: then half precision becomes float32, as for a merge, which rounds once.

    Raises:
        UserError: PEFT cannot be loaded, or does not take a package that is here; a name or number of a layer is none
            of the model's or takes no adapter, or the folder's adapter is another model's.
    """
    check_peft()
    if lora.adapter_name_or_path is not None:
        with_adapters: Any = _put_into(model, _saved_config(lora.adapter_name_or_path), keeps_dtype)
        _check_lookups(with_adapters)
        if keeps_dtype:
            _check_called_in_folder(with_adapters, lora.adapter_name_or_path)
        if not of_shapes:
            _load_adapter(with_adapters, lora.adapter_name_or_path)
        return with_adapters
    _check_names(model, lora)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    left_out = [n for n, module in linear.items() if isinstance(module, nn.Linear) and not computes_as_linear(module)]
    uncalled = [name for name in linear if _is_uncalled(model, name)]
    suitable = [name for name in linear if name not in (*left_out, *uncalled)]
    if _takes_all(lora):
        left_out += uncalled
    sizes = {name: whole_numel(parameter) for name, parameter in model.named_parameters()}
    fused = _fused_experts(model)
    try:
        _check_called(lora, uncalled)
        with_adapters = _put_into(model, _new_config(model, lora, left_out, suitable), keeps_dtype)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(_refusal(lora, error, suitable)) from error
    _check_lookups(with_adapters)
    if _takes_all(lora) and not of_shapes:
        # PEFT knows the fused experts of some models by the names of the layers that they were.
        adapted = getattr(with_adapters.peft_config["default"], "target_parameters", None) or ()
        fused = [name for name in fused if not name.endswith(tuple(adapted))]
        _tell_of_weights_without_adapters(left_out, fused, sum(sizes[name] for name in fused) / sum(sizes.values()))
    return with_adapters


def _put_into(model: PreTrainedModel, config: Any, keeps_dtype: bool) -> Any:
    from peft import get_peft_model

    try:
        # Whole layers keep their dtype, and ZeRO-3 knows one for all that it trains. Master weights are float32.
        return get_peft_model(model, config, autocast_adapter_dtype=not keeps_dtype)
    except ImportError as error:  # PEFT looks at optional packages, and refuses an old torchao
        words = f"PEFT does not take a package here: {first_line_of(error)}. Update or remove it."
        raise UserError(f"--ds.lora.rank: {words}") from error


def _new_config(model: PreTrainedModel, lora: LoraConfig, left_out: list[str], suitable: list[str]) -> Any:
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType

    modules: Any = ALL_LINEAR if _takes_all(lora) else list(lora.target_modules)
    if lora.layers_to_transform is not None and modules == ALL_LINEAR:  # PEFT takes numbers beside names alone
        modules = sorted({name.rpartition(".")[2] for name in suitable if re.search(r"\.\d+\.", name)})
    return PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM if model.can_generate() else TaskType.SEQ_CLS,  # the latter trains its head whole
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        exclude_modules=left_out or None,
        bias="none",
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=_listed(lora.modules_to_save),
        target_parameters=_listed(lora.target_parameters),
        layers_to_transform=_listed(lora.layers_to_transform),
    )


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return list(values) if values else None


def _takes_all(lora: LoraConfig) -> bool:
    return lora.target_modules == (ALL_LINEAR,)


def _fused_experts(model: PreTrainedModel) -> list[str]:
    """Names of parameters that hold one matrix an expert."""
    return [
        name
        for path, module in model.named_modules()
        if "expert" in f"{path} {type(module).__name__}".lower()
        for name, parameter in module.named_parameters(path, recurse=False)
        if len(whole_shape(parameter)) == 3
    ]


def _refusal(lora: LoraConfig, error: ValueError, suitable: list[str]) -> str:
    flag = "--ds.lora.rank" if _takes_all(lora) else f"--ds.lora.target_modules {','.join(lora.target_modules)}"
    if lora.dropout and "lora_dropout" in str(error):  # of weights that are no layers: fused experts
        flag = f"--ds.lora.dropout {lora.dropout:g} (set 0 to adapt the experts)"
    if lora.use_dora and "use_dora" in str(error):
        flag = "--ds.lora.use_dora (leave it out, or name the layers by --ds.lora.target_modules)"
    known = ", ".join(sorted(_counts_by_last_name(suitable)))
    return f"{flag}: {error} Layers of this model that take adapters: {known}."


def _check_names(model: PreTrainedModel, lora: LoraConfig) -> None:
    """PEFT passes over names and numbers that the model does not have."""
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 2**62)
    if beyond := [number for number in lora.layers_to_transform or () if number >= num_layers]:
        raise UserError(f"--ds.lora.layers_to_transform {beyond[0]}: the model has the layers 0 to {num_layers - 1}.")
    modules = [name for name, _ in model.named_modules()]
    for name in lora.modules_to_save or ():
        if not any(f".{one}".endswith(f".{name}") for one in modules):
            raise _no_such("modules_to_save", name, {one.rpartition(".")[2] for one in modules})
    parameters = [name for name, _ in model.named_parameters()]
    for name in lora.target_parameters or ():
        if not any(f".{one}".endswith(f".{name}") for one in parameters):
            raise _no_such("target_parameters", name, {re.sub(r"^.*\.\d+\.", "", one) for one in parameters})


def _is_uncalled(model: Any, layer: str) -> bool:
    return layer.rpartition(".")[2] in _UNCALLED_LAYERS.get(model.config.model_type, ())


def _check_called_in_folder(with_adapters: Any, path: str) -> None:
    """Raises UserError where an adapter stands beside a layer that the model does not call."""
    from peft.tuners.lora import LoraLayer

    adapted = (name for name, module in with_adapters.named_modules() if isinstance(module, LoraLayer))
    if layer := next((name for name in adapted if _is_uncalled(with_adapters, name)), None):
        raise UserError(
            f"The adapter {path} has weights for {layer}: {_NEVER_TRAINED} Merge it first: "
            "python -m openrlhf.cli.merge_lora."
        )


def _check_called(lora: LoraConfig, uncalled: list[str]) -> None:
    """Raises ValueError where a layer is named that the model does not call."""
    for target in lora.target_modules:
        if any(f".{name}".endswith(f".{target}") for name in uncalled):
            raise ValueError(_NEVER_TRAINED)


def _check_lookups(with_adapters: nn.Module) -> None:
    """Raises UserError for an adapter beside embeddings that normalize what they find, or look it up in another way.

    PEFT adds the adapter to what comes out, and when it merges, to the weight: the merged model would be another one.
    """
    from peft.tuners.lora import Embedding

    for name, module in with_adapters.named_modules():
        base: Any = module.get_base_layer() if isinstance(module, Embedding) else None
        if base is not None and not computes_as_lookup(base):
            raise UserError(
                f"{name.removeprefix('base_model.model.')} ({type(base).__name__}) does more than look up a row of its "
                "weight, so that no adapter beside it could be merged: leave it out of --ds.lora.target_modules. "
                "--ds.lora.modules_to_save trains it whole."
            )


def _no_such(flag: str, name: str, known: Iterable[str]) -> UserError:
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.3)
    hint = f" Near it: {', '.join(near)}." if near else ""
    return UserError(f"--ds.lora.{flag} {name}: nothing in the model has this name.{hint}")


# --- an adapter to start from ---------------------------------------------------------------------------------------


def _saved_config(path: str) -> Any:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(path)
    except Exception as error:  # a folder without one, values of wrong types, a hub that cannot be reached
        raise UserError(f"--ds.lora.adapter_name_or_path {path}: no adapter there: {first_line_of(error)}") from error
    config.inference_mode = False
    return config


def _load_adapter(with_adapters: Any, path: str) -> None:
    """Fills all weights of the adapter. Raises UserError where the folder lacks one, or has it in another shape."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        weights = load_peft_weights(path, device="cpu")
        found: Any = set_peft_model_state_dict(with_adapters, weights)
    except Exception as error:  # damaged files, and shapes of another model, fail in any way
        if is_out_of_memory(error):
            raise
        raise UserError(_another_models(path, first_line_of(error))) from error
    trained = {name for name, parameter in with_adapters.named_parameters() if parameter.requires_grad}
    if wrong := [*sorted(trained & {*found.missing_keys}), *sorted(found.unexpected_keys)]:
        raise UserError(_another_models(path, f"{wrong[0]} is in one of the two alone"))


def _another_models(path: str, finding: str) -> str:
    return f"The adapter {path} does not fit the model: {finding}. Give its own base."


# --- a part of the model --------------------------------------------------------------------------------------------


def freeze_all_but(model: nn.Module, patterns: Sequence[str]) -> None:
    """Leaves weights trainable whose names hold one of the patterns (regular expressions); freezes the others.

    Raises UserError where a pattern meets no name.
    """
    found = dict.fromkeys(patterns, False)
    trained: set[int] = set()
    names = []
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied weight by either name
        names.append(name)
        for pattern in patterns:
            if re.search(pattern, name):
                found[pattern] = True
                trained.add(id(parameter))
    for pattern, is_found in found.items():
        if not is_found:
            shown = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".<n>.", name) for name in names))
            raise UserError(f"--model.trainable {pattern} meets no weight of this model. It has: {shown}.")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


# --- what is said ---------------------------------------------------------------------------------------------------


def _tell_of_weights_without_adapters(left_out: Sequence[str], fused: Sequence[str], share_fused: float) -> None:
    """One line, where "all linear layers" leaves out what a reader may count among them."""
    parts = [f"{count} layers named {name}" for name, count in _counts_by_last_name(left_out).items()]
    if fused:
        names = " and ".join(_counts_by_last_name(fused))
        parts.append(f"the experts' fused weights ({names}, {share_fused:.0%} of all weights)")
    if parts and not (dist.is_initialized() and dist.get_rank()):
        logger.warning("LoRA: no adapters for %s. They stay as they are.", ", nor for ".join(parts))


def _counts_by_last_name(names: Iterable[str]) -> Counter[str]:
    """How many of the layers or weights have which name, without the path to them."""
    return Counter(name.rpartition(".")[2] for name in names)
