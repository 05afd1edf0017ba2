"""Pictures of a report, as SVG text: histograms, and curves with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 508, 24, 208
_NUM_BINS, _MOST_VALUES_APART = 32, 12
_MOST_POINTS = 600  # of a line
_NUM_COLOURS = 3  # classes s0, s1, s2 of page.html


class Point(NamedTuple):
    """A value with its interval."""

    x: float
    y: float
    low: float
    high: float


def histogram(series: Mapping[str, np.ndarray], unit: str, as_shares: bool = False) -> str:
    """Counts of each series, (N,) numbers, side by side in common bins; a few distinct values have a bin each.

    Args: as_shares: of their series, so that series of unlike sizes can be compared.
    """
    found = {name: values[np.isfinite(values)] for name, values in series.items()}
    everything = np.concatenate(list(found.values()))
    if not len(everything):
        return _svg(_text(_WIDTH / 2, _HEIGHT / 2, "middle", "nothing to show"))
    distinct = np.unique(everything)
    if len(distinct) <= _MOST_VALUES_APART:
        edges = np.concatenate([[-np.inf], (distinct[1:] + distinct[:-1]) / 2, [np.inf]])
        labels = [(place + 0.5, _number(value)) for place, value in enumerate(distinct)]
    else:
        step = (distinct[-1] - distinct[0]) / _NUM_BINS
        step = np.ceil(step) if np.issubdtype(everything.dtype, np.integer) else step
        edges = distinct[0] + step * np.arange(_NUM_BINS + 1)
        labels = [(place, _number(edges[place])) for place in range(0, _NUM_BINS + 1, _NUM_BINS // 4)]
    counts = {name: np.histogram(values, edges)[0] for name, values in found.items()}
    sizes = {name: max(len(values), 1) if as_shares else 1 for name, values in found.items()}
    num_bins, most = len(edges) - 1, max(of_one.max() / sizes[name] for name, of_one in counts.items())
    top = f"{most:.0%}" if as_shares else f"{most:,.0f}"
    width = (_RIGHT - _LEFT) / num_bins
    bar = min(width * 0.86, 60) / len(counts)
    parts = [_axes([(_LEFT + place * width, label) for place, label in labels], [(0, "0"), (1, top)], unit)]
    for place, (name, of_one) in enumerate(counts.items()):
        for number, count in enumerate(of_one.tolist()):
            x = _LEFT + (number + 0.5) * width + (place - len(counts) / 2) * bar
            height = (_BOTTOM - _TOP) * count / sizes[name] / most
            parts.append(
                f'<rect class="s{place % _NUM_COLOURS}" x="{x:.1f}" y="{_BOTTOM - height:.1f}" '
                f'width="{max(bar - 0.5, 0.5):.1f}" height="{height:.1f}">{_tip(f"{name}: {count:,}")}</rect>'
            )
    return _svg(*parts, _legend(counts))


def curves(series: Mapping[str, Sequence[Point]], unit: str) -> str:
    """Shares, from 0 to 1, over x, with their intervals."""
    places = sorted({point.x for points in series.values() for point in points})
    step = (_RIGHT - _LEFT) / max(len(places), 1)
    at = {x: _LEFT + (number + 0.5) * step for number, x in enumerate(places)}

    def y(share: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * share

    parts = [_axes([(at[x], _number(x)) for x in places], [(share, f"{share:.0%}") for share in (0, 0.5, 1)], unit)]
    for number, (name, points) in enumerate(series.items()):
        colour = f"s{number % _NUM_COLOURS}"
        shift = (number - (len(series) - 1) / 2) * 5  # intervals of two curves stand beside one another
        line = " ".join(f"{at[point.x] + shift:.1f},{y(point.y):.1f}" for point in points)
        parts.append(f'<polyline class="{colour}" points="{line}"/>')
        for point in points:
            x = at[point.x] + shift
            told = f"{name}: {point.y:.1%}, from {point.low:.1%} to {point.high:.1%}"
            parts.append(
                f'<line class="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
                f'<circle class="{colour}" cx="{x:.1f}" cy="{y(point.y):.1f}" r="4">{_tip(told)}</circle>'
            )
    return _svg(*parts, _legend(series))


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str) -> str:
    """Numbers of any size over x, as lines: of each series its x and its y. Long ones are thinned out."""
    everything = [y for _, ys in series.values() for y in ys]
    low, high = min(everything, default=0.0), max(everything, default=1.0)
    first = min((x for xs, _ in series.values() for x in xs), default=0)
    last = max((x for xs, _ in series.values() for x in xs), default=1)

    def place(value: float, begin: float, end: float, start: float, size: float) -> float:
        return start + size * ((value - begin) / (end - begin) if end > begin else 0.5)

    parts = [
        _axes(
            [(_LEFT, _number(first)), (_RIGHT, _number(last))],
            [(0, _number(low)), (0.5, _number((low + high) / 2)), (1, _number(high))],
            unit,
        )
    ]
    for number, (name, (xs, ys)) in enumerate(series.items()):
        kept = np.unique(np.linspace(0, max(len(xs) - 1, 0), min(len(xs), _MOST_POINTS)).astype(int)).tolist()
        across = [place(xs[i], first, last, _LEFT, _RIGHT - _LEFT) for i in kept]
        up = [place(ys[i], low, high, _BOTTOM, _TOP - _BOTTOM) for i in kept]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
        colour = f"s{number % _NUM_COLOURS}"
        parts.append(f'<polyline class="{colour}" points="{points}">{_tip(name)}</polyline>')
    return _svg(*parts, _legend(series))


def _axes(x_labels: Iterable[tuple[float, str]], shares: Iterable[tuple[float, str]], unit: str) -> str:
    parts = []
    for share, label in shares:
        y = _BOTTOM - (_BOTTOM - _TOP) * share
        parts.append(
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>{_text(_LEFT - 6, y + 4, "end", label)}'
        )
    parts += [_text(x, _BOTTOM + 16, "middle", label) for x, label in x_labels]
    return "".join([*parts, _text((_LEFT + _RIGHT) / 2, _BOTTOM + 34, "middle", unit)])


def _legend(names: Iterable[str]) -> str:
    parts, x = [], float(_LEFT)
    for number, name in enumerate(names):
        parts.append(f'<circle class="s{number % _NUM_COLOURS}" cx="{x + 5:.0f}" cy="10" r="4"/>')
        parts.append(_text(x + 14, 14, "start", name))
        x += 26 + 6.2 * len(name)
    return "".join(parts)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _svg(*parts: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
