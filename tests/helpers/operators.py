"""Compiles what training on a CPU compiles on first use, so that no test waits for another one's compiler.

python -m tests.helpers.operators
"""

from __future__ import annotations

from openrlhf.engine.operators import load_adam
from openrlhf.models.cpu_kernels.compiled import load_library

if __name__ == "__main__":
    for operator in ("fused_adam", "cpu_adam"):
        load_adam(operator, "auto")
    load_library()
