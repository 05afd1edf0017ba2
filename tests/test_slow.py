"""The table of the slow tests says what became of each."""

from xml.etree import ElementTree

from tests.slow import table

REPORT = """<testsuites><testsuite>
<testcase classname="tests.faults.test_launchers" name="test_killed[deepspeed]" time="119.4"/>
<testcase classname="tests.faults.test_broken_runs" name="test_kills" time="3"><failure message="1|2"/></testcase>
<testcase classname="tests.cuda.test_install" name="test_extras" time="0.1"><skipped message="no network"/></testcase>
</testsuite></testsuites>"""


def test_the_table_says_what_became_of_each_test():
    lines = table(ElementTree.ElementTree(ElementTree.fromstring(REPORT))).splitlines()
    assert lines[2].endswith(": 1 of 3 passed.")
    assert lines[6:] == [
        "| `tests/cuda/test_install.py::test_extras` | skipped: no network | 0 |",
        "| `tests/faults/test_broken_runs.py::test_kills` | failure: 1\\|2 | 3 |",
        "| `tests/faults/test_launchers.py::test_killed[deepspeed]` | passed | 119 |",
    ]
