"""A flag that a message or an example tells the user to set must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openrlhf.config.roots import ROOTS
from openrlhf.config.schema import groups, settings, synonyms

ROOT = Path(__file__).parents[2]
DOTTED_FLAG = re.compile(r"--([a-z]+\.[a-z0-9_]+(?:\.[a-z0-9_]+)*)")


@pytest.mark.parametrize("folder", ["openrlhf", "examples", "docs"])
def test_every_dotted_flag_named_in_a_folder_exists(folder):
    files = [file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".sh", ".toml", ".md", ".sbatch")]
    named = {flag: file.name for file in files for flag in DOTTED_FLAG.findall(file.read_text())}
    known = {name for root in ROOTS for table in (settings, groups, synonyms) for name in table(root)}
    assert {flag: file for flag, file in named.items() if flag not in known} == {}
