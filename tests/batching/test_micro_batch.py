"""Micro-batches: the loss mask's shift, padding by length, borders of packed samples, ring shares."""

import torch

from openrlhf.batching.micro_batch import Sample, make_micro_batch, samples_of_batch


def sample(ids, mask, name="a row"):
    return Sample(torch.tensor(ids), torch.tensor(mask), name)


FIRST = sample([10, 11, 12, 13], [0, 1, 1, 1])  # targets 12, 13; the last mask entry counts for nothing
SECOND = sample([20, 21], [1, 0])  # target 21


def predicted_pairs(micro_batch):
    """(token whose hidden state is used, token that it must predict) for every target."""
    flat = micro_batch.input_ids.flatten()
    return [(int(flat[i]), int(t)) for i, t in zip(micro_batch.target_index, micro_batch.target_ids, strict=True)]


def test_padded_targets_are_the_next_tokens():
    batch = make_micro_batch([FIRST, SECOND], packed=False, pad_token_id=10)
    assert predicted_pairs(batch) == [(11, 12), (12, 13), (20, 21)]
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 10, 10]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (batch.num_tokens, batch.num_target_tokens, batch.target_weight_sum) == (6, 3, 3.0)


def test_packed_targets_never_cross_a_sample():
    batch = make_micro_batch([FIRST, SECOND], packed=True, pad_token_id=0)
    assert predicted_pairs(batch) == [(11, 12), (12, 13), (20, 21)]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert batch.max_seqlen == 4


def test_per_sample_mean_gives_each_sample_the_weight_one():
    batch = make_micro_batch([FIRST, SECOND], packed=False, pad_token_id=0, loss_reduction="sample")
    assert batch.target_weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.target_weight_sum == 2.0


def test_no_samples_make_a_batch_without_targets():
    for packed in (False, True):
        batch = make_micro_batch([], packed=packed, pad_token_id=0)
        assert batch.input_ids.shape == (1, 2)
        assert batch.num_tokens == batch.num_target_tokens == len(batch.target_index) == 0


def test_a_foreign_batch_loses_its_padding_on_either_side():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]])
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0]])
    first, second = samples_of_batch([ids[:, None], attention[:, None], mask[:, None]], "batch 0")
    assert (first.input_ids.tolist(), first.loss_mask.tolist()) == ([5, 6], [1, 0])
    assert (second.input_ids.tolist(), second.loss_mask.tolist()) == ([7, 8, 9], [0, 1, 1])


def test_ring_shares_hold_every_token_and_every_target_once():
    batch = make_micro_batch([FIRST, SECOND, FIRST], packed=True, pad_token_id=0)
    for ring_size in (2, 3, 4):
        shares = [batch.share(rank, ring_size) for rank in range(ring_size)]
        tokens = sorted(int(t) for share in shares for t in share.input_ids.flatten())
        assert tokens == sorted(batch.input_ids.flatten().tolist())
        assert sorted(p for s in shares for p in predicted_pairs(s)) == sorted(predicted_pairs(batch))
        assert all(share.target_weight_sum == batch.target_weight_sum for share in shares)
