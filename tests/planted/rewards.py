"""Planted bugs: reward models, their export, scorer and server."""

from __future__ import annotations

from tests.planted.bug import Bug

_LAYOUTS = "tests/objectives/test_reward.py::"
_MODEL = "tests/models/test_reward_model.py::"
_EXPORT = "tests/checkpoint/test_reward_export.py::"
_SCORER = "tests/rejection/test_reward_scorer.py::"
_SERVER = "tests/rejection/test_reward_server.py::"

BUGS = [
    Bug(
        "value_of_the_padded_end",
        "a reward depends on the longest answer beside it",
        "batching/micro_batch.py",
        "[s + len(t) - 1 for s, t in zip(starts, tokens, strict=True)]",
        "[s + (len(t) if packed else max(lengths)) - 1 for s, t in zip(starts, tokens, strict=True)]",
        (_LAYOUTS + "test_a_score_does_not_depend_on_its_neighbours",),
    ),
    Bug(
        "ring_ranks_forget_whose_end_it_is",
        "under a ring, values go to other answers",
        "batching/micro_batch.py",
        "last_sequence=self.last_sequence[ends_here]",
        "last_sequence=self.last_sequence[: int(ends_here.sum())]",
        (_LAYOUTS + "test_a_reward_model_equals_a_float64_loop",),
    ),
    Bug(
        "ring_counts_pairs_twice",
        "under a ring, the loss of pairs counts once for each rank",
        "objectives/reward.py",
        "return Share((of_pairs * weights).sum() * speaks / divisor, counted)",
        "return Share((of_pairs * weights).sum() / divisor, counted)",
        (_LAYOUTS + "test_a_reward_model_equals_a_float64_loop",),
    ),
    Bug(
        "margin_is_ignored",
        "--model.margin_loss_enable does nothing",
        "objectives/reward.py",
        "(0.0 if margin is None else margin.to(chosen))",
        "0.0",
        (_LAYOUTS + "test_a_reward_model_equals_a_float64_loop",),
    ),
    Bug(
        "ties_are_successes",
        "a reward model that gives all answers one value is right in each pair",
        "objectives/reward.py",
        '"accuracy": (difference > 0).sum()',
        '"accuracy": (difference >= 0).sum()',
        (_LAYOUTS + "test_equal_rewards_are_no_success",),
    ),
    Bug(
        "calibration_within_bins_cancels_out",
        "an overconfident half hides an underconfident one",
        "objectives/reward.py",
        "sum(abs(means[name]) for name in _GAPS)",
        "abs(sum(means[name] for name in _GAPS))",
        (_LAYOUTS + "test_calibration_of_one_bin_does_not_make_up_for_anothers",),
    ),
    Bug(
        "adapters_without_the_head",
        "with LoRA, the head stays as it was drawn",
        "models/lora.py",
        "TaskType.CAUSAL_LM if model.can_generate() else TaskType.SEQ_CLS",
        "TaskType.CAUSAL_LM",
        (_MODEL + "test_adapters_and_the_whole_head_are_trained",),
    ),
    Bug(
        "head_starts_by_chance",
        "a reward model starts otherwise in each run",
        "models/classifier.py",
        "torch.randn(1, head.in_features, generator=draw)",
        "torch.randn(1, head.in_features)",
        (_MODEL + "test_the_head_of_a_base_model_starts_by_its_seed",),
    ),
    Bug(
        "head_in_parts_is_not_written",
        "under ZeRO-3, the head stays as transformers has drawn it",
        "engine/parameters.py",
        "deepspeed.zero.GatheredParameters(listed, modifier_rank=0)",
        "deepspeed.zero.GatheredParameters(listed)",
        (_MODEL + "test_the_head_starts_alike_in_parts_and_whatever_was_drawn_before",),
    ),
    Bug(
        "any_head_is_begun_anew",
        "a reward model whose head has another name loses it without a word",
        "models/classifier.py",
        "if name not in own}",
        "if False}",
        (_MODEL + "test_a_head_of_another_name_is_not_begun_anew",),
    ),
    Bug(
        "head_goes_back_to_its_name",
        "the export of a model whose head was renamed has no head for transformers",
        "models/classifier.py",
        "    forget_renaming(model, renaming)",
        "    pass",
        (_MODEL + "test_a_head_of_another_name_is_read_and_exported_as_score",),
    ),
    Bug(
        "labels_are_not_counted",
        "the first of several labels is taken for a reward",
        "models/classifier.py",
        "if _is_classifier(config) and config.num_labels != 1:",
        "if False:",
        (_MODEL + "test_several_labels_are_refused_before_weights_are_read",),
    ),
    Bug(
        "the_end_token_pads",
        "transformers reads the value of an exported model one token too early",
        "checkpoint/model_settings.py",
        "    copied.pad_token = pad\n",
        "",
        (_EXPORT + "test_transformers_reads_the_same_values",),
    ),
    Bug(
        "two_ends_behind_a_turn",
        "a rendered conversation has another reward than its messages",
        "rejection/reward_scorer.py",
        "text = self._without_ends(text)",
        "pass",
        (_SCORER + "test_a_rendered_text_has_the_reward_of_its_messages",),
    ),
    Bug(
        "long_texts_are_cut",
        "a reward for the beginning of an answer passes for one of the answer",
        "rejection/reward_scorer.py",
        "return too_long if len(ids) > self.max_len else ids",
        "return ids[: self.max_len]",
        (_SCORER + "test_what_cannot_be_scored_has_a_reason_and_no_reward",),
    ),
    Bug(
        "packs_give_rewards_out_of_order",
        "rewards go to other texts where there are many",
        "rejection/reward_scorer.py",
        "rewards[list(places)] = ",
        "rewards[sorted(places)] = ",
        (_SCORER + "test_rewards_depend_on_nothing_beside_them",),
    ),
    Bug(
        "base_models_are_served",
        "a model without a head gives rewards by chance",
        "rejection/reward_scorer.py",
        "if model.head_begins:",
        "if False:",
        (_SCORER + "test_a_base_model_is_no_reward_model",),
    ),
    Bug(
        "queue_without_a_bound",
        "a server takes requests until its memory is gone",
        "rejection/reward_queue.py",
        "if self.num_waiting + len(items) > self.max_waiting:",
        "if False:",
        (_SERVER + "test_a_full_queue_is_told_and_what_waits_is_computed_together",),
    ),
    Bug(
        "one_failure_ends_the_queue",
        "after one failure a server answers nobody",
        "rejection/reward_queue.py",
        "                    future.set_exception(error)\n",
        "                    future.set_exception(error)\n                raise\n",
        (_SERVER + "test_a_failure_is_told_and_the_next_request_answered",),
    ),
    Bug(
        "bodies_without_a_bound",
        "one request fills a server's memory",
        "rejection/reward_server.py",
        "        if len(body) > max_bytes:\n",
        "        if False:\n",
        (_SERVER + "test_a_body_that_does_not_announce_its_size_is_bounded_too",),
    ),
]
