"""Liger's fused kernels for norms, rotary embeddings and MLPs, where the package is installed."""

from __future__ import annotations

from transformers import PreTrainedModel

from openrlhf.errors import UserError


def apply_liger_kernels(model: PreTrainedModel) -> None:
    """Replaces layers of the model in place; its head and loss stay ours. Raises UserError without liger-kernel."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError:
        raise UserError("--ds.use_liger_kernel needs a package: pip install liger-kernel") from None
    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
