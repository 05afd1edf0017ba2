"""Packages as they look to transformers and to us, without what they are built for: files, dist-info, signatures.

A stand-in computes by `reference.py` on any device, and holds its callers to the real function's contract.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import transformers.modeling_flash_attention_utils as flash_utils
from transformers.utils import import_utils

from tests.cuda.stand_ins import reference

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
SOURCES = Path(__file__).parent
_WHOLE = {  # distribution: (folder here, version)
    "flash-attn": ("flash_attn", "2.8.3"),
    "flash-attn-3": ("flash_attn_interface", "3.0.0"),
    "flash-attn-4": ("flash_attn_4/flash_attn", "4.0.0b36"),
    "ring-flash-attn": ("ring_flash_attn", "0.1.8"),
    "kernels": ("kernels", import_utils.KERNELS_MIN_VERSION),
    "liger-kernel": ("liger_kernel", "0.8.5"),
}
_BROKEN = {
    "broken flash-attn": (
        "flash_attn",
        'raise ImportError("flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c105ErrorC2")',
        "flash-attn",
        "2.8.3",
    ),
    "broken liger-kernel": ("liger_kernel", "import triton_that_is_not_there", "liger-kernel", "0.8.5"),
}


@contextmanager
def gpu_machine(site: Path, *packages: str, capability: tuple[int, int] = AMPERE) -> Iterator[None]:
    """A machine with a GPU, as far as transformers and we can tell. Args: site: a folder of its own for `packages`."""
    site.mkdir(exist_ok=True)
    install(site, *packages)
    with (
        patch.object(torch.cuda, "is_available", lambda: True),
        patch.object(torch.cuda, "device_count", lambda: 1),
        patch.object(torch.cuda, "get_device_capability", lambda *device: capability),
        patch.object(flash_utils, "_loaded_implementation", None),
        patch.object(sys, "path", [str(site), *sys.path]),
    ):
        _forget_what_is_installed()
        try:
            yield
        finally:
            _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    reference.CALLS.clear()
    importlib.invalidate_caches()
    modules = {Path(folder).name for folder, _ in _WHOLE.values()}
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    for value in vars(import_utils).values():
        getattr(value, "cache_clear", lambda: None)()


def install(site: Path, *names: str) -> None:
    """Installs stand-ins below `site`, a folder of sys.path; a name may bring its version: "kernels==0.12.0"."""
    for name in names:
        distribution, _, version = name.partition("==")
        if distribution in _BROKEN:
            _write(site, *_BROKEN[distribution])
        else:
            folder, usual = _WHOLE[distribution]
            _copy(site, folder, distribution, version or usual)


def _copy(site: Path, folder: str, distribution: str, version: str) -> None:
    module = Path(folder).name
    shutil.copytree(SOURCES / folder, site / module, ignore=shutil.ignore_patterns("__pycache__"))
    _describe(site, module, distribution, version)


def _write(site: Path, module: str, text: str, distribution: str, version: str) -> None:
    (site / module).mkdir()
    (site / module / "__init__.py").write_text(f"{text}\n", encoding="utf-8")
    _describe(site, module, distribution, version)


def _describe(site: Path, module: str, distribution: str, version: str) -> None:
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    files = [str(path.relative_to(site)) for path in (site / module).rglob("*.py")]
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
