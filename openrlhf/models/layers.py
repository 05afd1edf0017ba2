"""Changes to the layers of a loaded model: Liger's fused kernels, torch.compile."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from openrlhf.engine.model_internals import layers_of, liger_model_types, put_liger_kernels_into
from openrlhf.engine.torch_operators import num_compiled_graphs
from openrlhf.errors import UserError, first_line_of

log = logging.getLogger(__name__)

_SWITCHES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")


def check_liger(config: PretrainedConfig) -> None:
    """Raises UserError where liger-kernel is not installed, does not import, or has no kernels for such a model."""
    flag = "--ds.use_liger_kernel"
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(f"{flag} needs a package: pip install liger-kernel")
    try:
        known = liger_model_types()
    except Exception as error:  # whatever it is, the package is of no use
        raise UserError(
            f"{flag}: liger-kernel cannot be loaded ({type(error).__name__}: {first_line_of(error)}): "
            "pip install --upgrade liger-kernel, or leave the flag out."
        ) from error
    if config.model_type not in known:
        raise UserError(f"{flag}: Liger has no kernels for {config.model_type} models. Leave the flag out.")


def apply_liger_kernels(model: PreTrainedModel) -> None:
    """Puts Liger's fused norms, rotary embeddings and MLPs into the model, in place; its head and loss stay ours.

    Raises UserError as `check_liger`.
    """
    check_liger(model.config)
    put_liger_kernels_into(model)


def check_compile_layers(device_type: str) -> None:
    """Raises UserError where torch.compile can do nothing here: it would say so at the first step, or not at all."""
    remedy = "or leave --model.compile_layers out."
    if not _torch_compiles(remedy):
        raise UserError(f"torch.compile is switched off here: unset {' and '.join(_SWITCHES)}, {remedy}")
    check_compiler(device_type, remedy)


def check_muon(device_type: str) -> None:
    """Raises UserError where DeepSpeed's Muon, which torch compiles at the first update, cannot be compiled."""
    remedy = f"or set {_SWITCHES[0]}=1: Muon does the same uncompiled, and slower."
    if _torch_compiles(remedy):
        check_compiler(device_type, remedy)


def _torch_compiles(remedy: str) -> bool:
    try:
        return bool(torch.compile(_one_if_compiled, backend="eager")(torch.zeros(())))
    except Exception as error:  # whatever it is, such as a Python that torch.compile does not know yet
        raise UserError(f"torch.compile does not work here: {error}. Mend that, {remedy}") from error


def check_compiler(device_type: str, remedy: str) -> None:
    """Raises UserError where torch.compile lacks a program or a file. Args: remedy: what else helps, "or ..."."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(f"torch.compile needs a package on CUDA: pip install triton, {remedy}")
    variable, usual = ("CC", ["gcc", "clang"]) if device_type == "cuda" else ("CXX", ["g++"])
    compilers = shlex.split(os.environ.get(variable, ""))[:1] or usual
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"torch.compile needs a compiler, and {' or '.join(compilers)} is not on the PATH: install one, or name "
            f"another in {variable}, {remedy}"
        )
    places = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}  # torch looks in both
    if not any(Path(place, "Python.h").is_file() for place in places):
        raise UserError(f"torch.compile needs Python's headers: install python3-dev, {remedy}")


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles the layers of a model of transformers in place, when they are first called; lengths may differ.

    Layer by layer and not the model as a whole: equal layers share one compiled form, and attention, which is a kernel
    of its own, stays as it is.

    Raises:
        UserError: the model does not say what its layers are.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError(f"{type(model).__name__} does not name its layers: leave --model.compile_layers out.")
    for layer in layers:
        layer.__class__ = _compiled_class(type(layer))  # type: ignore[arg-type]  # a class has a hash, whatever mypy says


@functools.cache
def _compiled_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """A class of the same layers whose forward pass is compiled.

    transformers wraps the forward pass of every class of layers in gradient checkpointing. A subclass has that around
    what is compiled; compiled with it, a layer whose attention is not compiled would not be compiled at all.
    """
    compiled = torch.compile(layer_class.forward, dynamic=True)
    is_first = True

    @functools.wraps(layer_class.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        num_graphs = num_compiled_graphs()
        output = compiled(self, *args, **kwargs)
        if not torch.is_grad_enabled():  # such as a look at the layout, which compiles nothing on purpose
            return output
        if is_first and num_compiled_graphs() == num_graphs:
            log.warning(
                "--model.compile_layers changes nothing: torch.compile made no graph of %s. TORCH_LOGS=graph_breaks "
                "shows why.",
                layer_class.__name__,
            )
        is_first = False
        return output

    return type(layer_class.__name__, (layer_class,), {"forward": forward, "__module__": layer_class.__module__})


def _one_if_compiled(zero: Tensor) -> Tensor:
    return zero + 1 if torch.compiler.is_compiling() else zero
