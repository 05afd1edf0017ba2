"""Ray: a real cluster of two nodes, one of them killed in the middle, leaves the bytes that one process leaves."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openrlhf.config import DataConfig, ScoreConfig, parse_config
from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset
from openrlhf.datasets.sources import readers
from openrlhf.errors import UserError
from openrlhf.parallel.ray_workers import check_is_here, on_ray
from openrlhf.rejection.generate import generate
from openrlhf.rejection.score import score
from tests.datasets.conftest import pairs, write_jsonl
from tests.helpers.tokenizers import tiny_tokenizer
from tests.rejection.stand_in import generate_config
from tests.rejection.test_openai_engine import FakeServer, running

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402  not there without ray

ROWS = [{"prompt": f"question {number}" if number else "", "label": str(number)} for number in range(200)]
SLOW_REWARD = """
import time
def shortness(completions, **columns):
    time.sleep(0.02)
    return [-float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with one processor; nodes that are killed come beside it."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2, "health_check_initial_delay_ms": 0}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    one = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=one.address, logging_level="ERROR", log_to_driver=False)
    yield one
    ray.shutdown()
    one.shutdown()


@pytest.fixture(autouse=True)
def _works_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def second_node(cluster: Cluster, is_due: Callable[[], bool]) -> Iterator[None]:
    """A node that is killed, without a farewell, once it is due; the block must then go on for a while."""
    node = cluster.add_node(num_cpus=1)
    killed = threading.Event()

    def kill() -> None:
        while not is_due() and not over.is_set():
            time.sleep(0.01)
        if not over.is_set():
            cluster.remove_node(node, allow_graceful=False)
            killed.set()

    over, killer = threading.Event(), threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()
    assert killed.is_set(), "all was done before the node could be killed"


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the page, which names its folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".html"}


def lines_of(folder: Path, kind: str) -> list[bytes]:
    return sorted(line for path in folder.glob(f"{kind}-*.jsonl") for line in path.read_bytes().splitlines())


def some_shards(folder: Path, pattern: str = "rows-*.jsonl") -> Callable[[], bool]:
    return lambda: len(list(folder.glob(pattern))) >= 2


def answers(tmp_path: Path, url: str, output: str, *flags: str) -> Path:
    """Relative paths are those of the driver."""
    engine = ("--generate.engine", "openai", "--generate.url", url, "--generate.n", "2", "--generate.concurrency", "8")
    config = generate_config(tmp_path, ROWS, *engine, "--generate.output", output, *flags, model="m")
    generate(config)
    return tmp_path / output


@pytest.mark.slow
def test_answers_of_one_worker_and_of_two_nodes_with_one_killed(tmp_path: Path, cluster: Cluster) -> None:
    with running(FakeServer()) as server:
        alone = answers(tmp_path, server.url, "alone")
        one_worker = answers(tmp_path, server.url, "one", "--generate.runner", "ray")
        server.trouble = lambda number, body: time.sleep(0.03) or "fine"
        with second_node(cluster, some_shards(tmp_path / "two")):
            two_nodes = answers(tmp_path, server.url, "two", "--generate.runner", "ray")
    assert sum(path.stat().st_size > 0 for path in two_nodes.glob("rows-*.jsonl")) == 13
    assert files_of(two_nodes) == files_of(one_worker)
    assert not list(two_nodes.glob(".*"))
    for kind in ("rows", "left_out"):
        assert lines_of(two_nodes, kind) == lines_of(alone, kind)
    assert json.loads((two_nodes / "stats.json").read_text())["left_out"] == {"the prompt is empty": 1}


def test_workers_ask_for_what_another_engine_has_left(tmp_path: Path, cluster: Cluster) -> None:
    with running(FakeServer()) as server:
        server.trouble = lambda number, body: "fine" if number <= 150 else (401, {"message": "enough"})
        with pytest.raises(UserError):
            answers(tmp_path, server.url, "out", "--generate.max_retries", "0")
        kept = set(lines_of(tmp_path / "out", "rows"))
        server.trouble, num_before = (lambda number, body: "fine"), len(server.asked)
        whole = lines_of(answers(tmp_path, server.url, "out", "--generate.runner", "ray"), "rows")
        num_asked = len(server.asked) - num_before
    assert kept < set(whole)
    assert num_asked == len(whole) - len(kept)
    assert len(whole) == len({(row["prompt_id"], row["sample_index"]) for row in map(json.loads, whole)}) == 2 * 199


