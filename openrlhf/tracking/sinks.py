"""Sinks of a run's records: the terminal, TensorBoard, and Weights & Biases.

The terminal shows a bar; where output goes to a file, a line now and then. The other two have a chart `train/<name>` or
`eval/<name>` for each number, over optimizer steps.
"""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from openrlhf.config import WandbConfig
from openrlhf.errors import UserError
from openrlhf.tracking.metrics_file import ANSWERS_FILE

SECONDS_BETWEEN_LINES = 10.0
_ANSWERS_SHOWN = 3  # in the terminal
RUN_ID_FILE = "wandb_run_id.txt"
KEY_VARIABLE = "WANDB_API_KEY"
_ACCURACIES = ("token_accuracy", "accuracy", "rewards/accuracies")
_MARGINS = ("margin", "rewards/margins")


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

    def close(self) -> None:
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

    def close(self) -> None:
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
    def close(self) -> None:
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

    def __init__(self, folder: str, resume_step: int | None = None, openrlhf_names: bool = False):
        """Args:
            folder: where the event files go.
            openrlhf_names: of the charts, in place of our own.
            resume_step: optimizer step that the run goes on from; TensorBoard hides what was logged after it.

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
        self._writer = SummaryWriter(folder, purge_step=None if resume_step is None else resume_step + 1)

    def close(self) -> None:
        self._writer.close()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        for chart, number in numbers_by_chart.items():
            self._writer.add_scalar(chart, number, optimizer_step)
        self._writer.flush()

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for number, answer in enumerate(answers):
            text = f"    {prompt_text(answer['prompt'])}\n\n    {answer['response']}".replace("\n", "\n    ")
            self._writer.add_text(f"answers/{number}", text, answer["global_step"])


class WandbSink(Charts):
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps everything on this disk.

    The key comes from the environment's `WANDB_API_KEY`. A key among the settings is put there and nowhere else.
    W&B would copy the command line into its own files, so it is shown the command line without the key.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: WandbConfig,
        shown_config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        openrlhf_names: bool = False,
    ):
        """Args:
            folder: W&B's own files go to `<folder>/wandb`, the run's id to `<folder>/wandb_run_id.txt`.
            shown_config: what the run's page shows as its settings; without secrets.
            openrlhf_names: of the charts and their axes, in place of our own.
            resume: go on with the run whose id stands in the folder.

        Raises:
            UserError: W&B is not installed, or does not let the run start (no key, no network).
        """
        try:
            import wandb
        except ImportError as problem:
            raise UserError("--logger.wandb.enable needs the package wandb: pip install wandb") from problem
        if settings.key:
            os.environ[KEY_VARIABLE] = settings.key
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run_id_file = folder / RUN_ID_FILE
        with _key_hidden_from_command_line():
            try:
                self._run = wandb.init(
                    dir=folder,
                    project=settings.project,
                    name=settings.name,
                    group=settings.group,
                    entity=settings.org,
                    config=dict(shown_config or {}),
                    id=run_id_file.read_text(encoding="utf-8").strip() if resume and run_id_file.exists() else None,
                    resume="allow",
                )
            except wandb.Error as problem:
                raise UserError(
                    f"Weights & Biases did not start the run: {problem}. Set {KEY_VARIABLE} in the "
                    "environment, or WANDB_MODE=offline, or leave --logger.wandb.enable out."
                ) from None
        run_id_file.write_text(self._run.id, encoding="utf-8")
        self.openrlhf_names = openrlhf_names
        for group in ("train/", "eval/") if openrlhf_names else ("",):
            self._run.define_metric(f"{group}*", step_metric=f"{group}global_step")

    def close(self) -> None:
        self._run.finish()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        axis = {} if self.openrlhf_names else {"global_step": optimizer_step}
        self._run.log(axis | numbers_by_chart)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        columns: list[str | int] = ["global_step", "prompt", "response", "finish_reason", "reward"]
        rows = [
            [one["global_step"], prompt_text(one["prompt"]), *(one.get(str(name)) for name in columns[2:])]
            for one in answers
        ]
        self._run.log({"answers": wandb.Table(columns=columns, data=rows)})


@contextmanager
def _key_hidden_from_command_line() -> Iterator[None]:
    """The key of the environment is no word of `sys.argv`, nor a part of one, while this lasts."""
    whole, key = list(sys.argv), os.environ.get(KEY_VARIABLE)
    if key:
        sys.argv[:] = [word.replace(key, "[hidden]") for word in whole]
    try:
        yield
    finally:
        sys.argv[:] = whole
