"""Answers → the same rows with rewards. What is scored is never scored again; a failure is no verdict, never a 0."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from openrlhf.config import ScoreConfig, ScoreSettings
from openrlhf.config.disk import local_path, without_secrets
from openrlhf.datasets.formats.chat import is_message_list
from openrlhf.errors import UserError
from openrlhf.exit_codes import SECONDS_BETWEEN_SIGNALS
from openrlhf.parallel.ray_workers import check_is_here, check_ray, on_ray, range_size
from openrlhf.rejection.candidates import PromptIds, judged_identity_of, prompt_id_of, read_candidates
from openrlhf.rejection.full_disk import keeps_on_a_full_disk
from openrlhf.rejection.range_shards import name_of_range, write_shard
from openrlhf.rejection.records import (
    Identity,
    Place,
    Row,
    RowWriter,
    StoredRows,
    content_of,
    finish,
    is_finished,
    open_output,
    read_stats,
    settings_of,
)  # fmt: skip
from openrlhf.rejection.report import REPORT, Page, charts_of, samples_of, told_passes, write_page
from openrlhf.rejection.rewards.find import check_label, close_all, find_rewards, start_all
from openrlhf.rejection.rewards.model_reward import ModelReward
from openrlhf.rejection.rewards.reward import BEYOND, Reward, RewardVerdict, is_reward
from openrlhf.rejection.statistics import answer_statistics

_LEAST_ROWS_A_RANGE, _MOST_ROWS_A_RANGE = 16, 65536  # on Ray: what is worth a file; what a lost worker may cost
_LEAST_ROWS_OF_A_MODEL = 64  # in a call, where a function beside it takes fewer: else its packs would be nearly empty
_STEPPED_OVER = {"num_repeated": "rows that repeat others", "num_torn_lines": "lines that are no rows"}
MOST_REASONS = 30  # told apart in the counts


@keeps_on_a_full_disk
def score(config: ScoreConfig) -> dict[str, Any]:
    """Appends rows to the folder `score.output` as they are judged; returns the content of its `stats.json`.

    Raises UserError where a reward cannot be had, the input has no answer or no label that a reward needs, the output
    is that of another run, a server is gone, the disk is full, or no answer has got a verdict.
    """
    if config.score.runner == "ray":
        check_ray("--score.runner")
    rewards, output = find_rewards(config.score), local_path(config.score.output)
    if is_finished(output):
        open_output(output, _identity(config, rewards), "--score.output")
        print(f"{output} is finished already", flush=True)
        stats, pass_reward = read_stats(output), config.score.pass_reward
        names = [reward.name for reward in rewards]
        over = {name: stats.get(name, 0) for name in _STEPPED_OVER}
        return stats if stats["pass_reward"] == pass_reward else _finish(config.score, output, names, over)
    try:
        if config.score.runner == "local":
            start_all(rewards)  # first: a mistake in a file of the user's is told at once
        return _score(config, rewards, output)
    finally:
        close_all(rewards)


def _identity(config: ScoreConfig, rewards: Iterable[Reward]) -> Identity:
    inputs = {"--score.input": content_of(local_path(config.score.input))}
    inputs |= {f"the reward {reward.name}": reward.content for reward in rewards if reward.content}
    return Identity("score", settings_of(config), inputs=inputs)


def _score(config: ScoreConfig, rewards: list[Reward], output: Path) -> dict[str, Any]:
    settings, source = config.score, StoredRows(local_path(config.score.input))
    identity = _identity(config, rewards)
    _check(source, rewards)
    open_output(output, identity, "--score.output")
    _go_on(rewards, output)
    with RowWriter(output, "0") as rows, tqdm(desc="scoring", unit="answer", total=source.num_lines()) as bar:
        done = {judged_identity_of(row) for row in StoredRows(output)}  # read now that no other process adds to it
        bar.update(len(done))
        if settings.runner == "ray":
            least = max(_LEAST_ROWS_A_RANGE, _rows_a_batch(rewards))
            size = range_size(bar.total, least, _MOST_ROWS_A_RANGE)
            make_work = functools.partial(_judge_ranges, config, output)
            for _, (shard, num_judged) in on_ray(make_work, _ranges(source, done, size), takes_gpu=_need_gpu(rewards)):
                check_is_here(shard)
                bar.update(num_judged)
        else:
            missing = (row for _, _, row in _missing(source, done))
            for row in _judged(rewards, _weights(settings, rewards), missing, settings.workers):
                rows.append(row)
                bar.update()
    over = {"num_repeated": source.num_rows - len(done), "num_torn_lines": source.num_torn}
    return _finish(settings, output, [reward.name for reward in rewards], over)


def _go_on(rewards: Iterable[Reward], output: Path) -> None:
    for reward in rewards:
        reward.goes_on_in(output)


def _need_gpu(rewards: Sequence[Reward]) -> bool:
    return any(isinstance(reward, ModelReward) for reward in rewards)


def _check(source: StoredRows, rewards: list[Reward]) -> None:
    first = next(iter(source), None)
    if first is None:
        raise UserError(f"{source.path} holds no answer: give the folder that generate has written.")
    _check_row(first, 1, source)
    check_label(rewards, first.get("label"), source.path)


def _check_row(row: Row, number: int, source: StoredRows) -> None:
    prompt = row.get("prompt")
    if not isinstance(row.get("response"), str) or not (isinstance(prompt, str) or is_message_list(prompt)):
        raise UserError(
            f"{source.path}: answer {number:,} has no prompt and response: give the folder that generate has written."
        )


def _missing(source: StoredRows, done: set[int]) -> Iterator[tuple[int, Place, Row]]:
    """The rows that are not scored, by number, with their places and identities; of rows that are one, the first."""
    times: Counter[str] = Counter()
    prompts = PromptIds(source)
    for number, (place, row) in enumerate(source.placed()):
        _check_row(row, number + 1, source)
        prompts.number_of(row)
        prompt_id = prompt_id_of(row)
        row = {**row, "prompt_id": prompt_id, "sample_index": row.get("sample_index", times[prompt_id])}
        times[prompt_id] += 1
        if (identity := judged_identity_of(row)) not in done:
            done.add(identity)
            yield number, place, row


_Key = tuple[str, int, int]  # of an answer: prompt, number, identity
_Range = list[tuple[Place, _Key]]  # where answers stand


def _ranges(source: StoredRows, done: set[int], size: int) -> Iterator[_Range]:
    """What is missing of each range of rows; the ranges do not depend on what is missing."""
    for _, missing in itertools.groupby(_missing(source, done), lambda one: one[0] // size):
        yield [(place, _key(row)) for _, place, row in missing]


def _key(row: Row) -> _Key:
    return row["prompt_id"], row["sample_index"], judged_identity_of(row)


def _judge_ranges(config: ScoreConfig, output: Path) -> Callable[[_Range], tuple[Path, int]]:
    """In a worker: it starts its rewards once. A range leaves one shard, its rows in their order; and their number."""
    settings, rewards = config.score, find_rewards(config.score)
    start_all(rewards)
    _go_on(rewards, output)
    source = StoredRows(local_path(settings.input))

    def judge(given: _Range) -> tuple[Path, int]:
        places, keys = zip(*given, strict=True)
        rows = (
            {**row, "prompt_id": prompt_id, "sample_index": index}
            for row, (prompt_id, index, _) in zip(source.at(places), keys, strict=True)
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
                ready, pending = wait(pending, SECONDS_BETWEEN_SIGNALS, FIRST_COMPLETED)
                for future in ready:
                    yield from future.result()
        except BaseException:
            close_all(rewards)  # else the pool would wait for calls that may never end
            pool.shutdown(cancel_futures=True)
            raise


def _rows_a_batch(rewards: Sequence[Reward]) -> int:
    """As few as a call of any reward takes, so that slow functions spread over threads, and a kill costs little."""
    least = min(reward.rows_a_call for reward in rewards)
    return max(least, _LEAST_ROWS_OF_A_MODEL) if _need_gpu(rewards) else least


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
    """The weighted sum of the verdicts, where it is a reward too.

    A reward that has failed leaves no sum; one that gives None is not counted.
    """
    values = [weight * one.value for weight, one in zip(weights, verdicts, strict=True) if one.value is not None]
    total = sum(values) if values and not any(one.has_failed for one in verdicts) else None
    told = [(f"{name}: {one.reason}", one) for name, one in zip(names, verdicts, strict=True) if one.value is None]
    reasons = [reason for reason, one in told if one.has_failed] or [reason for reason, _ in told]
    if total is not None and not is_reward(total):
        total, reasons = None, [f"the weighted sum: it is {BEYOND}"]
    return {
        **row,
        "reward": total,
        "rewards": {name: one.value for name, one in zip(names, verdicts, strict=True)},
        "reason": None if total is not None else "; ".join(reasons),
    }


def _finish(settings: ScoreSettings, output: Path, names: Sequence[str], over: dict[str, int]) -> dict[str, Any]:
    """Args: over: counts by `_STEPPED_OVER`."""
    source = StoredRows(output)
    candidates, (left_out, mean_rewards) = read_candidates(source), _verdicts(source, names)
    if not len(candidates):
        raise UserError(f"The rows in {output} were removed while score was at work: start the same command again.")
    judged, passed = ~np.isnan(candidates.reward), candidates.reward >= settings.pass_reward
    if not judged.any():
        counts = ", ".join(f"{reason} ({count:,})" for reason, count in left_out.items())
        raise UserError(
            f"No answer of {settings.input} has a reward: {counts}. The column reason of the rows in {output} says "
            f"why. What has failed is not judged again: once that is mended, remove {output}, and start again."
        )
    stats = {
        **answer_statistics(candidates, settings.pass_reward, judged),
        "num_scored": int(judged.sum()),
        "left_out": left_out,
        **over,
        "mean_rewards": mean_rewards,
    }
    kinds = {"passed": passed, "not passed": judged & ~passed, "no verdict": ~judged}
    page = Page(
        f"Scored by {without_secrets(settings.reward)}",
        f"{settings.output} of {settings.input}",
        list(_told(stats)),
        charts_of(candidates, stats, kinds),
        samples_of(source, candidates, _remark, passed),
    )
    write_page(output / REPORT, page)
    finish(output, stats)
    for name, value in _told(stats):
        print(f"{name:<36} {value}")
    print(f"wrote {output}", flush=True)
    return stats


def _verdicts(rows: Iterable[Row], names: Sequence[str]) -> tuple[dict[str, int], dict[str, float | None]]:
    """Counts by the reasons of missing rewards, and the mean of each reward."""
    reasons: Counter[str] = Counter()
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for row in rows:
        if row["reward"] is None:
            reasons[": ".join(str(row["reason"]).split(": ")[:2])] += 1  # the reward's name, the kind of failure
        for name, value in row["rewards"].items():
            if value is not None:
                sums[name] += value
                counts[name] += 1
    left_out = dict(reasons.most_common(MOST_REASONS))
    if rest := reasons.total() - sum(left_out.values()):
        left_out["other reasons"] = rest
    return left_out, {name: sums[name] / count if count else None for name, count in counts.items()}


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
    for name, words in _STEPPED_OVER.items():
        if stats[name]:
            yield f"{words}, left out", f"{stats[name]:,}"
    yield f"passes (reward {stats['pass_reward']:g} or more)", told_passes(stats)
    yield "mean reward", f"{stats['mean_reward']:.4g}"
    for name, mean in stats["mean_rewards"].items() if len(stats["mean_rewards"]) > 1 else ():
        yield f"mean of {name}", "none" if mean is None else f"{mean:.4g}"
    kept = stats["lengths"]["kept"]
    yield "length", f"mean {kept['mean']:.1f}, median {kept['median']:.0f} {stats['length_unit']}"
