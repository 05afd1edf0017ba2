"""A checkpoint that stands at another sample: `python -m benchmarks.resume_checkpoint FROM FOLDER SAMPLES BATCH_SIZE`.

FROM is a checkpoint that a run has written after its first step. Its copy in FOLDER says, in `progress.json`, that
SAMPLES samples were trained in SAMPLES / BATCH_SIZE steps, and its manifest is written anew. Weights, optimizer and
schedule stay those of step 1: what a resumed run reads is as large as ever, and what may differ is how long it takes to
find its place in the data.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from openrlhf.checkpoint.manifest import MANIFEST_NAME, saved_identity, write_manifest


def move_to_sample(source: Path, folder: Path, consumed_samples: int, batch_size: int) -> Path:
    step = consumed_samples // batch_size
    checkpoint = folder / f"global_step{step}"
    shutil.copytree(source, checkpoint)
    progress_file = checkpoint / "progress.json"
    progress = json.loads(progress_file.read_text(encoding="utf-8"))
    progress |= {"optimizer_step": step, "consumed_samples": consumed_samples}
    progress_file.write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    identity = saved_identity(checkpoint)
    (checkpoint / MANIFEST_NAME).unlink()
    write_manifest(checkpoint, identity=identity)
    return checkpoint


if __name__ == "__main__":
    move_to_sample(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
