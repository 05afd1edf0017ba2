"""Micro-batches: the loss mask's shift, padding by length, borders of packed samples, ring shares."""

import pytest
import torch

from openrlhf.batching.micro_batch import make_micro_batch, units_of_batch
from openrlhf.batching.unit import TokenSequence, Unit
from openrlhf.errors import UserError


def sequence(ids, mask):
    return TokenSequence(torch.tensor(ids), torch.tensor(mask))


LONG = sequence([10, 11, 12, 13], [0, 1, 1, 1])  # targets 12, 13; the last mask entry counts for nothing
SHORT = sequence([20, 21], [1, 0])  # target 21
FIRST, SECOND = Unit((LONG,), "a row"), Unit((SHORT,), "another row")


def predicted_pairs(micro_batch):
    """(token whose hidden state is used, token that it must predict) for every target."""
    flat = micro_batch.input_ids.flatten()
    return [(int(flat[i]), int(t)) for i, t in zip(micro_batch.target_index, micro_batch.target_ids, strict=True)]


def test_padded_targets_are_the_next_tokens():
    batch = make_micro_batch([FIRST, SECOND], packed=False)
    assert predicted_pairs(batch) == [(11, 12), (12, 13), (20, 21)]
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (batch.num_tokens, batch.num_target_tokens, batch.target_weight_sum) == (6, 3, 3.0)


def test_packed_targets_never_cross_a_sample():
    batch = make_micro_batch([FIRST, SECOND], packed=True)
    assert predicted_pairs(batch) == [(11, 12), (12, 13), (20, 21)]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.max_seqlen == 4


def test_per_sample_mean_gives_each_sample_the_weight_one():
    batch = make_micro_batch([FIRST, SECOND], packed=False, loss_reduction="sample")
    assert batch.target_weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.target_weight_sum == 2.0


def test_a_rows_weight_is_what_its_weights_add_up_to_in_a_mean_of_rows():
    weighted = Unit((sequence([10, 11, 12, 13], [0.0, 0.5, 1.5, 0.0]),), "a row", weight=3.0)
    batch = make_micro_batch([weighted, SECOND], packed=True, loss_reduction="sample")
    assert batch.target_weights.tolist() == [0.75, 2.25, 1.0]
    assert (batch.target_weight_sum, batch.unit_weight_sum, batch.num_target_tokens) == (4.0, 4.0, 3)
    by_token = make_micro_batch([weighted, SECOND], packed=True)
    assert by_token.target_weights.tolist() == [0.5, 1.5, 1.0], "by tokens, the mask holds all that counts"


def test_the_sequences_of_a_unit_stand_together_and_are_known_by_target():
    pair = Unit((LONG, SHORT), "a pair", numbers={"margin": 0.5})
    other = Unit((SHORT, LONG), "another pair", numbers={"margin": -1.0})
    for packed in (False, True):
        batch = make_micro_batch([pair, other], packed=packed)
        assert batch.target_sequence.tolist() == [0, 0, 1, 2, 3, 3]
        assert (batch.sequences_of_units, batch.unit_names) == ((2, 2), ("a pair", "another pair"))
        assert batch.unit_numbers["margin"].tolist() == [0.5, -1.0]
    shares = [batch.share(rank, 2) for rank in (0, 1)]
    assert sorted(int(one) for share in shares for one in share.target_sequence) == [0, 0, 1, 2, 3, 3]
    for share in shares:
        assert [(10, 20)[int(s) in (1, 2)] for s in share.target_sequence] == [
            int(token) // 10 * 10 for token in share.target_ids
        ], "a share's targets still know their sequences"


def test_no_samples_make_a_batch_without_targets():
    for packed in (False, True):
        batch = make_micro_batch([], packed=packed)
        assert batch.input_ids.shape == (1, 2)
        assert batch.num_tokens == batch.num_target_tokens == len(batch.target_index) == 0


def test_a_foreign_batch_loses_its_padding_on_either_side():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]])
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0]])
    (first,), (second,) = (
        unit.sequences for unit in units_of_batch([ids[:, None], attention[:, None], mask[:, None]], "batch 0")
    )
    assert (first.input_ids.tolist(), first.loss_mask.tolist()) == ([5, 6], [1, 0])
    assert (second.input_ids.tolist(), second.loss_mask.tolist()) == ([7, 8, 9], [0, 1, 1])


def test_every_token_of_a_foreign_batch_is_a_target_where_that_is_asked_for():
    ids, mask = torch.tensor([[7, 8, 9]]), torch.tensor([[0, 0, 1]])
    (unit,) = units_of_batch([ids, torch.ones_like(ids), mask], "batch 0", all_targets=True)
    assert unit.sequences[0].loss_mask.tolist() == [1, 1, 1]


IDS = [[7, 8, 9, 0], [7, 8, 9, 0]]
TOKENS = [[1, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("loss_mask", "found"),
    [
        ([-100, 8, 9, -100], "batch 0, row 1 has a loss mask with -100. Are these labels?"),
        ([7, 8, 9, -100], "a loss mask with the token ids themselves. Are these labels?"),
        ([0.0, float("nan"), 0.0, 0.0], "a loss mask with nan"),
        ([0.0, float("inf"), 0.0, 0.0], "a loss mask with inf"),
    ],
)
def test_labels_are_not_taken_for_a_loss_mask(loss_mask: list[float], found: str):
    batch = [torch.tensor(IDS), torch.tensor(TOKENS), torch.tensor([[1, 1, 1, 0], loss_mask])]
    with pytest.raises(UserError) as caught:
        units_of_batch(batch, "batch 0")
    assert found in str(caught.value)
    assert len(units_of_batch(batch, "batch 0", all_targets=True)) == 2, "it is not read then"


def test_weights_and_what_stands_at_padding_are_taken():
    for mask in ([0.25, 3.0, 0.0, -1.0], [True, False, True, False], [2, 5, 0, 0]):
        units = units_of_batch([torch.tensor(IDS[:1]), torch.tensor(TOKENS[:1]), torch.tensor([mask])], "batch 0")
        assert units[0].sequences[0].loss_mask.tolist() == mask[:3]


@pytest.mark.parametrize("attention", [[1, 1, 2, 2], [0.0, float("-inf"), 0.0, 0.0]])
def test_an_attention_mask_that_numbers_samples_is_refused(attention: list[float]):
    batch = [torch.tensor(IDS[:1]), torch.tensor([attention]), torch.tensor(TOKENS[:1])]
    with pytest.raises(UserError, match="batch 0, row 0 has an attention mask with (2|-inf): it must be 1 for a token"):
        units_of_batch(batch, "batch 0")


def test_a_batch_that_is_a_dict_is_refused():
    with pytest.raises(UserError, match="batch 0 is a dict with input_ids, labels, and must be"):
        units_of_batch({"input_ids": 1, "labels": 2}, "batch 0")


def test_ring_shares_hold_every_token_and_every_target_once():
    batch = make_micro_batch([FIRST, SECOND, FIRST], packed=True)
    for ring_size in (2, 3, 4):
        shares = [batch.share(rank, ring_size) for rank in range(ring_size)]
        tokens = sorted(int(t) for share in shares for t in share.input_ids.flatten())
        assert tokens == sorted(batch.input_ids.flatten().tolist())
        assert sorted(p for s in shares for p in predicted_pairs(s)) == sorted(predicted_pairs(batch))
        assert all(share.target_weight_sum == batch.target_weight_sum for share in shares)