def scores(tmp_path: Path, generations: Path, output: str, *flags: str) -> Path:
    given = ["--score.input", str(generations), "--score.output", output, *flags]
    score(parse_config(ScoreConfig, [*given, "--score.reward", "rewards.py:shortness"]))
    return tmp_path / output


def test_scores_of_one_process_and_of_two_nodes_with_one_killed(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "rewards.py").write_text(SLOW_REWARD)
    with running(FakeServer()) as server:
        generations = answers(tmp_path, server.url, "generations")
    alone = scores(tmp_path, generations, "alone")
    with second_node(cluster, some_shards(tmp_path / "two")):
        two_nodes = scores(tmp_path, generations, "two", "--score.runner", "ray")
    assert lines_of(two_nodes, "rows") == lines_of(alone, "rows")
    assert len(lines_of(alone, "rows")) == 2 * 199
    assert (two_nodes / "stats.json").read_bytes() == (alone / "stats.json").read_bytes()


def prepared(tmp_path: Path, cache: str, runner: str = "local") -> SFTDataset:
    """Two files, each with a row that is not trained."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    if not files[0].exists():
        for number, file in enumerate(files):
            write_jsonl(
                file, [{"prompt": "?", "completion": "!", "weight": 0}, *pairs(9000 + 2000 * number, start=number)]
            )
    data = DataConfig(dataset=",".join(map(str, files)), cache_dir=str(tmp_path / cache), num_processors=2)
    return prepare_sft_dataset(data, tiny_tokenizer(), runner=runner)  # type: ignore[arg-type]


@pytest.mark.slow
def test_prepared_data_of_one_process_and_of_two_nodes_with_one_killed(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROWS", 8)
    alone = prepared(tmp_path, "alone")
    with second_node(cluster, some_shards(tmp_path / "two", "*.shards/*.json")):
        two_nodes = prepared(tmp_path, "two", "ray")
    assert len(list(two_nodes.samples.folder.glob("samples*.arrow"))) == 10
    assert files_of(two_nodes.samples.folder) == files_of(alone.samples.folder)
    assert len(two_nodes) == 20_000
    assert [two_nodes.samples.origin(place) for place in (0, 8999, 9000, 19_999)] == [
        (0, 2),
        (0, 9001),
        (1, 2),
        (1, 11001),
    ]
    assert not list((tmp_path / "two").glob("*.shards"))
    again = prepared(tmp_path, "two")  # what train_sft does: it finds them
    assert again.samples.folder == two_nodes.samples.folder
    assert [tensor.tolist() for tensor in again[12_345]] == [tensor.tolist() for tensor in alone[12_345]]


def test_a_driver_that_dies_loses_no_finished_shard(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_ROWS", 8)
    from openrlhf.datasets import shards

    def dies(*_: object) -> Iterator[tuple[int, int]]:
        found = on_ray(*_)  # type: ignore[arg-type]
        yield from (next(found) for _ in range(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "on_ray", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, "cache", "ray")
    monkeypatch.setattr(shards, "on_ray", on_ray)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.shards/*.arrow")}
    assert len(finished) >= 3
    samples = prepared(tmp_path, "cache", "ray").samples
    made = {path.stat().st_mtime_ns for path in samples.folder.glob("samples*.arrow")}
    assert made.issuperset(finished.values())
    assert files_of(samples.folder) == files_of(prepared(tmp_path, "alone").samples.folder)


def test_what_a_worker_cannot_do_is_told_as_in_one_process(tmp_path: Path, cluster: Cluster) -> None:
    def make_work() -> Callable[[int], int]:
        return lambda number: 10 // number

    with pytest.raises(ZeroDivisionError):
        list(on_ray(make_work, [1, 2, 0]))

    def refuse() -> Callable[[int], int]:
        raise UserError("the model is not there")

    with pytest.raises(UserError, match="the model is not there"):
        list(on_ray(refuse, [1]))


def test_a_range_that_kills_its_workers_ends_in_words(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf.parallel.ray_workers._DEATHS_A_WORKER", 1)

    def make_work() -> Callable[[int], int]:
        return lambda number: os._exit(1) if number == 2 else number

    with pytest.raises(UserError, match="die again and again"):
        list(on_ray(make_work, [1, 2, 3]))


def test_a_disk_that_is_not_shared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf.parallel.ray_workers._SECONDS_TO_SHOW_UP", 0.0)
    with pytest.raises(UserError, match="all nodes must share the disk"):
        check_is_here(tmp_path / "rows-0.jsonl")
