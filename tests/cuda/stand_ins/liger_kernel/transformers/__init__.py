"""liger-kernel: it has kernels for llama alone, and marks a model that got them."""

from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN


def _apply_liger_kernel_to_instance(model, **kwargs):
    if model.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN:
        MODEL_TYPE_TO_APPLY_LIGER_FN[model.config.model_type](model=model, **kwargs)
