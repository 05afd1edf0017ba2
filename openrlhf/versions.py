"""The versions of other libraries that this package was tried with, from the oldest to the newest."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

# `python -m tests.versions` tries the ends; benchmarks/results/versions.md has the outcome of those that were run.
# pyproject.toml asks for the oldest or later; a later one than the newest is told, and not refused.
TRIED = {
    "torch": ("2.11.0", "2.13.0"),
    "deepspeed": ("0.19.8", "0.19.8"),
    "transformers": ("5.19.0", "5.24.0"),
    "datasets": ("4.8.0", "5.2.0"),
    "peft": ("0.20.0", "0.21.2"),
    "accelerate": ("1.12.0", "1.15.0"),
}


def installed(package: str) -> str | None:
    """The version that is installed, None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def untried_versions() -> Iterator[str]:
    """A sentence for each package whose version is outside of what was tried."""
    for package, (oldest, newest) in TRIED.items():
        found = installed(package)
        if found is not None and not Version(oldest) <= Version(Version(found).public) <= Version(newest):
            yield f"{package} {found} is installed: this package was tried with {oldest} to {newest}."
