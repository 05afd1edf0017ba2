"""`training_curves.png`: a run's loss, learning rate, gradient norm, accuracy, rewards, from `metrics.jsonl`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openrlhf.atomic_file import replacing
from openrlhf.errors import UserError
from openrlhf.tracking.metrics_file import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, VIOLET = "#2f6db5", "#e07b1f", "#2f8f5b", "#b5403a", "#7a5aa6"
INK, GRID = "#333a45", "#e3e6ea"
STEPS_FROM_WHICH_TO_SMOOTH = 60
ACCURACIES = {  # the first that the file knows → its title
    "rewards/accuracies": "accuracy over pairs",
    "accuracy": "accuracy over pairs",
    "token_accuracy": "token accuracy",
}
REWARDS = (  # of a preference, of a reward model: chosen, rejected, and their difference
    ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    ("chosen_reward", "rejected_reward", "margin"),
)

Records = list[dict[str, Any]]


def draw_training_curves(metrics_jsonl: str | Path, png_path: str | Path) -> None:
    """Draws the records of `metrics_jsonl` into `png_path`, which appears whole or not at all.

    Numbers that were not finite (null in the file) are gaps in the curve. An accuracy and rewards have a panel where
    the file knows them; files of earlier versions know no accuracy.

    Raises:
        UserError: the file holds no step.
    """
    records = read_records(metrics_jsonl)
    steps = [record for record in records if "loss" in record]
    evals = [record for record in records if "eval_loss" in record]
    if not steps:
        raise UserError(f"{metrics_jsonl} holds no training step: there is nothing to draw.")
    figure = _new_figure()
    accuracies = [name for name in ACCURACIES if any(name in record for record in steps)][:1]
    rewards = [names for names in REWARDS if any(names[0] in record for record in steps)]
    loss, lr, grad_norm, *more = _new_axes(figure, num_small=2 + len(accuracies) + len(rewards))
    _draw_loss(loss, steps, evals, "loss per pair" if rewards else "loss per target token")
    _draw(lr, "learning rate", GREEN, steps, "lr")
    _draw(grad_norm, "gradient norm", RED, steps, "grad_norm")
    for axis, name in zip(more, accuracies, strict=False):
        _draw_accuracy(axis, steps, evals, name)
    for axis, names in zip(more[len(accuracies) :], rewards, strict=True):
        _draw_rewards(axis, steps, names)
    _save(figure, Path(png_path))


def _new_figure() -> Figure:
    # A figure of its own: pyplot would choose a window system and keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _new_axes(figure: Figure, num_small: int) -> list[Axes]:
    """A large panel on the left, and `num_small` small ones beside it, from top to bottom."""
    figure.set_size_inches(11, 2.0 + 1.6 * num_small)
    grid = figure.add_gridspec(num_small, 2, width_ratios=(1.7, 1))
    axes = [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[row, 1]) for row in range(num_small))]
    for axis in axes:
        _dress(axis)
    return axes


def _dress(axis: Axes) -> None:
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b9c0c9")
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.set_xlabel("optimizer step", color=INK, fontsize=9)
    axis.margins(x=0.02)
    axis.locator_params(axis="x", integer=True)


def _draw_loss(axis: Axes, steps: Records, evals: Records, title: str) -> None:
    _draw_train(axis, BLUE, steps, "loss")
    _draw_eval(axis, evals, "eval_loss")
    _title(axis, title)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_accuracy(axis: Axes, steps: Records, evals: Records, name: str) -> None:
    _draw_train(axis, VIOLET, steps, name)
    _draw_eval(axis, [record for record in evals if f"eval_{name}" in record], f"eval_{name}")
    _title(axis, ACCURACIES[name])
    axis.yaxis.set_major_formatter("{x:g}")


def _draw_rewards(axis: Axes, steps: Records, names: tuple[str, str, str]) -> None:
    for name, label, color in zip(names, ("chosen", "rejected", "margin"), (GREEN, RED, VIOLET), strict=True):
        axis.plot(*_series(steps, name), color=color, linewidth=1.2, label=label)
    _title(axis, "rewards")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw(axis: Axes, title: str, color: str, steps: Records, key: str) -> None:
    axis.plot(*_series(steps, key), color=color, linewidth=1.2)
    _title(axis, title)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:g}")


def _draw_train(axis: Axes, color: str, steps: Records, key: str) -> None:
    """The numbers of all steps; where they are many, pale and with a moving average on top."""
    where, numbers = _series(steps, key)
    smooth = len(numbers) >= STEPS_FROM_WHICH_TO_SMOOTH
    axis.plot(where, numbers, color=color, linewidth=1.4, alpha=0.3 if smooth else 1.0, label="train")
    if smooth:
        axis.plot(where, _moving_average(numbers), color=color, linewidth=1.8, label="train, moving average")


def _draw_eval(axis: Axes, evals: Records, key: str) -> None:
    if evals:
        marker = "o" if len(evals) <= 40 else ""
        axis.plot(*_series(evals, key), color=ORANGE, linewidth=1.8, marker=marker, markersize=4, label="eval")


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", color=INK, fontsize=11, fontweight="bold")


def _series(records: Records, key: str) -> tuple[list[int], list[float]]:
    numbers = (record.get(key) for record in records)
    return [record["global_step"] for record in records], [math.nan if n is None else n for n in numbers]


def _moving_average(numbers: list[float]) -> list[float]:
    """Mean over a window centred on each number (narrower at both ends), so that nothing lags; nan is passed over."""
    values, middles = np.asarray(numbers, dtype=np.float64), np.arange(len(numbers))
    reaches = np.minimum(len(numbers) // 60, np.minimum(middles, middles[::-1]))
    is_finite = np.isfinite(values)
    sums, counts = (
        _window_sums(one, middles - reaches, 2 * reaches + 1)
        for one in (np.where(is_finite, values, 0.0), is_finite.astype(np.float64))
    )
    return np.divide(sums, counts, out=np.full(len(numbers), math.nan), where=counts > 0).tolist()


def _window_sums(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sum of `lengths[i]` values from `starts[i]` on, of blocks of 1, 2, 4, … values.

    Differences of a cumulative sum would lose small values behind a very large one.
    """
    sums, places, blocks = np.zeros(len(starts)), starts.copy(), values
    for bit in range(int(lengths.max()).bit_length()):
        size = 1 << bit
        chosen = lengths & size > 0
        sums[chosen] += blocks[places[chosen]]
        places[chosen] += size
        blocks = blocks[:-size] + blocks[size:]
    return sums


def _save(figure: Figure, png_path: Path) -> None:
    png_path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(png_path) as temporary:
        figure.savefig(temporary, format="png")
