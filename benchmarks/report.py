"""Tables and plot of what `benchmarks.run` measured: `python -m benchmarks.report`.

From benchmarks/results/speed_*.json it writes speed.md and speed.png beside them, and the README's section between the
two marks. It runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: written by `python -m benchmarks.report` -->", "<!-- benchmarks: end -->"
NEXT_HEADING = "\n## How the pieces fit"  # of the README: the section stands before it
NAMES = {
    "ours": "ours",
    "ours_no_flags": "ours, no flags",
    "ours_no_layout_flags": "ours, no flags of the layout",
    "trl_defaults": "TRL, defaults",
    "trl_best": "TRL, best setting",
    "trl_packed": "TRL, packed to 448 tokens",
    "trl_pairs": "TRL, pairs of alike length",
    "trl_pairs_compiled": "TRL, these pairs, compiled",
    "trl_compiled": "TRL, that setting compiled",
    "trl_2_processes": "TRL, 2 processes",
    "at_sample_10": "ours, at sample 10",
    "at_sample_1000000": "ours, at sample 1,000,000",
    "in_background": "ours",
    "blocking": "ours, blocking save",
}
COLOURS = {"ours": "#1b6ca8", "in_background": "#1b6ca8", "at_sample_10": "#1b6ca8", "at_sample_1000000": "#1b6ca8"}
OTHER_COLOUR = "#b0b0b0"

Result = dict[str, Any]


def main() -> None:
    write_all(RESULTS, README)


def write_all(results: Path, readme: Path | None) -> None:
    """speed.md and speed.png in `results`, and the section of `readme`."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("speed_*.json"))]
    found = [result for result in found if result.get("summary")]
    if not found:
        print(f"{results} holds no speed_*.json with a run that ended: run python -m benchmarks.run first.")
        return
    (results / "speed.md").write_text(markdown(found), encoding="utf-8")
    draw(found, results / "speed.png")
    if readme is not None:
        put_into_readme(readme, markdown(found, heading=False))
    print(f"written: {results / 'speed.md'}, {results / 'speed.png'}" + (f", {readme.name}" if readme else ""))


# --- words -----------------------------------------------------------------------------------------------------------


def markdown(found: list[Result], heading: bool = True) -> str:
    parts = ["# Ours against TRL\n"] if heading else []
    parts.append(_where(found) + "\n")
    by_kind = {kind: [result for result in found if result["kind"] == kind] for kind in _TABLES}
    parts += [_TABLES[kind](results) for kind, results in by_kind.items() if results]
    return "\n".join(parts)


def _where(found: list[Result]) -> str:
    """The machine, and which cases are of which commit: results may come from several calls."""
    cases_by_machine: dict[str, dict[str, str]] = {}
    for result in found:
        hardware, versions, commit = result["machine"], result["versions"], result["commit"]
        features = ", ".join(hardware.get("features", []))
        machine = (
            f"{hardware['processor']}{f' ({features})' if features else ''}, {hardware['cores']} cores, "
            f"{result['settings']['num_threads']} threads, {result['settings']['precision']}; "
            f"torch {versions['ours']['torch']}, TRL {(versions['trl'] or {}).get('trl', 'not run')}"
        )
        name = commit["commit"][:10] + (" with changes" if commit["package_is_changed"] else "")
        if "trl_measured_at" in result:
            name += f" (TRL at {result['trl_measured_at']['commit'][:10]})"
        cases = cases_by_machine.setdefault(machine, {})
        cases[name] = f"{cases.get(name, '')}({result['case']})"
    sentences = [
        f"{machine}; {', '.join(f'{cases} at commit {commit}' for commit, cases in by_commit.items())}."
        for machine, by_commit in cases_by_machine.items()
    ]
    return " ".join(sentences) + " Medians, with the least and the greatest of all runs; ours and TRL in turn."


