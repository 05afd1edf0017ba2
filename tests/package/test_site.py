"""The pages of docs/ build as a site."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_it_builds_without_a_warning(tmp_path):
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = {file.stem for file in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= shown


def test_its_menu_names_every_page():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = {page if isinstance(page, str) else next(iter(page.values())) for page in menu}
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}
