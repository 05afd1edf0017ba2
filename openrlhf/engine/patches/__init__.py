"""Changes to how DeepSpeed and torch behave: one file a patch, with its reason and the issue upstream.

`OPENRLHF_PATCHES=off` in the environment switches all of them off, to see whether a fault is ours or the library's; it
is no way to train (see the third column). Each patch names the versions it was made for. With another version it is
left out, or applied unverified, and one line on rank 0 says so. `tests/engine/test_patches.py` runs each library
unpatched and fails once the reason of a patch is gone.

| patch | of | switched off |
| --- | --- | --- |
| bf16_gradients | DeepSpeed's BF16_Optimizer and engine, two methods of these objects | the same numbers, slower |
| built_operators | DeepSpeed's table of loaded operators | a start takes 2 s longer |
| cpu_adam_steps | DeepSpeed's Adam operators on the CPU, one call more | a resume may differ in the last bit |
| held_updates | `step` of the one optimizer, while DeepSpeed calls it | no guard in fp32 without ZeRO, none for spikes; \
16 bits without ZeRO count a step too many |
| tensor_data_check | a hook of DeepSpeed's on the module | tensor parallelism fails where a process group is an input |

Elsewhere the package only reads or calls what other libraries do not document. A change of theirs raises an error there,
or fails a test.

| place | reads or calls |
| --- | --- |
| engine/fragments.py | DeepSpeed's optimizers: groups, flat tensors, positions, `_hp_mapping`; its engine's groups, counters, \
loss scale |
| engine/parameters.py | parameters of ZeRO-3 (`ds_id`, `ds_shape`, `ds_numel`) and of AutoTP |
| engine/step_guard.py | `_global_grad_norm` of DeepSpeed's optimizers |
| engine/launch.py | torchrun's `TORCHELASTIC_USE_AGENT_STORE` |
| engine/operators.py | the `lock` of torch's builds |
| models/attention/causal_pack.py, ring_kernels.py | torch's flash operators on the CPU and CUDA |
| models/attention/packable.py | transformers' `_is_stateful`, `_supports_attention_backend`, `_supports_flash_attn` |
| models/compiled_layers.py | transformers' `_no_split_modules` |
| models/head/head_probe.py | `_modules` of torch's modules, of a copy |
| models/head/tied_embedding.py | the class of a model's own embeddings is set |
| models/limits.py | torch's `mkldnn._is_mkldnn_fp16_supported` |
| run/run_summary.py | transformers' `_attn_implementation` |
"""
