"""The picture of a run."""

import math
import random
import subprocess
import sys
import time

import pytest

from openrlhf.errors import UserError
from openrlhf.tracking import curves
from openrlhf.tracking.curves import draw_training_curves
from openrlhf.tracking.metrics_file import to_line


def write_metrics(path, num_steps, a_step, an_eval):
    records = [a_step(step, loss=math.nan if step == 3 else 1.0 / step) for step in range(1, num_steps + 1)]
    path.write_text("".join(map(to_line, [*records, an_eval(num_steps)])))


def drawn_panels(monkeypatch, metrics, png):
    """Each panel's lines by title and by label, as (x, y)."""
    kept = []
    save = curves._save
    monkeypatch.setattr(curves, "_save", lambda figure, path: (kept.append(figure), save(figure, path)))
    draw_training_curves(metrics, png)
    return {
        axis.get_title(loc="left"): {line.get_label(): line.get_data() for line in axis.get_lines()}
        for axis in kept[0].axes
    }


def drawn_lines(monkeypatch, metrics, png):
    """The lines of the loss panel."""
    return drawn_panels(monkeypatch, metrics, png)["loss per target token"]


def test_the_loss_panel_shows_train_and_eval_with_a_gap_where_not_finite(tmp_path, a_step, an_eval, monkeypatch):
    write_metrics(tmp_path / "metrics.jsonl", 5, a_step, an_eval)
    lines = drawn_lines(monkeypatch, tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    steps, losses = lines["train"]
    assert list(steps) == [1, 2, 3, 4, 5]
    assert [math.isnan(loss) for loss in losses] == [False, False, True, False, False]
    assert list(lines["eval"][1]) == [1.25]


def test_the_picture_is_a_png_of_some_size_and_nothing_is_left_beside_it(tmp_path, a_step, an_eval):
    write_metrics(tmp_path / "metrics.jsonl", 80, a_step, an_eval)
    draw_training_curves(tmp_path / "metrics.jsonl", tmp_path / "out" / "curves.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["curves.png"]
    picture = (tmp_path / "out" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") >= 1000, "width in pixels"


def test_many_steps_get_an_average_that_does_not_lag(tmp_path, a_step, an_eval, monkeypatch):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(to_line(a_step(step, loss=float(step))) for step in range(1, 201)))
    lines = drawn_lines(monkeypatch, metrics, tmp_path / "curves.png")
    average = lines["train, moving average"][1]
    assert [average[0], average[100], average[-1]] == pytest.approx([1.0, 101.0, 200.0])


@pytest.mark.parametrize("length", [60, 61, 128, 1000])
def test_the_average_is_the_mean_of_the_finite_numbers_of_each_window(length):
    rng = random.Random(length)
    numbers = [rng.choice([math.nan, math.inf, 1e30, rng.random(), rng.random()]) for _ in range(length)]
    expected = []
    for middle in range(length):
        reach = min(length // 60, middle, length - 1 - middle)
        finite = [number for number in numbers[middle - reach : middle + reach + 1] if math.isfinite(number)]
        expected.append(math.fsum(finite) / len(finite) if finite else math.nan)
    assert curves._moving_average(numbers) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_the_average_of_a_long_run_takes_no_time():
    began = time.process_time()
    assert curves._moving_average([1.0] * 100_000) == [1.0] * 100_000
    assert time.process_time() - began < 5, "half a minute, number by number"


def test_token_accuracy_has_a_panel_where_the_file_knows_it(tmp_path, a_step, an_eval, monkeypatch):
    metrics = tmp_path / "metrics.jsonl"
    records = [a_step(1), a_step(2, token_accuracy=0.5), an_eval(1), {**an_eval(2), "eval_token_accuracy": 0.25}]
    metrics.write_text("".join(map(to_line, records)))
    panel = drawn_panels(monkeypatch, metrics, tmp_path / "curves.png")["token accuracy"]
    assert math.isnan(panel["train"][1][0])
    assert panel["train"][1][1] == 0.5
    assert panel["eval"] == ([2], [0.25])


def test_a_file_that_knows_no_accuracy_has_three_panels(tmp_path, a_step, an_eval, monkeypatch):
    write_metrics(tmp_path / "metrics.jsonl", 2, a_step, an_eval)
    panels = drawn_panels(monkeypatch, tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert list(panels) == ["loss per target token", "learning rate", "gradient norm"]


def test_a_file_without_steps_is_told(tmp_path, an_eval):
    (tmp_path / "metrics.jsonl").write_text(to_line(an_eval(1)))
    with pytest.raises(UserError, match="holds no training step"):
        draw_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")


def test_importing_the_room_loads_no_heavy_library():
    heavy = ["matplotlib", "wandb", "tensorboard", "deepspeed", "transformers"]
    script = f"import sys, openrlhf.tracking; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pairs_have_an_accuracy_and_rewards(tmp_path, a_step, an_eval, monkeypatch):
    rewards = {"rewards/chosen": 0.5, "rewards/rejected": -0.25, "rewards/margins": 0.75}
    records = [
        a_step(1, token_accuracy=0.9, **{"rewards/accuracies": 0.5}, **rewards),
        {**an_eval(1), "eval_rewards/accuracies": 0.75},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(map(to_line, records)))
    panels = drawn_panels(monkeypatch, tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert list(panels) == ["loss per pair", "learning rate", "gradient norm", "accuracy over pairs", "rewards"]
    assert panels["accuracy over pairs"]["eval"] == ([1], [0.75])
    assert {label: line[1] for label, line in panels["rewards"].items()} == {
        "chosen": [0.5], "rejected": [-0.25], "margin": [0.75],
    }  # fmt: skip
