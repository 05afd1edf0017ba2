"""The ends of the ranges of versions: `python -m tests.versions [oldest] [newest]`.

Makes an environment for each end: the oldest versions that pyproject.toml admits, and the newest that the package index
has (of torch the newest in `openrlhf/versions.py`). Runs the tests of models, data, engine and checkpoints in it, and
the zoo's cross-section; writes `benchmarks/results/versions.md`. An end takes half an hour.
"""
