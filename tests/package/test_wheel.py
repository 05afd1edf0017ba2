"""The wheel works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from openrlhf.versions import TRIED
from tests.helpers.workbench import save_model, save_rows

ROOT = Path(__file__).resolve().parents[2]
_NOT_PACKED = ("__pycache__", "*.pyc")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that the wheel is unpacked in, as pip would."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "openrlhf", source / "openrlhf", ignore=shutil.ignore_patterns(*_NOT_PACKED))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", source, source]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(site):
    return HeaderParser().parsestr(next(site.glob("*.dist-info/METADATA")).read_text())


def run(site: Path, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`openrlhf WORDS` with the unpacked wheel, in a folder that knows nothing of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HOME": str(where / "cache")}
    command = [sys.executable, "-m", "openrlhf.cli.main", *words]
    return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=300)


def test_it_holds_every_file_of_the_package(site):
    in_checkout = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "openrlhf").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert in_checkout == {str(file.relative_to(site)) for file in (site / "openrlhf").rglob("*") if file.is_file()}


def test_it_writes_the_page_of_the_data(site, tmp_path):
    model = save_model(tmp_path / "model")
    rows = save_rows(tmp_path / "rows.jsonl", 8)
    flags = ["--model.model_name_or_path", model, "--data.dataset", rows, "--html", "page.html"]
    names = ["--data.input_key", "question", "--data.output_key", "answer"]
    done = run(site, tmp_path, "inspect-data", *map(str, flags), *names)
    assert done.returncode == 0, done.stderr
    assert "<html" in (tmp_path / "page.html").read_text()


def test_its_command_is_openrlhf(site):
    assert "openrlhf = openrlhf.cli.main:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


def test_it_asks_for_no_less_than_what_was_tried(metadata):
    asked = {one.name: one for one in map(Requirement, metadata.get_all("Requires-Dist")) if not one.extras}
    for package, (oldest, newest) in TRIED.items():
        (bound,) = [one for one in asked[package].specifier if one.operator == ">="]
        assert Version(bound.version) == Version(oldest), package
        assert newest in asked[package].specifier, package


def test_the_proven_set_is_among_what_was_tried():
    pinned = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalpha()]
    for one in pinned:
        if one.name in TRIED and (version := next((s.version for s in one.specifier if s.operator == "=="), None)):
            oldest, newest = map(Version, TRIED[one.name])
            assert oldest <= Version(version) <= newest, one.name
