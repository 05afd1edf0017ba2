"""gloo with nccl's rules, which it does not have itself: timeouts, and first operations with all ranks of a group."""

from __future__ import annotations

import pytest

from tests.cuda.group_rules import rules_broken_by_a_run
from tests.equivalence.cells import Layout

LAYOUTS = [
    Layout(zero_stage=2, packed=True, ring=2),
    Layout(zero_stage=3, micro_batch_size=4),
    Layout(zero_stage=1, micro_batch_size=4, tensor_parallel=2),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_obeys_nccls_rules(four_ranks, layout):
    assert four_ranks.run(rules_broken_by_a_run, layout) == [[]] * 4
