"""A rank of a case of benchmarks/memory.py, in a process of its own: prints the bytes of its peak."""

from __future__ import annotations

import json
import sys

from benchmarks.memory import Case, peak_of_training

if __name__ == "__main__":
    print(peak_of_training(Case(**json.loads(sys.argv[1])), sys.argv[2]))
