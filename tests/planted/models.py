"""Bugs of the room models/: log-probs, head, mixture of experts."""

from __future__ import annotations

from tests.planted.bug import Bug

_ACTOR = "tests/models/test_actor.py"
_TILES = "tests/models/test_target_log_probs.py"
_MOE = "tests/models/test_moe.py"

BUGS = [
    Bug(
        "soft_cap_not_applied",
        "Gemma's logits are not soft-capped",
        "models/logit_transform.py",
        "return head_output.mul_(self.scale / self.cap).tanh_().mul_(self.cap / self.temperature)",
        "return head_output.mul_(self.scale / self.temperature)",
        (f"{_TILES}::test_transforms",),
    ),
    Bug(
        "soft_cap_without_slope",
        "gradients of soft-capped logits are too large",
        "models/logit_transform.py",
        "return (logits * (self.temperature / self.cap)).square_().neg_().add_(1.0).mul_(steepest)",
        "return steepest",
        (f"{_TILES}::test_transforms",),
    ),
    Bug(
        "temperature_ignored",
        "the actor's temperature does nothing",
        "models/actor.py",
        "replace(finding.transform, temperature=temperature)",
        "replace(finding.transform, temperature=1.0)",
        (f"{_ACTOR}::test_equals_plain_transformers[llama-right]",),
    ),
    Bug(
        "temperature_ignored_with_full_logits",
        "the temperature does nothing for models with an unusual head",
        "models/token_scorer.py",
        "logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature",
        "logits = logits.to(torch.promote_types(logits.dtype, torch.float32))",
        ("tests/models/test_head_probe.py::test_the_actor_is_right_with_any_head",),
    ),
    Bug(
        "tile_without_its_maximum",
        "large logits overflow: the loss is infinite",
        "models/target_log_probs.py",
        "highest = logits.amax(1, keepdim=True)",
        "highest = torch.zeros_like(logits[:, :1])",
        (f"{_TILES}::test_huge_logits_stay_finite",),
    ),
    Bug(
        "last_tile_alone_is_summed",
        "the softmax runs over a part of the vocabulary",
        "models/target_log_probs.py",
        "torch.logaddexp(log_sum_exp[rows], _log_sum_exp_(logits))",
        "_log_sum_exp_(logits)",
        (f"{_TILES}::test_tile_sizes",),
    ),
    Bug(
        "log_probs_summed_in_half_precision",
        "log-probs of a bf16 model have three digits",
        "models/target_log_probs.py",
        "return self.transform.apply_(output.to(torch.promote_types(output.dtype, torch.float32), copy=copy))",
        "return self.transform.apply_(output.clone())",
        ("tests/models/test_tile_precision.py::test_the_sum_over_the_vocabulary_is_taken_in_float32",),
    ),
    Bug(
        "tiles_kept_unscaled",
        "the weighted sum forgets what it was multiplied by: the loss scale, the number of ranks",
        "models/target_log_probs.py",
        "gradient.mul_(grads[1])",
        "gradient",
        (f"{_TILES}::test_the_weighted_sum_has_the_gradients_of_its_log_probs",),
    ),
    Bug(
        "kept_tiles_are_overwritten",
        "float32 logits that are kept for their gradient are exponentiated in place",
        "models/target_log_probs.py",
        "logits = head.logits(output, copy=kept is not None)",
        "logits = head.logits(output, copy=False)",
        (f"{_TILES}::test_both_forms_give_the_same_bits",),
    ),
    Bug(
        "positions_count_left_padding",
        "rows padded on the left begin at the position where their padding ends",
        "models/actor.py",
        "position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),",
        "position_ids=torch.arange(mask.shape[1]).expand_as(mask),",
        (f"{_ACTOR}::test_equals_plain_transformers[gpt2-left]",),
    ),
    Bug(
        "batch_without_target_leaves_the_graph",
        "a rank whose micro-batch has no target skips the head: ranks wait for each other for ever",
        "models/token_scorer.py",
        "        if num_targets == 0:\n            target_index, target_ids",
        "        if num_targets == 0:\n            return target_ids.float(), None, None\n"
        "        if False:\n            target_index, target_ids",
        (f"{_ACTOR}::test_no_target_still_touches_every_parameter",),
    ),
    Bug(
        "head_unties_the_embeddings",
        "tied embeddings drift apart in training",
        "models/log_prob_head.py",
        "self.weight = head.weight",
        "self.weight = nn.Parameter(head.weight.detach().clone())",
        ("tests/models/test_loading.py::test_tied_weights_stay_tied_and_the_saved_model_is_plain",),
    ),
    Bug(
        "masked_log_probs_count",
        "SFTLoss of a masked -inf is not a number",
        "models/losses.py",
        "log_probs = per_token_logps.masked_fill(loss_mask == 0, 0.0)",
        "log_probs = per_token_logps * 1.0",
        ("tests/models/test_losses.py::test_what_is_masked_counts_for_nothing_even_if_infinite",),
    ),
    Bug(
        "loss_is_a_mean_of_all_tokens",
        "SFTLoss divides by masked tokens too",
        "models/losses.py",
        "/ loss_mask.sum().clamp(min=1)",
        "/ loss_mask.numel()",
        ("tests/models/test_losses.py::test_masked_mean",),
    ),
    Bug(
        "aux_loss_counts_padding",
        "experts are balanced for padding",
        "models/actor.py",
        "is_real_token = attention_mask.flatten().bool()",
        "is_real_token = torch.ones_like(attention_mask).flatten().bool()",
        (f"{_MOE}::test_actor_gives_the_same_loss_padded_and_packed",),
    ),
    Bug(
        "aux_loss_without_number_of_experts",
        "the auxiliary loss is too small by the number of experts",
        "models/moe.py",
        "return num_experts * (counts",
        "return 1.0 * (counts",
        (f"{_MOE}::test_equals_transformers_formula",),
    ),
    Bug(
        "aux_loss_of_first_choice_alone",
        "only the first expert of each token counts as its load",
        "models/moe.py",
        "counts.scatter_add_(0, chosen, weights.repeat_interleave(experts_per_token))",
        "counts.scatter_add_(0, chosen[::experts_per_token], weights)",
        (f"{_MOE}::test_equals_transformers_formula",),
    ),
]
