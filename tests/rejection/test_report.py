"""Reports: bars as high as their counts, curves of model and control, one file without a network."""

from __future__ import annotations

import re

import numpy as np
import pytest

from openrlhf.rejection.charts import histogram
from openrlhf.rejection.report import write_iterations
from openrlhf.rejection.statistics import pass_statistics


def bars(svg: str, series: int) -> list[tuple[float, str]]:
    """Height and tip of each bar."""
    found = re.findall(rf'<rect class="s{series}"[^>]* height="([\d.]+)"><title>(.*?)</title>', svg)
    return [(float(height), tip) for height, tip in found]


def test_few_values_have_a_bar_each():
    svg = histogram({"kept": np.array([1.0] * 4), "left out": np.array([0.0, 1.0, np.nan])}, "reward")
    assert [tip for _, tip in bars(svg, 0)] == ["kept: 0", "kept: 4"]
    assert [tip for _, tip in bars(svg, 1)] == ["left out: 1", "left out: 1"]
    assert bars(svg, 0)[1][0] == pytest.approx(4 * bars(svg, 1)[1][0])


def test_every_value_is_in_one_bar():
    for values in (np.arange(100), np.arange(7, 700, 3), np.random.default_rng(0).normal(size=500)):
        counts = [int(tip.split()[-1]) for _, tip in bars(histogram({"all": values}, "tokens"), 0)]
        assert sum(counts) == len(values)


def test_shares_make_series_of_unlike_sizes_alike():
    svg = histogram({"few": np.arange(50), "many": np.repeat(np.arange(50), 20)}, "tokens", as_shares=True)
    assert [height for height, _ in bars(svg, 0)] == [height for height, _ in bars(svg, 1)]


def test_nothing_to_show_is_said():
    assert "nothing to show" in histogram({"kept": np.array([])}, "tokens")


def test_iterations_show_model_and_control_with_intervals(tmp_path):
    rng = np.random.default_rng(0)
    first, model, control = (pass_statistics(np.full(60, 4), rng.binomial(4, p, 60)) for p in (0.3, 0.7, 0.4))
    iterations = [{"model": first}, {"model": model, "control": control}, {"model": model, "<b>": control}]
    write_iterations(tmp_path / "report.html", iterations, "recipe.toml & more")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3  # pass@1, pass@2, pass@4
    assert page.count("<polyline") == 9
    assert "recipe.toml &amp; more" in page
    assert "<b>" not in page
    low, high = control["intervals"]["pass@1"]
    assert f"control: {control['pass@1']:.1%}, from {low:.1%} to {high:.1%}" in page
    assert "http" not in page
