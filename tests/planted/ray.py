"""Bugs in what workers on Ray leave, and in ranks that share prompts."""

from __future__ import annotations

from tests.planted.bug import Bug

_RAY = "tests/rejection/test_ray.py"

BUGS = [
    Bug(
        "lost_range_forgotten",
        "what a killed node was at is never done",
        "parallel/ray_workers.py",
        "again.extend([] if given is None else [given])",
        "pass",
        (f"{_RAY}::test_scores_of_one_process_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "answers_in_the_order_they_came",
        "the bytes of a shard depend on who was faster",
        "rejection/generate.py",
        '        rows.sort(key=lambda row: order[row["prompt_id"], row["sample_index"]])\n',
        "",
        (f"{_RAY}::test_answers_of_one_worker_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "shards_of_a_dead_driver_made_again",
        "a driver that dies loses all shards",
        "datasets/shards.py",
        "if _facts_of(folder, given[0]).exists():",
        "if False:",
        (f"{_RAY}::test_a_driver_that_dies_loses_no_finished_shard",),
    ),
    Bug(
        "shards_counted_as_they_come",
        "lengths stand beside the samples of another shard",
        "datasets/prepared.py",
        "return shard, batch - (int(self._shard_ends[shard - 1]) if shard else 0)",
        "return shard, min(batch, int(self._shard_ends[0]) - 1)",
        (f"{_RAY}::test_prepared_data_of_one_process_and_of_two_nodes_with_one_killed",),
    ),
    Bug(
        "deadly_range_for_ever",
        "a range that kills its worker is tried for ever",
        "parallel/ray_workers.py",
        "            self._num_deaths += 1\n",
        "",
        (f"{_RAY}::test_a_range_that_kills_its_workers_ends_in_words",),
    ),
]
