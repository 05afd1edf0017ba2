"""The data room: file → rows (`sources/`) → content (`formats/`) → ids and mask (`tokenization/`) → a data set.

Light to import: torch is loaded when a data set is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openrlhf.datasets.pair_dataset import PairDataset, RewardDataset, prepare_pair_dataset
    from openrlhf.datasets.sft_dataset import SFTDataset, prepare_sft_dataset

__all__ = ["PairDataset", "RewardDataset", "SFTDataset", "prepare_pair_dataset", "prepare_sft_dataset"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from openrlhf.datasets import pair_dataset, sft_dataset

        return getattr(sft_dataset if "sft" in name.lower() else pair_dataset, name)
    if name == "PromptDataset":  # of OpenRLHF; an AttributeError's words would be lost on the way to an import
        raise ImportError(
            "PromptDataset is not here: prompts are read by python -m openrlhf.cli.generate, and in Python by "
            "openrlhf.rejection.prompts.Prompts (docs/rejection_sampling.md)."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