def _speed_table(results: list[Result]) -> str:
    lines = [
        "| case | | tokens/s | ours is faster by | share of the matrix peak | of its own products' speed | peak memory "
        "| runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        ours = result["summary"].get("ours")
        for name, figures in result["summary"].items():
            speed, memory = figures["tokens_per_second"], figures["peak_bytes"]
            ratio = f"{ours['tokens_per_second']['median'] / speed['median']:.2f}×" if ours and name != "ours" else ""
            shares = figures.get("shares_of_matrix_peak", {})
            share, own = (f"{shares[key]:.0%}" if key in shares else "" for key in ("model_flops", "model_products"))
            lines.append(
                f"| {_case_cell(result, name)} | {NAMES[name]} | {_range(speed, '{:,.0f}')} | {ratio} "
                f"| {share} | {own} | {memory['median'] / 2**30:.2f} GiB | {speed['runs']} |"
            )
    settings = ["<details><summary>what was asked of whom</summary>\n", *map(_settings_line, results), "</details>", ""]
    return "\n".join([*lines, "", *settings])


def _settings_line(result: Result) -> str:
    """What was asked of whom: nobody's setting is hidden."""
    told = []
    for name, settings in result["settings"]["contestants"].items():
        words = " ".join(f"{key}={value}" for key, value in settings.items())
        told.append(f"{NAMES[name]} `{words}`" if words else f"{NAMES[name]} no setting")
    sizes = (
        f"{result['settings']['batch_size']} samples a step, TRL's micro-batch {result['settings']['micro_batch_size']}"
    )
    return f"({result['case']}) {sizes}; {'; '.join(told)}.{_products_line(result)}\n"


def _products_line(result: Result) -> str:
    """How fast products of matrices were in the same rounds."""
    rounds = [found for found in result.get("matrix_peaks", []) if "peak_float32" in found]
    if not rounds:
        return ""
    bf16 = median(found.get("peak_bf16", found["peak"]) for found in rounds) / 1e9
    float32 = median(found["peak_float32"] for found in rounds) / 1e9
    own = (f"{median(found['model_products'][part] for found in rounds) / 1e9:,.0f}" for part in ("layers", "head"))
    return (
        f" Products of matrices, GFLOP/s: at most {bf16:,.0f} in bf16, {float32:,.0f} in float32; those of the model's "
        f"layers {next(own)}, of its head {next(own)}."
    )


def _times_table(columns: dict[str, str]) -> Any:
    """A table of seconds: key in the summary → heading."""

    def table(results: list[Result]) -> str:
        lines = [f"| case | | {' | '.join(columns.values())} | runs |", "| --- " * (len(columns) + 3) + "|"]
        for result in results:
            for name, figures in result["summary"].items():
                cells = [_range(figures[key], "{:,.2f}") + " s" for key in columns]
                runs = figures[next(iter(columns))]["runs"]
                lines.append(f"| {_case_cell(result, name)} | {NAMES[name]} | {' | '.join(cells)} | {runs} |")
        return "\n".join([*lines, ""])

    return table


def _case_cell(result: Result, contestant: str) -> str:
    is_first = contestant == next(iter(result["summary"]))
    return f"({result['case']}) {result['title']}" if is_first else ""


def _range(spread: dict[str, float], form: str) -> str:
    middle, least, greatest = (form.format(spread[key]) for key in ("median", "least", "greatest"))
    return middle if spread["runs"] == 1 else f"{middle} ({least}–{greatest})"


_TABLES = {
    "speed": _speed_table,
    "preparation": _times_table(
        {
            "cold_seconds_to_first_step": "launch to first step, cold",
            "cold_preparation_seconds": "of it the rows' cost",
            "cached_seconds_to_first_step": "launch to first step, cached",
            "cached_preparation_seconds": "of it the rows' cost, cached",
        }
    ),
    "start": _times_table({"seconds_to_first_step": "launch to first step"}),
    "resume": _times_table({"seconds_to_first_step": "launch to first step"}),
    "saving": _times_table(
        {
            "first_stall_seconds": "loop stands still, first save",
            "later_stall_seconds": "loop stands still, a later one",
            "lost_seconds_a_save": "lost a save, in all",
        }
    ),
}


def put_into_readme(readme: Path, text: str) -> None:
    """Replaces what stands between the marks; where they are missing, both are put under a heading."""
    before = readme.read_text(encoding="utf-8")
    if BEGIN not in before:
        place = before.find(NEXT_HEADING) if NEXT_HEADING in before else len(before)
        before = f"{before[:place]}\n## Measured against TRL\n\n{BEGIN}\n{END}\n{before[place:]}"
    head, rest = before.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    body = f"{text}\n![tokens per second, memory and times](benchmarks/results/speed.png)\n"
    body += "\n`python -m benchmarks.run` measures, [benchmarks/LOG.md](benchmarks/LOG.md) says what was tried.\n"
    readme.write_text(f"{head}{BEGIN}\n{body}{END}{tail}", encoding="utf-8")


# --- picture ---------------------------------------------------------------------------------------------------------

_SHOWN = {
    "speed": ("tokens_per_second", "tokens/s"),
    "preparation": ("cold_seconds_to_first_step", "s, cold"),
    "start": ("seconds_to_first_step", "s"),
    "resume": ("seconds_to_first_step", "s"),
    "saving": ("first_stall_seconds", "s, first save"),
}


def draw(found: list[Result], path: Path) -> None:
    """A panel a case: bars of medians, whiskers from the least to the greatest, a dot a run; memory where measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(result, *_SHOWN[result["kind"]]) for result in found]
    panels += [(result, "peak_bytes", "GiB at the peak") for result in found if result["kind"] == "speed"]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (result, key, unit) in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, result, key, unit)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_panel(axis: Any, result: Result, key: str, unit: str) -> None:
    scale = 2**-30 if key == "peak_bytes" else 1.0
    names = list(result["summary"])
    for place, name in enumerate(names):
        spread = result["summary"][name][key]
        middle, least, greatest = (scale * spread[part] for part in ("median", "least", "greatest"))
        axis.bar(place, middle, color=COLOURS.get(name, OTHER_COLOUR), width=0.65)
        axis.errorbar(place, middle, [[middle - least], [greatest - middle]], color="black", capsize=3, linewidth=1)
        values = [scale * run[key] for run in result["runs"] if run["contestant"] == name and key in run]
        axis.scatter([place] * len(values), values, s=7, color="black", zorder=3)
        text = f"{middle:,.3g}" if middle < 1000 else f"{middle:,.0f}"
        axis.annotate(text, (place, greatest), (0, 4), textcoords="offset points", fontsize=7, ha="center")
    axis.margins(y=0.12)
    axis.set_xticks(range(len(names)), [NAMES[name].replace(", ", ",\n") for name in names], fontsize=7)
    axis.set_title(f"({result['case']}) {result['title']}: {unit}", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
