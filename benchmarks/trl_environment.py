"""TRL's pinned environment, made on first use in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements_trl.txt")


def default_work_folder() -> Path:
    """Where models, rows, caches and environments of the benchmarks lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "openrlhf" / "benchmarks"


def trl_python(work: Path) -> Path:
    """The interpreter of an environment that holds exactly `requirements_trl.txt`."""
    key = hashlib.blake2b(REQUIREMENTS.read_bytes() + sys.version.encode(), digest_size=6).hexdigest()
    folder = work / f"trl-{key}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.is_file():
        print(f"making TRL's environment in {folder} (once; some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch = next(
            line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
        )
        try:
            subprocess.run([*pip, torch], check=True)  # first and by itself: it decides between CPU and CUDA
            subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        except subprocess.CalledProcessError as failure:
            raise SystemExit(
                f"TRL's environment could not be made in {folder}: pip ended with {failure.returncode} (see "
                "above). Give an environment with --trl-python, or measure ours alone with --ours-alone."
            ) from failure
        complete.touch()
    return python
