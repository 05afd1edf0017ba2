"""Changes to how DeepSpeed, torch and transformers behave: one file a patch, with its reason and the issue upstream.

`OPENRLHF_PATCHES=off` in the environment switches all of them off, to see whether a fault is ours or the library's; it
is no way to train (see the third column). Each patch names the versions that it was made for. With another version it
is left out, or applied unverified, and one line on rank 0 says so. `tests/engine/test_patches.py` runs the library
unpatched, and fails once the reason of a patch is gone.

| patch | of | switched off |
| --- | --- | --- |
| built_operators | DeepSpeed's table of loaded operators | a start takes 2 s longer |
| cpu_adam_steps | the Adam operators on the CPU: one call more | a resume may differ in the last bit |
| float32_products | torch's kernels for products of matrices on a CPU, and of one gradient | bf16 takes many times as \
long on a CPU without an instruction for it |
| gradient_copies | one method each of BF16_Optimizer and the engine, of these objects alone | same numbers, slower |
| group_timeouts | `new_group` and `init_device_mesh` of DeepSpeed's communication object | torch may end a run first |
| held_updates | `step` of one optimizer, while DeepSpeed calls it | no guard in fp32 without ZeRO, nor for spikes; \
in 16 bits without ZeRO Adam counts a step too many |
| muon_import | DeepSpeed's decorator of Muon's functions, while Muon is imported | a start takes 1 s longer |
| shared_memory_operator | DeepSpeed's table of operators that fit this machine | the first start takes a minute \
longer, and each run leaves 66 MiB of a rank in memory |
| tensor_data_check | DeepSpeed's hook on a module | process groups as inputs end a run with tensor parallelism |
| tied_in_parts | `tie_weights` of transformers' models, while ZeRO-3 loads one | embeddings that a folder holds apart \
are tied unseen |
| torch_adam | DeepSpeed's table of loaded operators | AdamW ends a run where it cannot be compiled |

Elsewhere the package reads, calls or, where the table says so, sets parts of other libraries that they do not document.
A change of theirs raises an error there, or fails a test.

| place | reads or calls |
| --- | --- |
| engine/abandoned_step.py | DeepSpeed's optimizers: buckets, sums, marks of weights; sets them as after an update |
| engine/fragments.py | DeepSpeed's optimizers: groups, flat tensors, positions, `_hp_mapping` |
| engine/engine_state.py | DeepSpeed's engine: counters, loss scale, groups of ranks |
| engine/parameters.py | parameters of ZeRO-3 (`ds_id`, `ds_shape`, `ds_numel`) and of AutoTP |
| engine/step_guard.py | `_global_grad_norm` of DeepSpeed's optimizers |
| engine/optimizers.py | DeepSpeed's Muon, and its mark `use_muon` on parameters; `_last_lr` of a schedule |
| engine/processor.py | torch's tests of the processor, `torch.cpu._is_…` |
| engine/launch.py | torchrun's `TORCHELASTIC_USE_AGENT_STORE` |
| engine/devices.py | DeepSpeed takes `LOCAL_RANK` for the index of the device, and compares Open MPI's |
| engine/operators.py | the `lock` of torch's builds |
| engine/torch_operators.py | torch's flash operators on the CPU and CUDA; `_fused_adamw_`; \
`mkldnn._is_mkldnn_fp16_supported` |
| engine/model_internals.py | transformers' `_is_stateful`, `_supports_attention_backend`, `_supports_flash_attn`, \
`_supports_sdpa`, `_compatible_flash_implementations`, `_keep_in_fp32_modules`, \
`_from_config`, `_no_split_modules`, `_attn_implementation`; \
Liger's `_apply_liger_kernel_to_instance`; sets in transformers a name that ring-flash-attn looks for, and \
`torch.autocast` while a model without weights is looked at |
| models/head/ | the class of a model's own embeddings |
"""
