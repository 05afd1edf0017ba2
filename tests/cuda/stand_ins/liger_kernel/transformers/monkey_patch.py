def apply_liger_kernel_to_llama(model, **kwargs):
    model.got_liger_kernels = kwargs


MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_liger_kernel_to_llama}
