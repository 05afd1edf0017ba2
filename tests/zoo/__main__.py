"""`python -m tests.zoo`; see the package's text."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers.utils import logging

from tests.helpers.ranks import RankPool
from tests.zoo.cells import Finding, Subject, all_cells
from tests.zoo.shrink import CannotBeBuilt, all_names, small_model_named
from tests.zoo.table import Results

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo")
    parser.add_argument("names", nargs="*", help="types, or variants as the table names them; default: all")
    parser.add_argument("--rest", action="store_true", help="those that zoo.json does not have yet")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of zoo.md and zoo.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    results = Results.read(options.results) if options.names or options.rest else Results()
    known = results.findings.keys() | results.not_built.keys()
    names = options.names or [name for name in all_names() if not (options.rest and name in known)]
    with RankPool(2) as ranks:
        for name in names:
            began = time.perf_counter()
            found = look_at(name, ranks)
            results.add(name, found)
            results.write(options.results)
            shown = found if isinstance(found, str) else " ".join(f"{cell}:{f.verdict}" for cell, f in found.items())
            print(f"{name} ({time.perf_counter() - began:.1f} s): {shown}", flush=True)
    print(*results.problems, sep="\n")
    return 1 if results.problems else 0


def look_at(name: str, ranks: RankPool) -> dict[str, Finding] | str:
    """The findings of all cells, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        try:
            subject = Subject.saved(small_model_named(name), Path(folder) / "model")
        except CannotBeBuilt as error:
            return str(error)
        return all_cells(subject, ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
