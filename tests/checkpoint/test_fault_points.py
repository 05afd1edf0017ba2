"""The list of fault points, from which the tests of kills and full disks are made, is whole."""

import re
from pathlib import Path

import openrlhf
from tests.helpers.fault_points import EXPORT_POINTS, SAVE_POINTS


def test_every_fault_point_of_the_package_is_listed():
    sources = [path.read_text(encoding="utf-8") for path in Path(openrlhf.__path__[0]).rglob("*.py")]
    passed = {name for text in sources for name in re.findall(r"fault_point(?:\(|, )\"([\w.]+)\"", text)}
    assert passed == {*SAVE_POINTS, *EXPORT_POINTS}
