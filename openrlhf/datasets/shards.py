"""Preparation on Ray: a range of blocks → a shard of samples on the disk, and beside it the counts of its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openrlhf.atomic_file import replace_file, replacing
from openrlhf.datasets.prepared import BLOCKS_A_SHARD, SampleBatch
from openrlhf.datasets.sample_writer import FinishedShard, SampleShardWriter, SampleWriter
from openrlhf.datasets.workers import BlockResult, Encode, EncodingTask
from openrlhf.parallel.ray_workers import check_is_here, on_ray

_Range = tuple[int, list[EncodingTask]]


def encode_on_ray(
    tasks: Iterator[EncodingTask],
    make_encode: Callable[[], Encode],
    folder: Path,
    schema: pa.Schema,
    count: Callable[[BlockResult], None],
) -> list[FinishedShard]:
    """Leaves a shard for each range of blocks in `folder`; those that are there are not made again.

    Args:
        make_encode: called once in each worker.
        folder: on a disk that all nodes share; of these rows and settings alone.
        count: told the results of all blocks, in their order.
    """
    folder.mkdir(exist_ok=True)
    finished: set[int] = set()
    shards: list[FinishedShard] = []

    def missing() -> Iterator[_Range]:
        for given in _ranges(tasks):
            if _facts_of(folder, given[0]).exists():
                finished.add(given[0])
            else:
                yield given

    def count_in_order() -> None:
        while len(shards) in finished:
            shard, results = _read_facts(folder, len(shards))
            shards.append(shard)
            for result in results:
                count(result)

    def make_work() -> Callable[[_Range], int]:
        encode = make_encode()
        return lambda given: _encode_range(encode, given, folder, schema)

    for _, number in on_ray(make_work, missing()):
        check_is_here(_facts_of(folder, number))
        finished.add(number)
        count_in_order()
    count_in_order()
    return shards


def take_over(folder: Path, shards: list[FinishedShard], writer: SampleWriter) -> None:
    """Moves the shards into the folder of prepared samples."""
    for number, shard in enumerate(shards):
        for result in _read_facts(folder, number)[1]:
            if result.samples is not None:
                writer.note(result.samples)
        writer.take_over(_shard_of(folder, number), shard)


def _ranges(tasks: Iterator[EncodingTask]) -> Iterator[_Range]:
    number = 0
    while given := list(islice(tasks, BLOCKS_A_SHARD)):
        yield number, given
        number += 1


def _encode_range(encode: Encode, given: _Range, folder: Path, schema: pa.Schema) -> int:
    """In a worker: the shard first, then its facts. Returns its number."""
    number, tasks = given
    facts = []
    with replacing(_shard_of(folder, number)) as temporary:
        shard = SampleShardWriter(temporary, schema)
        for result in map(encode, tasks):
            if result.samples is not None:
                shard.append(result.samples)
            facts.append(_as_json(result))
        finished = shard.close()
    replace_file(_facts_of(folder, number), json.dumps({"shard": finished, "results": facts}))
    return number


def _as_json(result: BlockResult) -> dict[str, Any]:
    if (samples := result.samples) is None:
        return vars(result)
    lengths = {"num_tokens": samples.num_tokens.tolist(), "num_targets": samples.num_targets.tolist()}
    return {**vars(result), "samples": {**vars(samples), "columns": None, **lengths}}


def _read_facts(folder: Path, number: int) -> tuple[FinishedShard, list[BlockResult]]:
    facts = json.loads(_facts_of(folder, number).read_text(encoding="utf-8"))
    return FinishedShard(*facts["shard"]), [_result(**told) for told in facts["results"]]


def _result(samples: dict[str, Any] | None, **told: Any) -> BlockResult:
    told |= {name: Counter(told[name]) for name in ("left_out", "remarks")}
    if samples is None:
        return BlockResult(**told)
    lengths = {name: np.array(samples[name], np.int32) for name in ("num_tokens", "num_targets")}
    return BlockResult(**told, samples=SampleBatch(**{**samples, **lengths}))


def _shard_of(folder: Path, number: int) -> Path:
    return folder / f"{number}.arrow"


def _facts_of(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"
