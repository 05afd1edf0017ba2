"""Bad days and hostile input: each case says what is done, what the user must see, and what must be on the disk after.

    python -m tests.hostile                     every case; writes benchmarks/results/hostile.md
    python -m tests.hostile --group ownership   one group of them, with what each has said where it failed
    python -m tests.hostile --name "NaN"        those whose name holds the words
    python -m pytest tests/hostile              the cases marked `in_suite`, in the test command

- `case.py`: a case, what came of it, and what is wrong with that.
- `workspace.py`: a folder with a tiny model and rows, in which commands are run (forked, as in `tests/faults/jobs.py`).
- `groups/`: the cases, by topic; each file has `CASES`.
- `table.py`: the table.

In every case, whatever else it asks for: no traceback, and an end within 30 seconds.
"""
