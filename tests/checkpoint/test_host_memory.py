"""What a machine has left: the least of what kernel, control groups and ulimit say, pages of files counted as free."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf.checkpoint.host_memory import MemoryAsked, bytes_left, shortages

GIB = 2**30
NO_LIMIT_1 = 9223372036854771712


def machine(root: Path, available_gib: float, cgroup: str, files: dict[str, object]) -> Path:
    """A root with `proc` and `sys`, as much of them as is read."""
    content = {
        "proc/meminfo": f"MemTotal: 999999999 kB\nMemAvailable:   {int(available_gib * 2**20)} kB\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()},
    }
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group_2(folder: str, limit: object, used: int, of_files: int = 0) -> dict[str, object]:
    stat = f"anon 1\nactive_file {of_files // 2}\ninactive_file {of_files - of_files // 2}"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": used, f"{folder}/memory.stat": stat}


def group_1(folder: str, limit: int, used: int, of_files: int) -> dict[str, object]:
    stat = f"active_file 0\ntotal_active_file {of_files}\ntotal_inactive_file 0"
    names = ("limit_in_bytes", "usage_in_bytes", "stat")
    return {f"memory/{folder}/memory.{n}": v for n, v in zip(names, (limit, used, stat), strict=True)}


def test_without_a_limit_it_is_what_the_machine_has(tmp_path):
    root = machine(tmp_path, 5, "0::/job\n", group_2("job", "max", 3 * GIB))
    assert bytes_left(root) == 5 * GIB


def test_a_group_above_limits_those_below(tmp_path):
    files = group_2("slurm/job/step", "max", 2 * GIB) | group_2("slurm/job", 8 * GIB, 5 * GIB)
    assert bytes_left(machine(tmp_path, 50, "0::/slurm/job/step\n", files)) == 3 * GIB


def test_pages_of_files_are_not_held(tmp_path):
    root = machine(tmp_path, 50, "0::/job\n", group_2("job", 8 * GIB, 7 * GIB, of_files=4 * GIB))
    assert bytes_left(root) == 5 * GIB


def test_groups_of_the_first_version(tmp_path):
    files = group_1("job", 8 * GIB, 7 * GIB, of_files=3 * GIB) | group_1("", NO_LIMIT_1, 9 * GIB, of_files=0)
    assert bytes_left(machine(tmp_path, 50, "5:cpu:/job\n4:memory:/job\n0::/\n", files)) == 4 * GIB


def test_in_a_container_the_path_may_be_the_hosts(tmp_path):
    files = group_1("", 6 * GIB, 2 * GIB, of_files=0)
    assert bytes_left(machine(tmp_path, 50, "4:memory:/kubepods/pod17/9c1f\n", files)) == 4 * GIB


@pytest.mark.parametrize(("limit_bytes", "left_gib"), [("unlimited", 50), (8 * GIB, 10), (2 * GIB, 0)])
def test_the_address_space_of_a_process_limits_it(tmp_path, monkeypatch, limit_bytes, left_gib):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    root = machine(tmp_path, 50, "0::/job\n", {})
    limits = f"Max locked memory    1   1   bytes\nMax address space    {limit_bytes}   unlimited   bytes\n"
    (root / "proc/self/limits").write_text(limits)
    (root / "proc/self/status").write_text(f"VmPeak: 1 kB\nVmSize:\t {3 * 2**20} kB\n")
    assert bytes_left(root) == left_gib * GIB


def test_a_system_that_says_nothing(tmp_path):
    assert bytes_left(tmp_path) is None


def asked(host: str, gib: float, left_gib: float | None) -> MemoryAsked:
    return MemoryAsked(host, int(gib * GIB), None if left_gib is None else int(left_gib * GIB))


def test_the_ranks_of_a_machine_ask_together():
    assert shortages([asked("a", 3, 10)] * 3) == []
    (sentence,) = shortages([asked("a", 3, 10)] * 4 + [asked("b", 3, 10)] * 2)
    assert sentence == ("a has 10.00 GiB of memory left, and copies of the states of its 4 ranks would take 12.00 GiB")


def test_memory_that_is_held_already_is_not_asked_for():
    assert shortages([asked("a", 0, 0.1)] * 4) == []


@pytest.mark.parametrize("gib", [1, 10**6])
def test_where_the_system_says_nothing_nothing_is_short(gib):
    assert shortages([asked("a", gib, None)]) == []
