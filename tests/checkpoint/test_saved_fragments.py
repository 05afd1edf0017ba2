"""Optimizer states of one layout, read in the pieces of another."""

from __future__ import annotations

import pytest
import torch

from openrlhf.checkpoint.optimizer_states import MASTER, OptimizerStates, SavedFragments
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.engine.fragments import Fragment
from openrlhf.errors import UserError

WHOLE = torch.arange(10.0)


def save(folder, pieces):
    """One file for each piece `[start, end)` of a parameter of ten elements."""
    for rank, (start, end) in enumerate(pieces):
        states = OptimizerStates(tensor_parallel_rank=0, shapes={"w": (2, 5)}, num_steps={"w": 3.0})
        states.tensors[f"{MASTER}|w"], states.starts[f"{MASTER}|w"] = WHOLE[start:end], start
        write_tensors(folder / f"rank{rank}.safetensors", states.tensors, states.header())
    return SavedFragments(folder.iterdir())


def fragment(start, end, shape=(2, 5)):
    return Fragment("w", shape, start, end - start, torch.empty(0), 0, is_replicated=False)


@pytest.mark.parametrize("pieces", [[(0, 10)], [(0, 5), (5, 10)], [(0, 4), (4, 7), (7, 10)], [(0, 10), (0, 10)]])
@pytest.mark.parametrize("wanted", [(0, 10), (0, 5), (4, 8), (7, 10), (9, 10)])
def test_a_stretch_is_put_together_from_the_pieces_that_overlap_it(pieces, wanted, tmp_path):
    saved = save(tmp_path, pieces)
    assert torch.equal(saved.read(MASTER, fragment(*wanted)), WHOLE[slice(*wanted)])


def test_elements_that_no_rank_saved_are_an_error(tmp_path):
    with pytest.raises(AssertionError, match="elements from 5 on were not saved"):
        save(tmp_path, [(0, 5), (7, 10)]).read(MASTER, fragment(4, 8))


def test_another_shape_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"shape \(2, 5\) in the checkpoint, \(5, 2\) in the model"):
        save(tmp_path, [(0, 10)]).check_shape(fragment(0, 10, shape=(5, 2)))
