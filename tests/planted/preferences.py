"""Bugs in the losses of pairs, in what they know of the window, and in the reference."""

from __future__ import annotations

from tests.planted.bug import Bug

_LOSSES = "tests/objectives/test_pair_losses.py::"
_FORMULAS = "tests/objectives/test_pair_losses.py::test_loss_and_gradients_are_those_of_the_paper"
_MIXES = "tests/objectives/test_pair_losses.py::test_a_mix_is_the_weighted_sum_of_its_losses_and_of_the_nll"
_LAYOUTS = "tests/objectives/test_preference.py::test_a_mix_of_losses_equals_a_float64_loop"
_SHORT = "tests/objectives/test_preference.py::test_a_reference_for_which_memory_runs_out_is_computed_again"
_REFERENCES = "tests/objectives/test_preference.py::test_three_kinds_of_reference_are_one"

BUGS = [
    Bug(
        "window_of_one_rank",
        "a loss that sorts the window sorts one rank's pairs",
        "trainer/window_scores.py",
        "    everyone = torch.cat([by_data_rank[rank] for rank in range(groups.data_size)])\n",
        "    everyone = torch.cat([by_data_rank[groups.data_rank]] * groups.data_size)\n",
        (_LAYOUTS,),
    ),
    Bug(
        "facts_of_the_first_micro_batch",
        "each micro-batch is given what the window's first pairs were meant for",
        "trainer/window_scores.py",
        "WindowScores(counts.sums, everyone, first) for",
        "WindowScores(counts.sums, everyone, 0) for",
        (_LAYOUTS,),
    ),
    Bug(
        "preference_learns_every_answer",
        "the loss is right, and the gradient is that of the answers' likelihood",
        "objectives/scorer.py",
        "torch.autograd.grad(loss(own)[0], own)[0]",
        "torch.ones_like(own)",
        (_LAYOUTS,),
    ),
    Bug(
        "weights_of_pairs_ignored",
        "a pair's weight changes nothing but the divisor",
        "objectives/preference.py",
        "(of_pairs * _as_tensor(batch.unit_weights, of_pairs)).sum() * speaks",
        "of_pairs.sum() * speaks",
        (_LAYOUTS,),
    ),
    Bug(
        "pairs_of_a_ring_counted_twice",
        "a ring of two trains each pair twice as much",
        "objectives/preference.py",
        ".sum() * speaks / divisor",
        ".sum() / divisor",
        (_LAYOUTS,),
    ),
    Bug(
        "chosen_and_rejected_interleaved_wrongly",
        "in a micro-batch of two pairs answers of unlike pairs are compared",
        "objectives/preference.py",
        "    return of_sequences[::2], of_sequences[1::2]\n",
        "    return of_sequences[: len(of_sequences) // 2], of_sequences[len(of_sequences) // 2 :]\n",
        (_LAYOUTS,),
    ),
    Bug(
        "nll_by_pair",
        "the likelihood of chosen answers is a mean over pairs of one token",
        "objectives/preference.py",
        "        mean_chosen_tokens = scorer.window.sums[0] / divisor\n",
        "        mean_chosen_tokens = 1.0\n",
        (_LAYOUTS,),
    ),
    Bug(
        "reference_with_dropout",
        "adapters' dropout moves the reference",
        "objectives/reference.py",
        "        model.eval()  # dropout draws no random numbers: those of the training pass stay as they are\n",
        "        torch.rand(1)\n",
        (_REFERENCES,),
    ),
    Bug(
        "reference_with_adapters",
        "the reference moves with the policy",
        "objectives/reference.py",
        "            with model.model.disable_adapter():\n",
        "            if True:\n",
        (_REFERENCES,),
    ),
    Bug(
        "dropout_ends_with_the_memory",
        "once memory has run out in the reference's pass, adapters train without dropout",
        "objectives/reference.py",
        "        finally:  # memory may run out, and the step begin anew\n            model.train(was_training)\n",
        "        finally:\n            model.train(was_training and __import__('sys').exc_info()[0] is None)\n",
        (_SHORT,),
    ),
    Bug(
        "label_smoothing_ignored",
        "--model.label_smoothing changes nothing",
        "objectives/pair_losses.py",
        "    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)\n",
        "    return -logsigmoid(margin)\n",
        (f"{_FORMULAS}[sigmoid-0.2]",),
    ),
    Bug(
        "ipo_on_sums",
        "ipo is OpenRLHF's where TRL's was asked for",
        "objectives/pair_losses.py",
        "pairs.difference if settings.ipo_sums else _mean_difference(pairs)",
        "pairs.difference",
        (f"{_FORMULAS}[ipo-0.0]",),
    ),
    Bug(
        "bco_without_shift",
        "bco_pair does not centre its rewards",
        "objectives/pair_losses.py",
        "logsigmoid(-(rejected - shift))",
        "logsigmoid(-rejected)",
        (f"{_FORMULAS}[bco_pair-0.0]",),
    ),
    Bug(
        "robust_without_its_factor",
        "the robust loss is biased by the share of wrong labels",
        "objectives/pair_losses.py",
        " / (1 - 2 * smoothing)",
        "",
        (f"{_FORMULAS}[robust-0.2]",),
    ),
    Bug(
        "ipo_enable_takes_means",
        "--model.ipo_enable trains TRL's IPO, not OpenRLHF's",
        "objectives/pair_losses.py",
        "pairs.difference if settings.ipo_sums else _mean_difference(pairs)",
        "_mean_difference(pairs)",
        (f"{_FORMULAS}[ipo_of_sums-0.0]",),
    ),
    Bug(
        "nll_takes_the_place_of_sft",
        "beside --model.nll_loss_coef the weight of sft is lost",
        "objectives/preference.py",
        'losses.get("sft", 0.0) + nll_coef',
        "nll_coef",
        (_MIXES,),
    ),
    Bug(
        "weights_of_losses_ignored",
        "--model.loss_weights changes nothing",
        "objectives/preference.py",
        "sum(weight * LOSSES[name](pairs, self._settings)",
        "sum(LOSSES[name](pairs, self._settings)",
        (_MIXES,),
    ),
    Bug(
        "orpo_of_a_sure_answer_has_no_slope",
        "an answer that the model is sure of makes the gradients of ORPO no numbers",
        "objectives/pair_losses.py",
        "below = log_prob.clamp(max=-torch.finfo(log_prob.dtype).tiny)",
        "below = log_prob",
        (_LOSSES + "test_orpo_of_a_sure_answer_is_finite",),
    ),
    Bug(
        "discopop_of_a_wrong_pair_is_no_number",
        "a pair that is strongly wrong makes the loss of DiscoPOP no number",
        "objectives/pair_losses.py",
        "torch.exp(logsigmoid(scaled) - margin)",
        "torch.exp(-margin) * scaled.sigmoid()",
        (_LOSSES + "test_discopop_is_the_formula_for_any_margin",),
    ),
    Bug(
        "rewards_of_simpo_are_sums",
        "the metrics of SimPO and ORPO show the shorter answer as the better one",
        "objectives/preference.py",
        "        if self.reference is not None:\n            return pairs.chosen_ratio, pairs.rejected_ratio\n",
        "        if pairs is not None:\n            return pairs.chosen_ratio, pairs.rejected_ratio\n",
        (_LOSSES + "test_rewards_are_sums_against_a_reference_and_means_over_tokens_without_one",),
    ),
    Bug(
        "without_locks_nothing_is_kept",
        "on a file system without locks each start computes the reference's log-probs anew",
        "trainer/computed_reference.py",
        "        except BlockingIOError:\n",
        "        except OSError:\n",
        ("tests/objectives/test_preference.py::test_a_reference_is_kept_where_files_cannot_be_locked",),
    ),
]
