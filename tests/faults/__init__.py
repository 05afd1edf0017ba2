"""Breaking runs on purpose, and holding what is left to what an unbroken run leaves.

    python -m pytest tests/faults          the short form, in the test command
    FAULTS=1000 python -m tests.faults     the long form: about that many faults; prints a table and writes it to
                                           benchmarks/results/faults.json and faults.md
    FAULTS=200 python -m tests.faults pairs   the same of train_rm and train_dpo; faults_of_pairs.json and .md
    SEED=7 RUNS_AT_A_TIME=2 ...            other random instants; two runs side by side

- `jobs.py`: launching cheaply (ranks forked from a process that has imported everything).
- `breaks.py`: the ways to break a launch: kills, signals, full disks, damaged files.
- `broken_run.py`: one run, broken again and again until it is complete, then compared with the unbroken one.
- `table.py`: what was done and what came, counted.
- `test_*.py`: the short form, and single faults looked at closely: a hanging rank, NaN, torchrun's restarts.
"""
