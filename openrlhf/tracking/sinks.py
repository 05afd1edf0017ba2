"""Sinks of a run's records: the terminal and TensorBoard.

The terminal shows a bar; where output goes to a file, a line now and then. `Charts` of all kinds have one
`train/<name>` or `eval/<name>` for each number, over optimizer steps.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from openrlhf.errors import UserError
from openrlhf.exit_codes import Outcome
from openrlhf.tracking.metrics_file import ANSWERS_FILE

SECONDS_BETWEEN_LINES = 10.0
_ANSWERS_SHOWN = 3  # in the terminal
_ACCURACIES = ("token_accuracy", "accuracy", "rewards/accuracies")
_MARGINS = ("margin", "rewards/margins")
_OF_RUN = ".run-"  # in the name of an event file, before the run's id
logger = logging.getLogger(__name__)


class BarSink:
    """A progress bar with loss, learning rate, tokens per second and the time left."""

    def __init__(self, num_steps: int, first_step: int, stream: TextIO):
        look = {"desc": "training", "unit": "step", "dynamic_ncols": True}
        self._bar = tqdm(total=num_steps, initial=first_step, file=stream, **look)

    def log_step(self, record: Mapping[str, float]) -> None:
        self._bar.set_postfix_str(_numbers(record), refresh=False)
        self._bar.update(record["global_step"] - self._bar.n)

    def log_eval(self, record: Mapping[str, float]) -> None:
        self._bar.write(_eval_line(record), file=self._bar.fp)

    def log_more(self, record: Mapping[str, float]) -> None:
        self._bar.write(_more_line(record), file=self._bar.fp)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._bar.write(_answers_text(answers), file=self._bar.fp)

    def close(self, outcome: Outcome = "finished") -> None:
        self._bar.close()


class LineSink:
    """A line for the first step, the last one, and every ten seconds between them."""

    def __init__(
        self,
        num_steps: int,
        first_step: int,
        stream: TextIO,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ):
        self._num_steps = num_steps
        self._first_step = first_step
        self._stream = stream
        self._seconds_between_lines = seconds_between_lines
        self._started_at = time.monotonic()
        self._last_line_at = -float("inf")

    def log_step(self, record: Mapping[str, float]) -> None:
        now = time.monotonic()
        step = record["global_step"]
        if step < self._num_steps and now - self._last_line_at < self._seconds_between_lines:
            return
        self._last_line_at = now
        time_left = tqdm.format_interval(self._seconds_left(step, now))
        line = f"step {step}/{self._num_steps}  {_numbers(record)}, {time_left} left"
        print(line, file=self._stream, flush=True)

    def log_eval(self, record: Mapping[str, float]) -> None:
        print(_eval_line(record), file=self._stream, flush=True)

    def log_more(self, record: Mapping[str, float]) -> None:
        print(_more_line(record), file=self._stream, flush=True)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        print(_answers_text(answers), file=self._stream, flush=True)

    def close(self, outcome: Outcome = "finished") -> None:
        self._stream.flush()

    def _seconds_left(self, step: float, now: float) -> float:
        seconds_a_step = (now - self._started_at) / max(step - self._first_step, 1)
        return seconds_a_step * (self._num_steps - step)


def console_sink(num_steps: int, first_step: int = 0, stream: TextIO | None = None) -> BarSink | LineSink:
    """The sink that suits `stream` (standard error when not given): a bar in a terminal, lines elsewhere.

    `num_steps` is the whole run's; `first_step` is how many of them a resumed run has behind it.
    """
    stream = stream or sys.stderr
    sink = BarSink if stream.isatty() else LineSink
    return sink(num_steps, first_step, stream)


def _numbers(record: Mapping[str, float]) -> str:
    text = f"loss {record['loss']:.4f}, lr {record['lr']:.2e}, {record['tokens_per_second']:,.0f} tokens/s"
    return text + "".join(_if_there(record, name, ".4f") for name in (*_ACCURACIES, *_MARGINS, "aux_loss"))


def _eval_line(record: Mapping[str, float]) -> str:
    loss = f"evaluation after step {record['global_step']}: loss {record['eval_loss']:.4f}"
    accuracy = "".join(_if_there(record, f"eval_{name}", ".4f") for name in (*_ACCURACIES, *_MARGINS))
    num_targets = f" over {record['eval_num_target_tokens']:,} target tokens"
    return loss + _if_there(record, "eval_perplexity", ".3f") + accuracy + num_targets


def _more_line(record: Mapping[str, float]) -> str:
    numbers = ", ".join(f"{name} {number:g}" for name, number in record.items() if name != "global_step")
    return f"after step {record['global_step']}: {numbers}"


def _answers_text(answers: Sequence[Mapping[str, Any]]) -> str:
    """A few of them, shortened."""
    lines = [f"answers after step {answers[0]['global_step']} ({len(answers):,}; all are in {ANSWERS_FILE}):"]
    for answer in answers[:_ANSWERS_SHOWN]:
        lines.append(f"  {shorten(prompt_text(answer['prompt']), 200)}")
        reward = "" if answer.get("reward") is None else f"  [{answer['reward']:g}]"
        lines.append(f"    → {shorten(answer['response'], 400)}{reward}")
    return "\n".join(lines)


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt in one text: the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")


def shorten(text: str, most: int) -> str:
    """In one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _if_there(record: Mapping[str, float], name: str, spec: str) -> str:
    return f", {name.removeprefix('eval_')} {record[name]:{spec}}" if name in record else ""


