"""Answers → the same rows with rewards. What is scored is never scored again; a failure is no verdict, never a 0."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openrlhf.config import ScoreConfig, ScoreSettings
from openrlhf.errors import UserError
from openrlhf.parallel.ray_workers import check_is_here, check_ray, on_ray, range_size
from openrlhf.rejection.candidates import identity_of, prompt_id_of, read_candidates
from openrlhf.rejection.records import (
    Identity,
    Place,
    Row,
    RowWriter,
    StoredRows,
    content_of,
    finish,
    is_finished,
    name_of_range,
    open_output,
    read_stats,
    settings_of,
    write_shard,
)  # fmt: skip
from openrlhf.rejection.report import REPORT, Page, charts_of, samples_of, told_passes, write_page
from openrlhf.rejection.rewards.find import close_all, find_rewards
from openrlhf.rejection.rewards.reward import Reward, RewardVerdict
from openrlhf.rejection.statistics import answer_statistics

_LEAST_ROWS_A_RANGE, _MOST_ROWS_A_RANGE = 16, 65536  # on Ray: what is worth a file; what a lost worker may cost
MOST_REASONS = 30  # told apart in the counts


def score(config: ScoreConfig) -> dict[str, Any]:
    """Appends rows to the folder `score.output` as they are judged; returns the content of its `stats.json`.

    Raises UserError where a reward cannot be had, the input has no answer or no label that a reward needs, the output
    is that of another run, a server is gone, or no answer has got a verdict.
    """
    if config.score.runner == "ray":
        check_ray("--score.runner")
    settings, rewards = config.score, find_rewards(config.score)
    output = Path(settings.output).expanduser()
    if is_finished(output):
        open_output(output, _identity(config, rewards), "--score.output")
        print(f"{output} is finished already", flush=True)
        return read_stats(output)
    try:
        if settings.runner == "local":
            _start(rewards)  # first: a mistake in a file of the user's is told at once
        return _score(config, rewards, output)
    finally:
        close_all(rewards)


def _start(rewards: Iterable[Reward]) -> None:
    for reward in rewards:
        reward.start()


def _identity(config: ScoreConfig, rewards: Iterable[Reward]) -> Identity:
    inputs = {"--score.input": content_of(Path(config.score.input).expanduser())}
    inputs |= {f"the reward {reward.name}": reward.content for reward in rewards if reward.content}
    return Identity("score", settings_of(config), inputs=inputs)


def _score(config: ScoreConfig, rewards: list[Reward], output: Path) -> dict[str, Any]:
    settings, source = config.score, StoredRows(Path(config.score.input).expanduser())
    identity = _identity(config, rewards)
    _check(source, rewards)
    open_output(output, identity, "--score.output")
    tally = _Tally([reward.name for reward in rewards])
    done = {tally.add(row) for row in StoredRows(output)}
    with tqdm(desc="scoring", unit="answer", total=(num_rows := source.num_lines())) as bar:
        bar.update(len(done))
        if settings.runner == "ray":
            least = max(_LEAST_ROWS_A_RANGE, _rows_a_batch(rewards))
            size = range_size(num_rows, least, _MOST_ROWS_A_RANGE)
            make_work = functools.partial(_judge_ranges, config, output)
            for _, (shard, num_judged) in on_ray(make_work, _ranges(source, done, size), takes_gpu=True):
                check_is_here(shard)
                bar.update(num_judged)
            tally = _Tally([reward.name for reward in rewards])
            for row in StoredRows(output):
                tally.add(row)
        else:
            with RowWriter(output, "0") as rows:
                missing = (one.row for one in _missing(source, done))
                for row in _judged(rewards, _weights(settings, rewards), missing, settings.workers):
                    rows.append(row)
                    tally.add(row)
                    bar.update()
    return _finish(settings, output, tally)


def _check(source: StoredRows, rewards: Iterable[Reward]) -> None:
    first = next(iter(source), None)
    if first is None:
        raise UserError(f"{source.path} holds no answer: give the folder that generate has written.")
    if not isinstance(first.get("response"), str) or "prompt" not in first:
        raise UserError(f"{source.path}: a row has no prompt and response: give the folder that generate has written.")
    for reward in rewards:
        if reward.needs_label and first.get("label") is None:
            raise UserError(
                f"--score.reward {reward.name} compares with a label, and the answers of {source.path} have none: name "
                "its column by --data.label_key where they are generated."
            )


class _Tally:
    """Counts of scored rows, kept while they come by."""

    def __init__(self, names: Sequence[str]):
        self._sums = dict.fromkeys(names, 0.0)
        self._counts = dict.fromkeys(names, 0)
        self.reasons: Counter[str] = Counter()
        self.num_scored = 0

    def add(self, row: Row) -> int:
        """Counts a row; gives what tells it from others."""
        if row["reward"] is None:
            self.reasons[": ".join(str(row["reason"]).split(": ")[:2])] += 1  # the reward's name, the kind of failure
        else:
            self.num_scored += 1
        for name, value in row["rewards"].items():
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1
        return identity_of(row)

    def means(self) -> dict[str, float | None]:
        return {name: self._sums[name] / count if count else None for name, count in self._counts.items()}

    def left_out(self) -> dict[str, int]:
        counts = dict(self.reasons.most_common(MOST_REASONS))
        rest = self.reasons.total() - sum(counts.values())
        return {**counts, "other reasons": rest} if rest else counts


class _Missing(NamedTuple):
    """A row that is to be scored, with its identity; the how manieth of its source it is, and where it stands."""

    row: Row
    number: int
    place: Place


def _missing(source: StoredRows, done: set[int]) -> Iterator[_Missing]:
    """The rows that are not scored; of rows that are one, the first."""
    times: Counter[str] = Counter()
    for number, (place, row) in enumerate(source.placed()):
        prompt_id = prompt_id_of(row)
        row = {**row, "prompt_id": prompt_id, "sample_index": row.get("sample_index", times[prompt_id])}
        times[prompt_id] += 1
        if (identity := identity_of(row)) not in done:
            done.add(identity)
            yield _Missing(row, number, place)


_Range = list[tuple[Place, tuple[str, int]]]  # where answers stand, and their identities: prompt and number


def _ranges(source: StoredRows, done: set[int], size: int) -> Iterator[_Range]:
    """What is missing of each range of rows; the ranges do not depend on what is missing."""
    for _, missing in itertools.groupby(_missing(source, done), lambda one: one.number // size):
        yield [(one.place, _key(one.row)) for one in missing]


def _key(row: Row) -> tuple[str, int]:
    return row["prompt_id"], row["sample_index"]


def _judge_ranges(config: ScoreConfig, output: Path) -> Callable[[_Range], tuple[Path, int]]:
    """In a worker: it starts its rewards once. A range leaves one shard, its rows in their order; and their number."""
    settings, rewards = config.score, find_rewards(config.score)
    _start(rewards)
    source = StoredRows(Path(settings.input).expanduser())

    def judge(given: _Range) -> tuple[Path, int]:
        places, keys = zip(*given, strict=True)
        rows = (
            {**row, "prompt_id": prompt_id, "sample_index": index}
            for row, (prompt_id, index) in zip(source.at(places), keys, strict=True)
        )
        judged = {_key(row): row for row in _judged(rewards, _weights(settings, rewards), rows, settings.workers or 1)}
        return write_shard(output, name_of_range(keys), map(judged.__getitem__, keys)), len(keys)

    return judge


def _weights(settings: ScoreSettings, rewards: Sequence[Reward]) -> list[float]:
    return [1.0] * len(rewards) if settings.weights is None else [float(word) for word in settings.weights.split(",")]


def _judged(rewards: list[Reward], weights: list[float], rows: Iterator[Row], workers: int | None) -> Iterator[Row]:
    """Scored rows, as threads have them ready; a few calls a thread are under way, whatever the number of rows."""
    num_threads = workers or os.cpu_count() or 1
    size = _rows_a_batch(rewards)
    with ThreadPoolExecutor(num_threads) as pool:
        pending: set[Future[list[Row]]] = set()
        try:
            while True:
                while len(pending) < 2 * num_threads and (batch := list(itertools.islice(rows, size))):
                    pending.add(pool.submit(_judge, rewards, weights, batch))
                if not pending:
                    return
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield from future.result()
        except BaseException:
            close_all(rewards)  # else the pool would wait for calls that may never end
            pool.shutdown(cancel_futures=True)
            raise


def _rows_a_batch(rewards: Sequence[Reward]) -> int:
    return max(reward.rows_a_call for reward in rewards)


def _judge(rewards: Sequence[Reward], weights: Sequence[float], rows: list[Row]) -> list[Row]:
    by_reward = [
        [
            verdict
            for start in range(0, len(rows), reward.rows_a_call)
            for verdict in reward.judge(rows[start : start + reward.rows_a_call])
        ]
        for reward in rewards
    ]
    names = [reward.name for reward in rewards]
    return [_scored(row, names, weights, verdicts) for row, *verdicts in zip(rows, *by_reward, strict=True)]


def _scored(row: Row, names: Sequence[str], weights: Sequence[float], verdicts: Sequence[RewardVerdict]) -> Row:
    """The weighted sum of the verdicts. A reward that has failed leaves no sum; one that gives None is not counted."""
    values = [weight * one.value for weight, one in zip(weights, verdicts, strict=True) if one.value is not None]
    total = sum(values) if values and not any(one.has_failed for one in verdicts) else None
    told = [(f"{name}: {one.reason}", one) for name, one in zip(names, verdicts, strict=True) if one.value is None]
    reasons = [reason for reason, one in told if one.has_failed] or [reason for reason, _ in told]
    return {
        **row,
        "reward": total,
        "rewards": {name: one.value for name, one in zip(names, verdicts, strict=True)},
        "reason": None if total is not None else "; ".join(reasons),
    }


def _finish(settings: ScoreSettings, output: Path, tally: _Tally) -> dict[str, Any]:
    left_out = tally.left_out()
    counts = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.items())
    if not tally.num_scored:
        raise UserError(
            f"No answer of {settings.input} has a reward: {counts}. The column reason of the rows in {output} says why."
        )
    source = StoredRows(output)
    candidates = read_candidates(source)
    judged, passed = ~np.isnan(candidates.reward), candidates.reward >= settings.pass_reward
    stats = {
        **answer_statistics(candidates, settings.pass_reward, judged),
        "num_scored": int(judged.sum()),
        "left_out": left_out,
        "mean_rewards": tally.means(),
    }
    kinds = {"passed": passed, "not passed": judged & ~passed, "no verdict": ~judged}
    page = Page(
        f"Scored by {settings.reward}",
        f"{settings.output} of {settings.input}",
        list(_told(stats)),
        charts_of(candidates, stats, kinds),
        samples_of(source, candidates, _remark, passed),
    )
    try:
        write_page(output / REPORT, page)
        finish(output, stats)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror}. All scores are kept: make room, and start the same command "
            "again."
        ) from error
    for name, value in _told(stats):
        print(f"{name:<36} {value}")
    print(f"wrote {output}", flush=True)
    return stats


def _remark(number: int, row: Row) -> str:
    if row["reward"] is None:
        return f"no verdict: {row['reason']}"
    several = ", ".join(f"{name} {value}" for name, value in row["rewards"].items() if len(row["rewards"]) > 1)
    return f"reward {row['reward']:g}" + (f" ({several})" if several else "")


def _told(stats: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "answers",
        f"{stats['num_scored']:,} scored of {stats['num_responses']:,}, to {stats['num_prompts']:,} prompts",
    )
    for reason, count in stats["left_out"].items():
        yield f"no verdict: {reason}", f"{count:,}"
    yield f"passes (reward {stats['pass_reward']:g} or more)", told_passes(stats)
    yield "mean reward", f"{stats['mean_reward']:.4g}"
    for name, mean in stats["mean_rewards"].items() if len(stats["mean_rewards"]) > 1 else ():
        yield f"mean of {name}", "none" if mean is None else f"{mean:.4g}"
    kept = stats["lengths"]["kept"]
    yield "length", f"mean {kept['mean']:.1f}, median {kept['median']:.0f} {stats['length_unit']}"
