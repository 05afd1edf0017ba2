"""ring-flash-attn as a back end of the ring: what can be shown without the packages and without a GPU."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from openrlhf.errors import UserError
from openrlhf.models.attention import ring as rings
from openrlhf.models.attention.dense import AttentionOptions
from openrlhf.models.attention.ring_plan import Ring
from openrlhf.parallel.sequence_shares import sample_share

PLAIN = AttentionOptions(scaling=None)


@pytest.fixture
def installed(monkeypatch):
    """Both packages are there, as far as a look can tell."""
    monkeypatch.setattr(rings.importlib.util, "find_spec", lambda name: types.SimpleNamespace(name=name))


def ring(*sample_lengths: int, size: int = 2) -> Ring:
    return Ring(None, 0, size, (0,) * size, (), sample_lengths, 0)


def knows(lengths=(8, 12), dtype=torch.bfloat16, options=PLAIN) -> bool:
    rows = torch.zeros(1, 4, 10, 16, dtype=dtype)
    return rings.ring_flash_knows(rows, rows, options, ring(*lengths))


def test_on_a_cpu_it_is_refused(installed):
    with pytest.raises(UserError, match="runs on CUDA only"):
        rings.require_ring_flash("cpu")


def test_why_it_cannot_be_used_with_this_transformers_is_told_in_one_line(installed, monkeypatch):
    def cannot():
        raise ImportError("cannot import name 'is_flash_attn_greater_or_equal_2_10'\nmore lines")

    monkeypatch.setattr(rings, "import_ring_flash_attn", cannot)
    with pytest.raises(UserError) as caught:
        rings.require_ring_flash("cuda")
    message = str(caught.value)
    assert "with transformers 5" in message or "with transformers 4" in message
    assert "ImportError: cannot import name 'is_flash_attn_greater_or_equal_2_10'" in message
    assert "\n" not in message


def test_what_the_packages_do_not_know_goes_to_our_ring():
    assert knows()
    assert knows(options=AttentionOptions(scaling=0.1, window=12)), "a window that no sample exceeds"
    assert not knows(lengths=(8, 13)), "13 is not a multiple of 4"
    assert not knows(dtype=torch.float32)
    assert not knows(options=AttentionOptions(scaling=None, window=11))
    assert not knows(options=AttentionOptions(scaling=None, softcap=5.0))
    assert not knows(options=AttentionOptions(scaling=None, sinks=torch.zeros(4)))


def test_borders_and_shares_are_handed_on_in_the_packages_own_form(monkeypatch):
    """They want each sample as the chunks r and 2N-1-r of 2N equal ones, and borders divided by N."""
    seen = {}

    def stand_in(query, key, value, borders, longest, **options):
        seen.update(query=query, borders=borders.tolist(), longest=longest, **options)
        return query

    package = types.SimpleNamespace(zigzag_ring_flash_attn_varlen_func=stand_in)
    monkeypatch.setitem(sys.modules, "ring_flash_attn", package)
    query = torch.randn(1, 4, 10, 16, dtype=torch.bfloat16)
    key = torch.randn(1, 2, 10, 16, dtype=torch.bfloat16)
    output, _ = rings.ring_flash_attention(None, query, key, key, None, scaling=0.5, ring=ring(8, 12))
    assert (seen["borders"], seen["longest"], seen["causal"], seen["softmax_scale"]) == ([0, 4, 10], 6, True, 0.5)
    assert not seen["deterministic"]
    assert torch.equal(output, query.transpose(1, 2))
    assert [sample_share(12, rank, 2) for rank in range(2)] == [((0, 3), (9, 12)), ((3, 6), (6, 9))]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    rings.ring_flash_attention(None, query, key, key, None, scaling=0.5, ring=ring(8, 12))
    assert seen["deterministic"], "--train.full_determinism_enable says nothing to the package"
