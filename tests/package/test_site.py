"""The pages of docs/ build as a site."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    paths = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [path for path in paths if not (page.parent / path).exists()] == []
