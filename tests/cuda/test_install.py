"""What can be installed: each extra, and the image's choice of extras."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cuda.findings import NotShownHere, why_not_installed

ROOT = Path(__file__).parents[2]
EXTRAS = ("flash", "ring", "liger", "serve", "math", "ray", "verifiers", "mlflow", "trackio", "comet", "qlora", "dev")


@pytest.mark.slow
def test_each_extra_can_be_installed(tmp_path):
    """All in one call, which takes seconds: pip names what it cannot install."""
    assert set(EXTRAS) == set(re.findall(r"^(\w+) = \[", _section("project.optional-dependencies"), re.MULTILINE))
    try:
        assert not (problem := why_not_installed(ROOT, tmp_path, ",".join(EXTRAS))), problem
    except NotShownHere as reason:
        pytest.skip(str(reason))


def _section(name: str) -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8").split(f"[{name}]")[1].split("\n[")[0]


@pytest.mark.parametrize(
    ("extras", "expected"),
    [
        ("", ["install --constraint requirements.txt ."]),
        ("liger", ["install --constraint requirements.txt .[liger]"]),
        ("flash", ["install --constraint requirements.txt .[flash]", "install --no-build-isolation flash-attn>=2.8"]),
        (
            "liger,ring",
            [
                "install --constraint requirements.txt .[liger,ring]",
                "install --no-build-isolation flash-attn>=2.8",
                "install --no-build-isolation ring-flash-attn>=0.1.8",
            ],
        ),
    ],
)
def test_the_image_builds_flash_attn_against_its_own_torch(tmp_path, extras, expected):
    """The Dockerfile's last lines, run by a shell that finds a pip which notes what it is told."""
    calls, pip = tmp_path / "calls", tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n', encoding="utf-8")
    pip.chmod(0o755)
    lines = (ROOT / "dockerfile" / "Dockerfile").read_text(encoding="utf-8").split('ARG EXTRAS=""')[1].splitlines()
    script = "; ".join(line.removeprefix("RUN ") for line in lines if line.startswith("RUN "))
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", script], env={**os.environ, "PATH": path, "EXTRAS": extras}, check=True)
    assert calls.read_text(encoding="utf-8").splitlines() == expected
