"""What the terminal shows: a bar; or, where output goes to a file, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


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
        self._print(f"step {step}/{self._num_steps}  {_numbers(record)}, {time_left} left")

    def log_eval(self, record: Mapping[str, float]) -> None:
        self._print(_eval_line(record))

    def close(self) -> None:
        self._stream.flush()

    def _seconds_left(self, step: float, now: float) -> float:
        seconds_a_step = (now - self._started_at) / max(step - self._first_step, 1)
        return seconds_a_step * (self._num_steps - step)

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def console_sink(num_steps: int, first_step: int = 0, stream: TextIO | None = None) -> BarSink | LineSink:
    """The sink that suits `stream` (standard error when not given): a bar in a terminal, lines elsewhere.

    `num_steps` is the whole run's; `first_step` is how many of them a resumed run has behind it.
    """
    stream = stream or sys.stderr
    sink = BarSink if stream.isatty() else LineSink
    return sink(num_steps, first_step, stream)


def _numbers(record: Mapping[str, float]) -> str:
    text = f"loss {record['loss']:.4f}, lr {record['lr']:.2e}, {record['tokens_per_second']:,.0f} tokens/s"
    return text + _if_there(record, "token_accuracy", ".4f") + _if_there(record, "aux_loss", ".4f")


def _eval_line(record: Mapping[str, float]) -> str:
    loss = f"evaluation after step {record['global_step']}: loss {record['eval_loss']:.4f}"
    accuracy = _if_there(record, "eval_token_accuracy", ".4f")
    num_targets = f" over {record['eval_num_target_tokens']:,} target tokens"
    return loss + _if_there(record, "eval_perplexity", ".3f") + accuracy + num_targets


def _if_there(record: Mapping[str, float], name: str, spec: str) -> str:
    return f", {name.removeprefix('eval_')} {record[name]:{spec}}" if name in record else ""
