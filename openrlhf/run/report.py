"""What every run leaves to look at: `training_curves.png`, and all of it in one file, `report.html`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from openrlhf.atomic_file import keep_aside
from openrlhf.config import TrainingConfig
from openrlhf.config.written import FILE_NAME as RESOLVED_CONFIG
from openrlhf.config.written import written_by
from openrlhf.errors import UserError
from openrlhf.rejection.charts import lines
from openrlhf.rejection.report import REPORT, Page, Sample, ShownAnswer, write_page
from openrlhf.run.model_card import CARD_FILE, changed_settings, is_own_card
from openrlhf.tracking.curves import draw_training_curves
from openrlhf.tracking.metrics_file import ANSWERS_FILE, METRICS_FILE, RESTARTS_FILE, read_records
from openrlhf.tracking.more_sinks import SINKS
from openrlhf.tracking.sinks import prompt_text

_CHARTS = {  # names of records that share a chart
    "loss": ("loss", "eval_loss"),
    "accuracy": ("token_accuracy", "accuracy", "rewards/accuracies", "eval_accuracy", "eval_rewards/accuracies"),
    "margin": ("margin", "rewards/margins", "eval_margin", "eval_rewards/margins"),
    "reward of the answers": ("answer_reward",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
    "tokens a second": ("tokens_per_second",),
    "GPU memory, bytes": ("gpu_memory_bytes",),
    "memory of the process, bytes": ("host_memory_bytes",),
}
CURVES_FILE = "training_curves.png"
_NUMBERS_OF_A_STEP = 2  # a chart has at least that many
_PROMPTS_SHOWN = 40

Record = Mapping[str, Any]


def keep_other_run_aside(folder: Path, run_id: str | None, goes_on: bool) -> None:
    """The files that another run left in the folder stay, under other names.

    Args: goes_on: from a checkpoint. Files that nobody's settings lie beside are then its own, brought back.
    """
    if written_by(folder / RESOLVED_CONFIG) in ((run_id, None) if goes_on else (run_id,)):
        return
    of_trackers = [sink.id_file() for sink in SINKS.values()]
    card = [CARD_FILE] if is_own_card(folder / CARD_FILE) else []
    for name in (METRICS_FILE, ANSWERS_FILE, RESTARTS_FILE, CURVES_FILE, REPORT, *of_trackers, *card, RESOLVED_CONFIG):
        keep_aside(folder / name)


def write_report(
    folder: Path, config: TrainingConfig, report: Any, exported_step: int, say: Callable[[str], None]
) -> None:
    """Picture and page in the folder of an exported model; what fails is told.

    Args:
        report: of the training data.
        exported_step: the optimizer step whose weights the model has.
    """
    for write in (
        lambda: draw_training_curves(folder / METRICS_FILE, folder / CURVES_FILE),
        lambda: _write_page(folder, config, report, exported_step),
    ):
        try:
            write()
        except (UserError, OSError) as error:
            say(f"warning: the curves could not be drawn: {error}")


def _write_page(folder: Path, config: TrainingConfig, report: Any, exported_step: int) -> None:
    records = _records(folder / METRICS_FILE)
    facts = [
        *_course(records),
        ("exported model", f"that after step {exported_step:,}"),
        *_happened(records),
        *_restarts(folder),
        *_data(report),
        *changed_settings(config).items(),
    ]
    write_page(
        folder / REPORT,
        Page(
            f"Training of {folder.resolve().name}",
            f"from {Path(config.model.model_name_or_path).name} by {config.command.usage.rpartition(' ')[2]}",
            [(name, str(value)) for name, value in facts],
            list(_charts(records)),
            list(_answers(_records(folder / ANSWERS_FILE))),
        ),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    return read_records(path) if path.is_file() else []


def _course(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    steps = [record for record in records if "step_seconds" in record]
    if not steps:
        return
    yield "optimizer steps", f"{steps[-1]['global_step']:,}"
    yield "loss, first and last step", f"{_shown(steps[0]['loss'])}, {_shown(steps[-1]['loss'])}"
    evaluated = [record for record in records if record.get("eval_loss") is not None]
    if evaluated:
        best = min(evaluated, key=lambda record: record["eval_loss"])
        yield (
            "evaluations",
            f"{len(evaluated):,}; the best loss {_shown(best['eval_loss'])} after step {best['global_step']:,}",
        )
    yield "seconds in steps", f"{sum(record['step_seconds'] for record in steps):,.0f}"
    yield "tokens a second, median", f"{median(record['tokens_per_second'] for record in steps):,.0f}"
    for name, holder in (("gpu_memory_bytes", "GPU"), ("host_memory_bytes", "process")):
        if memory := [record[name] for record in steps if name in record]:
            yield f"peak memory of rank 0's {holder}", f"{max(memory) / 2**30:.1f} GiB"


def _happened(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """What a reader would ask about: steps without a finite loss or norm, memory that ran out."""
    skipped = [
        str(record["global_step"])
        for record in records
        if "step_seconds" in record and (record["loss"] is None or record.get("grad_norm", 0) is None)
    ]
    yield "steps that were not finite", f"{len(skipped):,}: {', '.join(skipped[:20])}" if skipped else "none"
    short = [str(record["global_step"]) for record in records if "out_of_memory" in record]
    if short:
        yield "out of memory, computed again", f"{len(short):,}: steps {', '.join(short[:20])}"
    for record in records:
        if "layout" in record:
            recomputed = ", activations recomputed" if record["layout"]["recomputes"] else ""
            words = f"{record['layout']['max_tokens']:,} tokens a micro-batch{recomputed}"
            yield f"layout kept in step {record['global_step']:,}", words


def _restarts(folder: Path) -> Iterator[tuple[str, str]]:
    after = [f"{restart['global_step']:,} ({restart['time']})" for restart in _records(folder / RESTARTS_FILE)]
    yield "restarts", f"{len(after):,}: gone on after step {', '.join(after[-20:])}" if after else "none"


def _data(report: Any) -> Iterator[tuple[str, str]]:
    yield "samples trained on", f"{report.num_samples:,}"
    yield "tokens an epoch", f"{report.num_tokens:,}, {report.num_target_tokens:,} of them targets"
    yield (
        "left out",
        ", ".join(f"{count:,} {reason}" for reason, count in report.left_out.items() if count) or "nothing",
    )


def _charts(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    for title, names in _CHARTS.items():
        series = {}
        for name in names:
            found = [(one["global_step"], one[name]) for one in records if one.get(name) is not None]
            if len(found) >= _NUMBERS_OF_A_STEP:
                series[name] = ([step for step, _ in found], [number for _, number in found])
        if series:
            yield title, lines(series, "optimizer step")


def _answers(answers: Sequence[Record]) -> Iterator[Sample]:
    """Each prompt with its answers, the newest first."""
    ordered = sorted(answers, key=lambda one: (one["prompt_id"], -one["global_step"]))
    for number, (_, group) in enumerate(groupby(ordered, key=lambda one: one["prompt_id"])):
        of_prompt = list(group)
        if number < _PROMPTS_SHOWN:
            yield Sample(prompt_text(of_prompt[0]["prompt"]), [_answer(one) for one in of_prompt])


def _answer(one: Record) -> ShownAnswer:
    reward = "" if one.get("reward") is None else f", reward {one['reward']:g}"
    return ShownAnswer(one["response"], f"after step {one['global_step']:,}, ended by {one['finish_reason']}{reward}")


def _shown(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.4f}"
