"""Progress, identity and random states go to disk and come back."""

import random
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from openrlhf.checkpoint.identity import RunIdentity, check_same_run, differences, model_shape_fingerprint
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.tensor_file import write_tensors
from openrlhf.checkpoint.training_state import capture_random_states, read_random_states, restore_random_states
from openrlhf.errors import UserError

IDENTITY = RunIdentity("d1", 100, 42, 8, "m1", "t1", "tokens", 300, "adam", "bf16", "none", "none")


def test_progress_comes_back() -> None:
    progress = TrainingProgress(7, 1, 56, 900, 1200, 2.5, 5, True)
    assert TrainingProgress.from_json(progress.to_json()) == progress


def test_progress_of_another_version_is_said() -> None:
    with pytest.raises(UserError, match="version of openrlhf"):
        TrainingProgress.from_json('{"optimizer_step": 3}')


def test_same_identity_has_no_differences() -> None:
    assert differences(IDENTITY, RunIdentity.from_dict(IDENTITY.to_dict())) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("data_fingerprint", "d2", "training data"),
        ("num_samples", 99, "number of training samples"),
        ("seed", 43, "--train.seed"),
        ("batch_size", 16, "--train.batch_size"),
        ("model_shape", "m2", "model's parameters"),
        ("tokenizer_fingerprint", "t2", "tokenizer"),
        ("loss_reduction", "samples", "loss"),
        ("schedule_num_steps", 301, "schedule"),
        ("optimizer", "muon", "--optim"),
        ("param_dtype", "fp32", "--ds.param_dtype"),
        ("adapter", "rank 8", "--ds.lora"),
        ("base_model", "b2", "--model.model_name_or_path"),
    ],
)
def test_each_difference_stops_the_run_in_words(field: str, value: object, words: str) -> None:
    now = replace(IDENTITY, **{field: value})
    with pytest.raises(UserError, match=words) as raised:
        check_same_run(IDENTITY, now, "here/global_step3")
    assert "--ckpt.allow_mismatch" in str(raised.value)
    assert "here/global_step3" in str(raised.value)


def test_what_an_older_checkpoint_does_not_say_is_not_compared() -> None:
    values = IDENTITY.to_dict()
    for name in ("optimizer", "param_dtype", "adapter", "base_model"):
        del values[name]
    assert differences(RunIdentity.from_dict(values), IDENTITY) == []


def test_who_means_it_goes_on_and_is_told() -> None:
    assert len(check_same_run(IDENTITY, replace(IDENTITY, seed=1), "x", allow_mismatch=True)) == 1


def test_model_shape_sees_names_and_shapes_not_order() -> None:
    shapes = [("a", (2, 3)), ("b", (4,))]
    assert model_shape_fingerprint(shapes) == model_shape_fingerprint(shapes[::-1])
    assert model_shape_fingerprint(shapes) != model_shape_fingerprint([("a", (3, 2)), ("b", (4,))])


def test_random_streams_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second value waiting, which belongs to the state
    numpy.random.randn()  # noqa: NPY002 - the global generator is what is saved
    write_tensors(tmp_path / "random", *capture_random_states())
    before = _draw()
    restore_random_states(read_random_states(tmp_path / "random"))
    assert _draw() == before


def _draw() -> list[float]:
    return [random.gauss(0, 1), float(numpy.random.randn()), torch.rand(()).item()]  # noqa: NPY002
