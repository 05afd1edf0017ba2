"""gloo with nccl's rules, which it does not have itself: timeouts, and first operations with all ranks of a group."""

from __future__ import annotations

import pytest

from tests.cuda.group_rules import rules_broken_by_a_run
from tests.equivalence.cells import Layout
from tests.helpers.ranks import RankPool

LAYOUTS = [
    Layout(zero_stage=2, packed=True, ring=2),
    Layout(zero_stage=3, micro_batch_size=4),
    Layout(zero_stage=1, micro_batch_size=4, tensor_parallel=2),
]


@pytest.fixture(scope="module")
def ranks_of_their_own():
    """DeepSpeed never forgets in a process that it has shared out weights: later tests would be given shards."""
    with RankPool(4) as pool:
        yield pool


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_obeys_nccls_rules(ranks_of_their_own, layout):
    assert ranks_of_their_own.run(rules_broken_by_a_run, layout) == [[]] * 4
