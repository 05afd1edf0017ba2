"""Reading prepared samples, as every start does."""

from __future__ import annotations

import subprocess
import sys

from tests.datasets.conftest import pairs, write_jsonl

READ = """
import sys
from pathlib import Path
from openrlhf.datasets.prepared import PreparedSamples
samples = PreparedSamples(Path(sys.argv[1]))
print([samples.sample(i).input_ids.tolist() for i in range(len(samples))])
print([samples.sample(i).loss_mask.tolist() for i in range(len(samples))])
assert "pandas" not in sys.modules, "pandas was loaded: 0.2 s of every start"
"""


def test_it_needs_no_pandas(tmp_path, prepare):
    dataset = prepare(write_jsonl(tmp_path / "a.jsonl", pairs(5)))
    run = subprocess.run(
        [sys.executable, "-c", READ, str(dataset.samples.folder)], capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    found = [dataset.samples.sample(i) for i in range(5)]
    assert run.stdout.splitlines() == [
        str([sample.input_ids.tolist() for sample in found]),
        str([sample.loss_mask.tolist() for sample in found]),
    ]
