"""Our kernels touch no memory but their own: their tests once more, compiled with guards around every array."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = [Path(__file__).with_name(name) for name in ("test_causal_pack.py", "test_cpu_log_probs.py")]
COMPILER = os.environ.get("CXX", "g++")


def guards_libraries() -> str:
    """GCC's AddressSanitizer, which a process must have loaded first, and what it must see to let an exception through.

    Skips where there is none.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"there is no {COMPILER}")
    guards, exceptions = map(file_of_compiler, ("libasan.so", "libstdc++.so"))
    if not Path(guards).is_file():
        pytest.skip("this compiler has no AddressSanitizer")
    return f"{guards} {exceptions}"


def file_of_compiler(name: str) -> str:
    words = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_no_byte_beyond_an_array_is_read_or_written(tmp_path):
    libraries = guards_libraries()
    compiler = tmp_path / "guarded"
    compiler.write_text(f'#!/bin/sh\nexec {COMPILER} "$@" -fsanitize=address -g\n')
    compiler.chmod(0o755)
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "TORCH_EXTENSIONS_DIR": str(tmp_path),
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself never frees all
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}"]
    done = subprocess.run([*words, *TESTS], env=environment, capture_output=True, text=True, timeout=400)
    found = [line for line in (done.stdout + done.stderr).splitlines() if "AddressSanitizer" in line]
    assert not found, done.stderr[-4000:]
    assert done.returncode == 0, done.stdout[-4000:]
    assert list(tmp_path.glob("openrlhf_cpu_*.so")), "the kernels were not compiled"
