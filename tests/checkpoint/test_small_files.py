"""Progress and random states go to disk and come back."""

import json
import random
from pathlib import Path

import numpy
import pytest
import torch

from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.checkpoint.training_state import capture_random_states, read_random_states, restore_random_states
from openrlhf.errors import UserError


def test_progress_comes_back() -> None:
    progress = TrainingProgress(7, 1, 56, 900, 1200, 2.5, 5, True)
    assert TrainingProgress.from_json(progress.to_json()) == progress


def test_progress_of_another_version_is_said():
    later = json.dumps(json.loads(TrainingProgress().to_json()) | {"consumed_wishes": 3})
    for text in (later, '{"optimizer_step": 3}'):
        with pytest.raises(UserError, match="version of openrlhf"):
            TrainingProgress.from_json(text)


def test_random_streams_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second value waiting, which belongs to the state
    numpy.random.randn()  # noqa: NPY002 - the global generator is what is saved
    write_tensors(tmp_path / "random", *capture_random_states())
    before = _draw()
    restore_random_states(read_random_states(tmp_path / "random"))
    assert _draw() == before


def _draw() -> list[float]:
    return [random.gauss(0, 1), float(numpy.random.randn()), torch.rand(()).item()]  # noqa: NPY002
