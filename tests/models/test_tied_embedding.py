"""Embeddings that share the head's weight: the gradient of torch's own, without a second table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from openrlhf.models import Actor
from openrlhf.models.head.log_prob_head import LogProbHead
from openrlhf.models.head.tied_embedding import TiedEmbedding
from openrlhf.models.head.tiles import PLAIN
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import assert_close, make_samples

VOCAB, HIDDEN = 50, 8


class Tied(nn.Module):
    """Embeddings and a head of one weight, with something between them."""

    def __init__(self, dtype, padding_idx=None, takes_place=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(VOCAB, HIDDEN, generator=generator).to(dtype)
        self.embedding = nn.Embedding(VOCAB, HIDDEN, padding_idx, _weight=weight)
        head = nn.Linear(HIDDEN, VOCAB, bias=False)
        head.weight = self.embedding.weight
        self.head = LogProbHead(head, PLAIN)
        if takes_place:
            TiedEmbedding.install(self.embedding, self.head)

    def loss(self, ids):
        hidden = torch.tanh(self.embedding(ids)).cumsum(1)
        weights = torch.linspace(0.1, 1, ids.numel())
        return self.head(hidden.flatten(0, 1), ids.flatten(), weights).weighted_sum


def draw_ids(generator_seed=0):
    ids = torch.randint(0, VOCAB, (4, 9), generator=torch.Generator().manual_seed(generator_seed))
    ids[0] = 7  # one token many times
    return ids


def gradient(model, *batches):
    model.zero_grad()
    for ids in batches:
        model.loss(ids).backward()
    return model.embedding.weight.grad


@pytest.mark.parametrize("padding_idx", [None, 7])
def test_the_gradient_is_torchs(padding_idx):
    found = gradient(Tied(torch.float64, padding_idx), draw_ids())
    expected = gradient(Tied(torch.float64, padding_idx, takes_place=False), draw_ids())
    assert_close(found, expected, 1e-14, "gradient")


def test_several_micro_batches_add_up():
    batches = [draw_ids(seed) for seed in range(3)]
    model, plain = Tied(torch.float64), Tied(torch.float64, takes_place=False)
    assert_close(gradient(model, *batches), gradient(plain, *batches), 1e-14, "gradient")
    model.zero_grad()
    sum(model.loss(ids) for ids in batches).backward()  # all in one pass
    assert_close(model.embedding.weight.grad, gradient(plain, *batches), 1e-14, "gradient of one pass")


def test_a_copy_of_a_trained_model_trains_too():
    model = Tied(torch.float64)
    expected = gradient(model, draw_ids()).clone()
    assert_close(gradient(copy.deepcopy(model), draw_ids()), expected, 1e-14, "gradient of the copy")
    assert_close(gradient(model, draw_ids()), expected, 1e-14, "gradient")


def test_embeddings_copied_alone_have_a_gradient_of_their_own():
    model = Tied(torch.float64)
    gradient(model, draw_ids())
    alone = copy.deepcopy(model.embedding)
    alone.zero_grad()
    for _ in range(2):
        alone(draw_ids()).sum().backward()
    assert alone.weight.grad.sum() == 2 * draw_ids().numel() * HIDDEN
    assert alone.weight is not model.embedding.weight


def test_a_gradient_that_is_one_number_for_all_is_added_to():
    model = Tied(torch.float64)
    (model.embedding(draw_ids()).sum() + model.head.weight.sum()).backward()
    assert model.embedding.weight.grad.sum() == (draw_ids().numel() + VOCAB) * HIDDEN


def test_in_half_precision_a_tokens_rows_are_summed_in_float32():
    ids = draw_ids().repeat(8, 1)
    exact = gradient(Tied(torch.bfloat16, takes_place=False).double(), ids)
    ours = gradient(Tied(torch.bfloat16), ids).double()
    torchs = gradient(Tied(torch.bfloat16, takes_place=False), ids).double()
    assert (ours - exact).norm() < (torchs - exact).norm()


@pytest.mark.parametrize(("takes_place", "num_tables"), [(False, 1), (True, 0)])
def test_no_second_table_is_made(takes_place, num_tables):
    model = Tied(torch.float32, takes_place=takes_place)
    with torch.profiler.profile() as seen:
        gradient(model, draw_ids())
    assert [event.name for event in seen.events()].count("aten::embedding_dense_backward") == num_tables


def test_frozen_weights_and_evaluation_are_left_to_torch():
    model = Tied(torch.float32)
    model.embedding.weight.requires_grad_(False)
    assert torch.equal(model.embedding(draw_ids()), model.embedding.weight[draw_ids()])
    model.embedding.weight.requires_grad_(True)
    with torch.no_grad():
        model.embedding(draw_ids())
    assert gradient(model, draw_ids()).isfinite().all()


def test_a_pass_that_misses_the_head_is_told():
    model = Tied(torch.float32)
    model.embedding(draw_ids()).sum().backward()
    with pytest.raises(AssertionError, match="not the head"):
        model.embedding(draw_ids())


@pytest.mark.parametrize(("kind", "is_tied"), [("gpt2", True), ("llama", False)])
def test_an_actor_has_them_where_its_model_is_tied(kind, is_tied):
    model = tiny_model(kind)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == is_tied
    actor = Actor(model, packing_samples=True)
    assert isinstance(actor.model.get_input_embeddings(), TiedEmbedding) == is_tied
    scores = actor.score_targets(**make_samples().packed())
    scores.log_probs.sum().backward()
    assert actor.model.get_input_embeddings().weight.grad.isfinite().all()
