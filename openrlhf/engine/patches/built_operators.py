"""DeepSpeed's operators loaded from where they were built, without a check by ninja.

Reason: to load an operator DeepSpeed always goes through torch's builder. It asks py-cpuinfo twice for the processor
(half a second of subprocesses each) and then lets ninja find that nothing is to be done. For the two operators of a
run on the CPU that is 2.3 s of every start (benchmarks/LOG.md).

Change: the module is put into DeepSpeed's own table of loaded operators, `OpBuilder._loaded_ops`. Operators that were
built with other versions, or for another processor or GPU, are never loaded (see `engine/operators.py`).

Upstream: none known.
Another version of DeepSpeed: left out; a start takes longer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from openrlhf.engine.patches.patch import Patch

PATCH = Patch("built_operators", "deepspeed", "0.19", applies_to_others=False, without_it="a start takes 2 s longer")


def load_built(operator: str, library: Path) -> bool:
    """Loads `operator` from `library`. Returns False where DeepSpeed is left to load it in its own way."""
    if not PATCH.is_on():
        return False
    from deepspeed.ops.op_builder.builder import OpBuilder

    if operator not in OpBuilder._loaded_ops:
        spec = importlib.util.spec_from_file_location(operator, library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        OpBuilder._loaded_ops[operator] = module
    return True
