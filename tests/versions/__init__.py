"""The ends of the ranges of versions: `python -m tests.versions [oldest] [newest]`.

Makes an environment for each end: the oldest versions that pyproject.toml admits, and the newest that the package index
has (torch: the newest of `openrlhf/versions.py`, which decides between CPU and CUDA). Runs the tests of models, data and
engine and the zoo's cross-section in it, and writes `benchmarks/results/versions.md`. An end takes half an hour.
"""
