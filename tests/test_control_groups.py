"""The cores that a container or a scheduler leaves to this process, by the quotas of its control groups."""

from __future__ import annotations

import pytest

from openrlhf.control_groups import cores_allowed

V1_QUOTA, V1_PERIOD = "cpu/pod/cpu.cfs_quota_us", "cpu/pod/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "800000 100000"}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "150000 100000"}, 1.5),
        ("0::/../pod\n", {"cpu.max": "300000 100000"}, 3),  # the host's path
        ("4:cpu,cpuacct:/pod\n5:memory:/pod\n", {V1_QUOTA: "400000", V1_PERIOD: "100000"}, 4),
        ("4:cpu,cpuacct:/pod\n", {V1_QUOTA: "-1", V1_PERIOD: "100000"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_least_quota_counts(tmp_path, cgroup, files, cores):
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores_allowed(tmp_path) == cores


def test_a_system_without_groups_limits_nothing(tmp_path):
    assert cores_allowed(tmp_path) is None
