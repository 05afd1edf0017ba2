"""Reports: bars as high as their counts, curves of model and control, one file without a network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from openrlhf.rejection.charts import histogram
from openrlhf.rejection.generate import generate
from openrlhf.rejection.report import MAX_PROMPTS
from tests.rejection.stand_in import LONG, StandIn, generate_config


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


def test_generated_answers_have_a_page_with_lengths_and_reasons(tmp_path: Path) -> None:
    rows = [{"prompt": f"<b>question {number}</b>"} for number in range(60)] + [{"prompt": ""}, {"prompt": LONG}]
    generate(generate_config(tmp_path, rows, "--generate.n", "2"), StandIn())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>left out: the prompt is too long</td><td>1 prompts</td>" in page
    assert [tip for _, tip in bars(page, 0)] == ["stop: 120"]
    assert page.count("<article>") == MAX_PROMPTS
    assert page.count("answer 1 · stop · 3 tokens") == MAX_PROMPTS
    assert "&lt;b&gt;question" in page
    assert "<b>" not in page
    assert "http" not in page
