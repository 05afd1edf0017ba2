"""Flash attention of other people's packages, as transformers loads it: what is installed, imports, fits GPU and model.

Known by transformers' names: `flash_attention_2`, `_3`, `_4`, and kernels of the hub, which are `owner/name`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable
from typing import NamedTuple

import torch
import transformers
from transformers.modeling_flash_attention_utils import (
    FLASH_ATTENTION_COMPATIBILITY_MATRIX,
    lazy_import_flash_attention,
)
from transformers.utils import import_utils

from openrlhf.engine.model_internals import flash_attentions_of, takes_borders
from openrlhf.errors import first_line_of
from openrlhf.models.attention.calls import AttentionCall, ModelFacts
from openrlhf.models.attention.per_sample import FLASH_DTYPES


class FlashPackage(NamedTuple):
    """A package that transformers takes flash attention from."""

    generation: int  # transformers' number for it
    distribution: str
    install_line: str
    capabilities: range  # of GPUs that it has kernels for, their major numbers


_NEWEST = 99
PACKAGES = {
    "flash_attention_2": FlashPackage(
        2, "flash-attn", "pip install flash-attn --no-build-isolation", range(8, _NEWEST)
    ),
    "flash_attention_3": FlashPackage(
        3,
        "flash-attn-3",
        "pip install --no-build-isolation 'git+https://github.com/Dao-AILab/flash-attention.git#subdirectory=hopper'",
        range(9, 10),
    ),
    "flash_attention_4": FlashPackage(4, "flash-attn-4", "pip install --pre flash-attn-4", range(9, _NEWEST)),
}
TORCH_VARLEN_CAPABILITIES = range(8, _NEWEST)


def is_flash(name: str) -> bool:
    """Whether another package computes it."""
    return name in PACKAGES or "/" in name


def reason_against_flash(
    name: str, device_type: str, model: ModelFacts, calls: frozenset[AttentionCall] | None
) -> str | None:
    """Why the model cannot be trained with this flash attention here, with the remedy; None: it can.

    What no installation would change comes first, that nobody builds a package in vain.

    Args:
        calls: from `attention_calls`; None where they are not known.
    """
    return (
        _reason_of_model(name, model, calls or ())
        or (_kernels_missing() if "/" in name else _package_missing(PACKAGES[name]))
        or _reason_of_machine(name, device_type, model.dtype)
        or _reason_of_load(name, calls or ())
    )


def beyond_16_bits(dtype: torch.dtype) -> str | None:
    """Why flash kernels, torch's own among them, do not compute in `dtype`; None: they do."""
    if dtype in FLASH_DTYPES:
        return None
    return f"it computes in 16 bits (--ds.param_dtype bf16 or fp16), not in {str(dtype).removeprefix('torch.')}"


def beyond_gpu(capabilities: range) -> str | None:
    """Why kernels for these major compute capabilities do not run on this process' GPU; None: they do, or may."""
    try:
        found = torch.cuda.get_device_capability()[0]
    except (AssertionError, RuntimeError):  # torch cannot tell, and a GPU that is not known is not refused
        return None
    if found in capabilities:
        return None
    wanted = f"{capabilities.start}{' or later' if capabilities.stop == _NEWEST else ''}"
    return f"it runs on GPUs of compute capability {wanted}, and this one has {found}"


def _reason_of_model(name: str, model: ModelFacts, calls: Iterable[AttentionCall]) -> str | None:
    if model.model_class is not None:
        class_name, allowed = model.model_class.__name__, flash_attentions_of(model.model_class)
        if not takes_borders(model.model_class):
            return f"{class_name} takes no flash attention"
        if allowed is not None and name not in allowed:
            return f"transformers computes {class_name} by no flash attention but {', '.join(allowed)}"
    for call in calls:
        if heads := call.beyond_flash_heads():
            return f"the model has {heads}, and flash attention computes multiples of 8 up to 256"
        if call.has_own_mask:
            return "the model makes masks of its own, which flash attention does not read"
        if call.told_window != call.mask_window:
            return "the model's layers do not tell their attention the window"
    return None


def _package_missing(package: FlashPackage) -> str | None:
    if _version_of(package.distribution) is not None:
        return None
    is_taken_for_another = package.generation == 2 and _version_of("flash-attn-4") is not None
    here = " (the module flash_attn is flash-attn-4's)" if is_taken_for_another else ""
    return f"the package {package.distribution} is not installed{here}: {package.install_line}"


def _kernels_missing() -> str | None:
    """transformers takes a narrow range of versions, and says for itself whether one is there."""
    if import_utils.is_kernels_available():
        return None
    wanted = f"kernels>={import_utils.KERNELS_MIN_VERSION},<{import_utils.KERNELS_MAX_VERSION}"
    found = _version_of("kernels")
    state = f"kernels {found} is installed" if found else "the package kernels is not installed"
    return f"{state}, and transformers {transformers.__version__} loads kernels of the hub by pip install '{wanted}'"


def _reason_of_machine(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it runs on CUDA only, not on {device_type}"
    return beyond_16_bits(dtype) or (beyond_gpu(PACKAGES[name].capabilities) if name in PACKAGES else None)


def _reason_of_load(name: str, calls: Iterable[AttentionCall]) -> str | None:
    """Loads it as transformers will when it loads the model, and looks at what its function takes."""
    if name in PACKAGES:
        package = PACKAGES[name]
        title = f"{package.distribution} {_version_of(package.distribution)}"
        if not FLASH_ATTENTION_COMPATIBILITY_MATRIX[package.generation]["general_availability_check"]():
            return f"transformers {transformers.__version__} does not take {title}: {package.install_line} --upgrade"
        remedy = f"It may be built for another torch: {package.install_line} --force-reinstall --no-deps"
    else:
        title, remedy = "the kernel", "Is the name right, and can the hub be reached?"
    try:
        (_, varlen_function, *_), _ = lazy_import_flash_attention(name)
    except Exception as error:  # whatever it is, the package is of no use
        return f"{title} cannot be loaded ({type(error).__name__}: {first_line_of(error)}). {remedy}"
    if varlen_function is None:
        return f"{title} has no function for packs"
    taken = set(inspect.signature(varlen_function).parameters)
    return next((reason for call in calls if (reason := _not_taken(call, taken))), None)


def _not_taken(call: AttentionCall, parameters: set[str]) -> str | None:
    """What the layer asks for and the package's function does not take; transformers drops some of it in silence."""
    if call.has_softcap and "softcap" not in parameters:
        return "it does not know the model's soft-capped scores"
    if call.has_sinks and not parameters & {"s_aux", "learnable_sink"}:
        return "it does not know the model's attention sinks"
    if call.dropout > 0 and "dropout_p" not in parameters:
        return "it does not know the model's attention dropout"
    return None


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
