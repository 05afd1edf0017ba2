"""The stream of a micro-step is a function of its place in the run."""

from __future__ import annotations

import traceback

import pytest
import torch

from openrlhf.parallel.random_streams import seed_micro_step


def drawn(*place: int) -> list[float]:
    seed_micro_step(*place)
    return torch.rand(4).tolist()


def test_each_place_has_numbers_of_its_own_and_the_same_ones_again():
    places = [
        (seed, step, micro_step, rank) for seed in (0, 1) for step in (0, 7) for micro_step in (0, 1) for rank in (0, 1)
    ]
    first = [drawn(*place) for place in places]
    assert first == [drawn(*place) for place in places]
    assert len(set(map(tuple, first))) == len(places)


def test_without_an_accelerator_no_stack_trace_is_written_down(monkeypatch):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    monkeypatch.setattr(traceback, "format_stack", lambda: pytest.fail("milliseconds of each micro-step"))
    drawn(0, 0, 0, 0)
