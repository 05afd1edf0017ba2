"""Bugs in prompts that the answers of a pair share."""

from __future__ import annotations

from tests.planted.bug import Bug

_CURVES = ("tests/objectives/test_shared_prompts.py::test_a_curve_with_shared_prompts_is_the_one_without",)
_PACK = ("tests/objectives/test_shared_prompts.py",)

BUGS = [
    Bug(
        "answers_begin_at_position_0",
        "an answer behind a shared prompt is given the positions of a sequence without one",
        "batching/micro_batch.py",
        "torch.arange(b, b + n)",
        "torch.arange(0, n)",
        _CURVES,
    ),
    Bug(
        "one_answer_alone_teaches_the_prompt",
        "of the two answers' gradients for the keys of their prompt one is lost",
        "models/attention/ring.py",
        "into.index_add_(0, block.keys.index, part.to(into.dtype))",
        "into[block.keys.index] = part.to(into.dtype)",
        _CURVES,
    ),
    Bug(
        "answers_see_the_prompt_of_one_rank",
        "under a ring an answer sees the part of its prompt that its own rank holds, as often as there are ranks",
        "models/attention/ring_plan.py",
        "_prompt_block(shares, rank, source, prompt_of, begins, device)",
        "_prompt_block(shares, rank, rank, prompt_of, begins, device)",
        _CURVES,
    ),
    Bug(
        "the_first_token_is_predicted_by_itself",
        "the place behind a shared prompt is taken for a place of the prompt",
        "batching/micro_batch.py",
        "torch.where(token < self.num_shared,",
        "torch.where(token <= self.num_shared,",
        _PACK,
    ),
    Bug(
        "a_plan_nobody_reads",
        "an attention that knows nothing of shared prompts is trained without a word",
        "models/prepared_model.py",
        "self.check_layout(True, sequence_group, prompt_of is not None)",
        "self.check_layout(True, sequence_group)",
        _PACK,
    ),
    Bug(
        "an_answer_without_a_token",
        "the shorter answer is all shared, and an empty sample stands in the pack",
        "batching/micro_batch.py",
        "for ids in (first, *others)) - 1\n",
        "for ids in (first, *others))\n",
        _PACK,
    ),
    Bug(
        "nobody_is_waited_for",
        "a rank that holds its pack alone is taken for one amid collectives when memory runs out",
        "models/attention/ring.py",
        "            self._received, self._works = tensor, []\n",
        "            self._received, self._works = tensor, []\n            _Exchange.num_begun += 1\n",
        ("tests/objectives/test_shared_prompts.py::test_what_is_sent_to_nobody_is_no_exchange",),
    ),
]
