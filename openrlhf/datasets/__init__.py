"""The data room: file → rows (`sources/`) → samples (`formats/`) → ids and mask (`tokenization/`) → SFTDataset.

Light to import: torch is loaded when SFTDataset is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openrlhf.datasets.settings import DataSettings

if TYPE_CHECKING:
    from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset

__all__ = ["DataSettings", "SFTDataset", "prepare_sft_dataset"]


def __getattr__(name: str) -> Any:
    if name in ("SFTDataset", "prepare_sft_dataset"):
        from openrlhf.datasets import sft_dataset

        return getattr(sft_dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
