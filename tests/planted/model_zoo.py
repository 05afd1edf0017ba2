"""Planted bugs: models of every type, computed right or refused by name."""

from __future__ import annotations

from tests.planted.bug import Bug

_PROBE = "tests/models/test_layout_probe.py::"

BUGS = [
    Bug(
        "leaks_are_not_looked_for",
        "a model whose samples see one another in a pack trains without a word",
        "models/layout_probe.py",
        "if self._moves(changed[1][1], found[1][1], strict):",
        "if False:",
        (_PROBE + "test_plain_attention_that_leaks_is_refused_with_what_to_use_instead",),
    ),
    Bug(
        "together_is_not_held_to_alone",
        "a model that counts positions otherwise than alone trains without a word",
        "models/layout_probe.py",
        "if self._moves(states, self._alone(ids)[places], rounding):",
        "if False:",
        (_PROBE + "test_a_model_that_counts_positions_through_the_pack_is_refused",),
    ),
    Bug(
        "a_leak_is_told_to_one_rank_of_a_ring",
        "one rank of a ring refuses a model while the others wait for it",
        "models/layout_probe.py",
        "dist.all_reduce(typical, dist.ReduceOp.MAX, group=self._group)",
        "pass",
        (_PROBE + "test_a_ring_that_leaks_is_refused_on_all_its_ranks",),
    ),
    Bug(
        "a_look_leaves_modes_behind",
        "a model trains without its dropout after it was looked at",
        "models/layout_probe.py",
        "            module.training = mode\n",
        "            pass\n",
        (_PROBE + "test_nothing_is_left_of_a_look",),
    ),
    Bug(
        "trainers_do_not_look",
        "padding that a model reads is trained on",
        "trainer/trainer.py",
        "train.micro_batch_size > 1 or train",
        "train",
        (_PROBE + "test_a_trainer_looks_before_its_first_step",),
    ),
    Bug(
        "positions_of_roberta_from_zero",
        "RoBERTa's family trains with the positions of padding",
        "engine/model_internals.py",
        "next((index + 1 for index",
        "next((0 for index",
        (_PROBE + "test_positions_of_the_roberta_family_begin_behind_that_of_padding",),
    ),
    Bug(
        "backbone_by_prefix_alone",
        "Llama 4 cannot be trained",
        "engine/model_internals.py",
        "return models[0] if len(models) == 1 else None",
        "return None",
        (_PROBE + "test_a_backbone_is_found_under_the_name_that_it_has",),
    ),
    Bug(
        "rope_by_the_longest_row",
        "with Phi-3's long factors a sample's loss depends on the rows beside it",
        "models/rope.py",
        "lengths = lengths.clamp(min=original)",
        "lengths = lengths.clamp(min=original).max().expand_as(lengths)",
        ("tests/models/test_actor.py::test_equals_plain_transformers",),
    ),
    Bug(
        "rope_remembers_the_longest_batch",
        "with dynamic frequencies a sample's loss depends on batches before",
        "models/rope.py",
        "    module.forward(hidden, torch.zeros_like(positions[:1, :1]), **others)",
        "    pass",
        ("tests/models/test_actor.py::test_equals_plain_transformers",),
    ),
    Bug(
        "rope_by_a_rank's_share",
        "a ring takes a long sample for a short one where a rank holds its middle",
        "models/rope.py",
        "lengths.repeat_interleave(lengths)[None, sequence_share(borders, ring.rank, ring.size)]",
        "(lengths // ring.size).repeat_interleave(lengths)[None, sequence_share(borders, ring.rank, ring.size)]",
        ("tests/models/test_ring.py::test_actor_equals_plain_transformers",),
    ),
    Bug(
        "one_end_token_only",
        "models with several end tokens, as Llama 3.1 has, crash at the start",
        "models/layout_probe.py",
        "(value if isinstance(value, list | tuple) else [value])",
        "[value]",
        (_PROBE + "test_several_end_tokens_are_as_good_as_one",),
    ),
]
