"""Bugs of compiled layers and of what runs on CUDA alone, which the means of tests/cuda/ show on any machine."""

from __future__ import annotations

from tests.planted.bug import Bug

_COMPILED = "tests/cuda/test_compiled_layers.py"
_NO_WAITS = "tests/cuda/test_no_waits.py"
_PEFT = "tests/models/test_lora.py"
_VARLEN = "tests/cuda/test_varlen.py"

BUGS = [
    Bug(
        "checkpointing_is_compiled_with_the_layer",
        "with gradient checkpointing --model.compile_layers compiles nothing, in silence",
        "models/layers.py",
        "layer.__class__ = _compiled_class(type(layer))",
        "layer.compile(dynamic=True)",
        (f"{_COMPILED}::test_new_lengths_make_no_new_graphs",),
    ),
    Bug(
        "each_length_is_compiled",
        "every new length of a pack is compiled anew, for minutes",
        "models/layers.py",
        "torch.compile(layer_class.forward, dynamic=True)",
        "torch.compile(layer_class.forward, dynamic=False)",
        (f"{_COMPILED}::test_new_lengths_make_no_new_graphs",),
    ),
    Bug(
        "nothing_compiled_is_not_told",
        "--model.compile_layers changes nothing, and nobody is told",
        "models/layers.py",
        "if is_first and num_compiled_graphs() == num_graphs:",
        "if is_first and num_compiled_graphs() < num_graphs:",
        (f"{_COMPILED}::test_layers_of_which_nothing_is_compiled_are_named_once",),
    ),
    Bug(
        "ring_borders_as_long_integers",
        "a ring on CUDA ends at its first attention: the kernel wants int32 borders",
        "models/attention/ring_plan.py",
        "torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)",
        "torch.tensor([0, *accumulate(lengths)])",
        (f"{_VARLEN}::test_ring[plain]",),
    ),
    Bug(
        "ring_backward_with_sums_by_token",
        "a ring on CUDA computes wrong gradients: the kernel wants the sums of a head's tokens side by side",
        "models/attention/ring_kernels.py",
        "saved._replace(log_sum_exp=saved.log_sum_exp.transpose(0, 1))",
        "saved",
        (f"{_VARLEN}::test_ring[plain]",),
    ),
    Bug(
        "kernel_of_cuda_is_given_large_heads",
        "Gemma 4's heads of size 512 end a run on CUDA",
        "models/attention/per_sample.py",
        "return head_size <= 256 and",
        "return head_size <= 512 and",
        (f"{_VARLEN}::test_packed[heads of size 512]",),
    ),
    Bug(
        "ring_waits_for_its_plan",
        "each micro-batch of a ring waits until the GPU has done all work before",
        "models/attention/ring_plan.py",
        "to_device(borders, device),",
        "borders.to(device),",
        (f"{_NO_WAITS}::test_attention_of_a_ring",),
    ),
    Bug(
        "layers_read_borders_from_the_device",
        "on CUDA each layer of Gemma 2 waits until the GPU has done all work before",
        "models/attention/ring_plan.py",
        "cu_seq_lens_host=cu_seqlens.cpu(),",
        "cu_seq_lens_host=None,",
        (f"{_NO_WAITS}::test_a_micro_batch",),
    ),
    Bug(
        "micro_batches_are_copied_from_pageable_memory",
        "the GPU stands still while a micro-batch is copied to it",
        "batching/micro_batch.py",
        "tensor = tensor.pin_memory()",
        "pass",
        (f"{_NO_WAITS}::test_a_micro_batch",),
    ),
    Bug(
        "a_ring_scores_a_long_sample_at_once",
        "windows and soft caps in a ring run out of memory at 100,000 tokens",
        "models/attention/ring_kernels.py",
        "if num_heads * num_queries * num_keys <= LARGEST_TILE:",
        "if num_heads * num_queries * num_keys > 0:",
        ("tests/models/test_ring_memory.py",),
    ),
    Bug(
        "a_tile_misses_its_oldest_key",
        "in a ring a sliding window ends one token early in long samples",
        "models/attention/ring_kernels.py",
        "_num_before(key_spans, begin - window + 1)",
        "_num_before(key_spans, begin - window + 2)",
        ("tests/models/test_ring.py::test_attention_in_small_tiles",),
    ),
    Bug(
        "padding_of_zero_3_is_looked_at",
        "ZeRO-3 refuses a sound model on 3 ranks, or throws trained weights away at the end",
        "engine/parameters.py",
        "return part[: max(0, parameter.ds_numel - start)]",
        "return part",
        ("tests/models/test_zero3.py::test_what_lies_behind_a_weight_on_the_last_rank_is_not_looked_at",),
    ),
    Bug(
        "a_package_that_breaks_peft_is_a_traceback",
        "a bitsandbytes for another CUDA ends each run with adapters in a traceback",
        "models/lora.py",
        "except Exception as error:  # bitsandbytes",
        "except ImportError as error:  # bitsandbytes",
        (f"{_PEFT}::test_a_package_that_breaks_peft_is_told_before_data_are_prepared",),
    ),
    Bug(
        "peft_is_looked_for_late",
        "data are prepared for a run whose adapters cannot be made",
        "run/builders.py",
        "        check_peft()\n",
        "        pass\n",
        (f"{_PEFT}::test_a_package_that_breaks_peft_is_told_before_data_are_prepared",),
    ),
    Bug(
        "lengths_are_read_from_the_device",
        "with longrope the host waits for the GPU in each forward pass of a pack",
        "models/rope.py",
        "lengths.unique().tolist() if self._numbers is None else self._numbers",
        "lengths.unique().tolist()",
        (f"{_NO_WAITS}::test_rotary_embeddings_by_length",),
    ),
]
