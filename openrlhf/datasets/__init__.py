"""The data room: file → rows (`sources/`) → content (`formats/`) → ids and mask (`tokenization/`) → SFTDataset.

Light to import: torch is loaded when SFTDataset is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset

__all__ = ["SFTDataset", "prepare_sft_dataset"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from openrlhf.datasets import sft_dataset

        return getattr(sft_dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
