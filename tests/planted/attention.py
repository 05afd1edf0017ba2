"""Bugs of packed and ring attention (models/attention/, parallel/)."""

from __future__ import annotations

from tests.planted.bug import Bug

_ACTOR = "tests/models/test_actor.py"
_PACK = "tests/models/test_causal_pack.py"
_RING = "tests/models/test_ring.py"
_SMALL_RING = f"{_RING}::test_attention_of_few_tokens"
_SHARES = "tests/parallel/test_sequence_shares.py"

BUGS = [
    Bug(
        "kernel_sees_the_next_token",
        "in bf16 on a CPU a token sees the one that it should predict",
        "models/cpu_kernels/attention.cpp",
        "is_diagonal ? row + 1 : keys.count",
        "is_diagonal ? row + 2 : keys.count",
        (f"{_PACK}::test_in_half_precision_it_is_as_exact_as_torch",),
    ),
    Bug(
        "kernel_mixes_answers",
        "in bf16 on a CPU the rejected answer of a pair with a shared prompt sees the chosen one",
        "models/cpu_kernels/blocks.h",
        "(key < num_of_prompt || key >= all[query].sample_begin)",
        "(key < num_of_prompt || key >= all[query].sample_begin - 1)",
        (f"{_PACK}::test_answers_to_one_prompt_do_not_see_one_another",),
    ),
    Bug(
        "kernel_reads_beyond_a_prompt",
        "in bf16 on a CPU what pads the last block of a shared prompt takes weight from its tokens",
        "models/cpu_kernels/attention.cpp",
        "is_diagonal ? row + 1 : keys.count",
        "is_diagonal ? row + 1 : keys.padded",
        (f"{_PACK}::test_samples_that_share_a_prompt_are_as_exact_as_torch",),
    ),
    Bug(
        "kernel_forgets_a_gradient",
        "in bf16 on a CPU what a token gives to itself has no gradient",
        "models/cpu_kernels/attention.cpp",
        "is_diagonal ? row + which - i : 0;",
        "is_diagonal ? row + which - i + 1 : 0;",
        (f"{_PACK}::test_in_half_precision_it_is_as_exact_as_torch",),
    ),
    Bug(
        "kernel_keeps_old_sums",
        "in bf16 on a CPU weights of a sample longer than a block do not add up to one",
        "models/cpu_kernels/attention.cpp",
        "sum = sum * correction + sum_of(total);",
        "sum = sum + sum_of(total);",
        (f"{_PACK}::test_a_long_sample",),
    ),
    Bug(
        "kernel_reads_beyond_its_rows",
        "in bf16 on a CPU memory of others is read and written, which shows now and then",
        "models/cpu_kernels/attention.cpp",
        "        dots(longest),",
        "        dots(longest - kTailStep / 2),",
        ("tests/models/test_cpu_kernels_memory.py",),
    ),
    Bug(
        "kernel_hides_what_is_no_number",
        "a model that has broken goes on, its broken scores taken for small ones",
        "models/cpu_kernels/vectors.h",
        "x = x < -126.0f ? all(-126.0f) : x;",
        "x = x > -126.0f ? x : all(-126.0f);",
        ("tests/models/test_cpu_log_probs.py::test_what_is_no_number_is_not_hidden",),
    ),
    Bug(
        "attention_crosses_samples",
        "samples of a pack see those before them",
        "models/attention/per_sample.py",
        "lengths = (cu_seq_lens_q if cu_seq_lens_host is None else cu_seq_lens_host).diff().tolist()",
        "lengths = [query.shape[2]]",
        (f"{_ACTOR}::test_gradients_never_cross_samples_in_a_pack",),
    ),
    Bug(
        "attention_border_off_by_one",
        "the first token of a sample sees the sample before it",
        "models/attention/per_sample.py",
        "lengths = (cu_seq_lens_q if cu_seq_lens_host is None else cu_seq_lens_host).diff().tolist()",
        "lengths = (cu_seq_lens_q + (cu_seq_lens_q > 0) * (cu_seq_lens_q < query.shape[2])).diff().tolist()",
        (f"{_ACTOR}::test_gradients_never_cross_samples_in_a_pack",),
    ),
    Bug(
        "window_off_by_one",
        "a sliding window reaches one token too far",
        "models/attention/dense.py",
        "mask.triu_(1 - window)",
        "mask.triu_(-window)",
        (f"{_ACTOR}::test_equals_plain_transformers[mistral_window-packed]",),
    ),
    Bug(
        "attention_scores_not_capped",
        "Gemma 2's attention scores are not soft-capped",
        "models/attention/dense.py",
        "scores = options.softcap * torch.tanh(scores / options.softcap)",
        "scores = scores * 1.0",
        (f"{_ACTOR}::test_equals_plain_transformers[gemma2-packed]",),
    ),
    Bug(
        "key_heads_in_wrong_order",
        "query heads look at the keys of other groups",
        "models/attention/dense.py",
        "key.repeat_interleave(groups, dim=1)",
        "key.repeat(1, groups, 1, 1)",
        (f"{_ACTOR}::test_equals_plain_transformers[llama-packed]",),
    ),
    Bug(
        "models_that_leak_are_packed",
        "a state-space layer carries one sample into the next, in silence",
        "models/attention/choice.py",
        "if unknown:",
        "if unknown and False:",
        (
            "tests/models/test_attention_choice.py::test_models_that_would_leak_are_refused_before_their_weights_are_read",
        ),
    ),
    Bug(
        "ring_merge_without_the_maximum",
        "large attention scores overflow where blocks of a ring are merged",
        "models/attention/ring.py",
        "after = torch.logaddexp(before, part_log_sum_exp)",
        "after = (before.exp() + part_log_sum_exp.exp()).log()",
        ("tests/models/test_ring_merge.py::test_merged_blocks_are_the_attention_over_all_keys",),
    ),
    Bug(
        "ring_merge_keeps_the_old_weight",
        "what a rank saw first weighs too much",
        "models/attention/ring.py",
        "output[rows] = output[rows] * kept + part",
        "output[rows] = output[rows] + part",
        ("tests/models/test_ring_merge.py::test_merged_blocks_are_the_attention_over_all_keys",),
    ),
    Bug(
        "ring_backward_lacks_a_block",
        "keys and values get no gradient from the other ranks' queries",
        "models/attention/ring.py",
        "                grad_carried += arriving.wait()",
        "                arriving.wait()",
        (_SMALL_RING,),
    ),
    Bug(
        "ring_backward_overwrites_queries",
        "a query's gradient is that of one block",
        "models/attention/ring.py",
        "grad_query[rows] += dq",
        "grad_query[rows] = dq.to(grad_query.dtype)",
        (_SMALL_RING,),
    ),
    Bug(
        "ring_sees_the_future",
        "tokens see late chunks of other ranks, which lie after them",
        "models/attention/ring_plan.py",
        "key_chunks = (0,) if source < rank else (0, 1)",
        "key_chunks = (0, 1)",
        (_SMALL_RING,),
    ),
    Bug(
        "shares_lose_tokens",
        "with a ring, tokens of samples whose length it does not divide are lost",
        "parallel/sequence_shares.py",
        "return index * length // num_chunks, (index + 1) * length // num_chunks",
        "return index * (length // num_chunks), (index + 1) * (length // num_chunks)",
        (f"{_SHARES}::test_every_token_is_held_once",),
    ),
    Bug(
        "shares_are_not_balanced",
        "the last rank of a ring works while the first waits",
        "parallel/sequence_shares.py",
        "return chunk(ring_rank), chunk(num_chunks - 1 - ring_rank)",
        "return chunk(2 * ring_rank), chunk(2 * ring_rank + 1)",
        (f"{_SHARES}::test_causal_work_is_even",),
    ),
    Bug(
        "share_loses_targets",
        "a rank of a ring predicts another rank's targets",
        "batching/micro_batch.py",
        "is_mine = target_index >= 0",
        "is_mine = target_index > 0",
        ("tests/batching/test_micro_batch.py::test_ring_shares_hold_every_token_and_every_target_once",),
    ),
]