# --- charts over optimizer steps ---


class Charts(ABC):
    """A sink that has a chart for each number."""

    def log_step(self, record: Mapping[str, float]) -> None:
        self._log("train", record)

    def log_eval(self, record: Mapping[str, float]) -> None:
        self._log("eval", record)

    log_more = log_step
    openrlhf_names = False

    def _log(self, group: str, record: Mapping[str, float]) -> None:
        if self.openrlhf_names:
            self._draw(openrlhf_charts(group, record), record["global_step"])
            return
        numbers = {name: number for name, number in record.items() if name != "global_step"}
        charts = {f"{group}/{name.removeprefix('eval_')}": number for name, number in numbers.items()}
        self._draw(charts, record["global_step"])

    @abstractmethod
    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Texts, as they are shown beside charts."""

    @abstractmethod
    def close(self, outcome: Outcome = "finished") -> None:
        """Nothing follows."""

    @abstractmethod
    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        """One more number for each of these charts."""


def openrlhf_charts(group: str, record: Mapping[str, float]) -> dict[str, float]:
    """A record under the names of OpenRLHF's charts; `global_step` is the axis of each group."""
    names = {"loss": "gpt_loss", "eval_loss": "eval gpt_loss"}
    charts = {f"{group}/{names.get(name, name.removeprefix('eval_'))}": number for name, number in record.items()}
    return charts | ({"train/loss_mean": record["loss"]} if group == "train" and "loss" in record else {})


class TensorBoardSink(Charts):
    """TensorBoard's event files."""

    def __init__(
        self,
        folder: str,
        resume_step: int | None = None,
        openrlhf_names: bool = False,
        run_id: str | None = None,
    ):
        """Args:
            folder: where the event files go; those of other runs move into `events.previous`, `events.previous_2` and
                so on below it, which TensorBoard shows as runs of their own.
            openrlhf_names: of the charts, in place of our own.
            resume_step: optimizer step that the run goes on from; TensorBoard hides what was logged after it.
            run_id: stands in the names of the files, by which a run that goes on knows its own.

        Raises:
            UserError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as problem:
            raise UserError(
                "--logger.tensorboard_dir needs the package tensorboard: pip install tensorboard"
            ) from problem
        self.openrlhf_names = openrlhf_names
        own = _OF_RUN + run_id if run_id else ""
        _keep_events_aside(Path(folder), None if resume_step is None else own)
        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(folder, purge_step=purge_step, filename_suffix=own)

    def close(self, outcome: Outcome = "finished") -> None:
        self._writer.close()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        for chart, number in numbers_by_chart.items():
            self._writer.add_scalar(chart, number, optimizer_step)
        self._writer.flush()

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for number, answer in enumerate(answers):
            text = f"    {prompt_text(answer['prompt'])}\n\n    {answer['response']}".replace("\n", "\n    ")
            self._writer.add_text(f"answers/{number}", text, answer["global_step"])


def _keep_events_aside(folder: Path, own: str | None) -> None:
    """TensorBoard draws all event files of a folder as one line: two runs in one would be a zigzag.

    Args: own: end of the names that stay, as do those without an id; None moves all.
    """
    found = folder.glob("events.out.tfevents.*")
    earlier = [file for file in found if own is None or (_OF_RUN in file.name and not file.name.endswith(own))]
    names = ("events.previous" + (f"_{number}" if number > 1 else "") for number in count(1))
    aside = next(free for name in names if not os.path.lexists(free := folder / name))
    for events in earlier:
        aside.mkdir(exist_ok=True)
        os.replace(events, aside / events.name)
    if earlier:
        logger.warning("%s held event files of another run: they are in %s.", folder, aside)
