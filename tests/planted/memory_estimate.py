"""Bugs of the memory that is told before a run starts."""

from __future__ import annotations

from tests.planted.bug import Bug

_ESTIMATE = "tests/runs/test_memory_estimate.py::test_"

BUGS = [
    Bug(
        "estimate_forgets_activations",
        "a run that cannot fit is let go",
        "engine/state_memory.py",
        "return self.device_bytes + max(self.beside_bytes + activation_bytes, self.update_bytes)",
        "return self.device_bytes + max(self.beside_bytes, self.update_bytes)",
        (f"{_ESTIMATE}the_estimate_is_within_15_percent_of_the_measured_peak[dense, full]",),
    ),
    Bug(
        "estimate_counts_adapters_in_float32",
        "LoRA is promised half as much memory again as it takes",
        "models/activation_memory.py",
        "model.to(facts.dtype)",
        "pass",
        (f"{_ESTIMATE}adapters_are_of_the_models_precision",),
    ),
    Bug(
        "estimate_counts_weights_as_activations",
        "every model is promised its weights twice",
        "models/activation_memory.py",
        "held = [*model.parameters(), *model.buffers()]",
        "held: list[Tensor] = []",
        (f"{_ESTIMATE}weights_are_no_activations",),
    ),
    Bug(
        "ranks_each_count_the_whole_machine",
        "eight ranks are each promised all of the machine's memory",
        "run/memory_estimate.py",
        "None if on_host is None else on_host // ranks_here",
        "on_host",
        (f"{_ESTIMATE}the_ranks_of_a_machine_share_its_memory",),
    ),
    Bug(
        "a_run_without_room_goes_on",
        "a run that cannot fit is ended by the kernel an hour later",
        "run/memory_estimate.py",
        "<= LARGEST_ERROR * memory.device_bytes:",
        "<= 1e9 * memory.device_bytes:",
        (f"{_ESTIMATE}a_run_without_room_is_refused_with_a_way_that_fits",),
    ),
    Bug(
        "host_memory_is_taken_for_endless",
        "an offloaded optimizer fills the host",
        "run/memory_estimate.py",
        "return on_host and self",
        "return self",
        (f"{_ESTIMATE}an_offloaded_state_must_fit_the_hosts_memory",),
    ),
    Bug(
        "slow_half_precision_is_not_told",
        "a run in bf16 takes twice the time of one in float32, and nobody says so",
        "engine/processor.py",
        "if in_float32 < _WORTH_SAYING * in_bf16:",
        "if True:",
        ("tests/engine/test_processor.py::test_slow_half_precision_is_told_with_both_rates",),
    ),
    Bug(
        "fast_half_precision_is_slandered",
        "a run in bf16 is told to take float32 where that is no faster",
        "engine/processor.py",
        "if in_float32 < _WORTH_SAYING * in_bf16:",
        "if False:",
        ("tests/engine/test_processor.py::test_nothing_is_said_where_half_precision_is_about_as_fast",),
    ),
    Bug(
        "a_layer_computed_again_stands_alone",
        "experts that are computed again are promised less than they take beside the gradients of the layers behind",
        "models/activation_memory.py",
        "num_tokens * held + waiting_bytes * min(done, BUCKET_NUMBERS)",
        "num_tokens * held",
        (f"{_ESTIMATE}a_layer_computed_again_stands_beside_the_gradients_behind_it",),
    ),
    Bug(
        "zero_3_keeps_no_bucket",
        "a run of ZeRO-3 is promised a sixth less than it takes",
        "engine/state_memory.py",
        "fills = sent > 0 and on_cpu and zero_stage < 3",
        "fills = sent > 0 and on_cpu",
        (f"{_ESTIMATE}zero_3_keeps_its_bucket_beside_the_weights_that_it_gathers",),
    ),
    Bug(
        "scores_are_not_counted",
        "a model with soft caps is estimated as if a kernel computed its attention",
        "models/activation_memory.py",
        "        scores_kept=scores_kept / _TOKENS_TRIED**2,\n",
        "",
        (f"{_ESTIMATE}scores_that_an_attention_keeps_are_counted",),
    ),
    Bug(
        "tensor_parallelism_divides_all",
        "embeddings and head are estimated as if tensor parallelism shared them out",
        "models/activation_memory.py",
        "num_shared_out=sum(one.numel() for one in shared_out),",
        "num_shared_out=sum(one.numel() for one in weights),",
        (f"{_ESTIMATE}tensor_parallelism_divides_what_it_shares_out_alone",),
    ),
    Bug(
        "a_reference_of_four_bits_takes_sixteen",
        "a reference that is quantized is estimated as if it were not",
        "run/memory_estimate.py",
        "model.num_linear * (1 + self._num_frozen)",
        "model.num_linear",
        (f"{_ESTIMATE}four_bits_are_saved_in_the_layers_of_every_frozen_model",),
    ),
]
