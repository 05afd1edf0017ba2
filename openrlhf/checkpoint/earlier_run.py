"""A new run in a folder that holds another's checkpoints moves them aside, lest one day the wrong run is resumed."""

import os
from pathlib import Path

import torch.distributed as dist

from openrlhf.checkpoint.agreement import from_all_ranks, this_rank
from openrlhf.checkpoint.durable import flush_folder
from openrlhf.checkpoint.store import EXPORT_SUFFIX, CheckpointStore


def set_earlier_run_aside(store: CheckpointStore, group: dist.ProcessGroup | None) -> Path | None:
    """Move all checkpoints and exports along the way into `earlier_run_<n>/` below the store's root. Collective.

    Returns: that folder; None where there was nothing to move.
    """
    stores = (store, CheckpointStore(store.root, suffix=EXPORT_SUFFIX))
    moved_to = _move(stores) if this_rank(group) == 0 else None
    return from_all_ranks(moved_to, group)[0]


def _move(stores: tuple[CheckpointStore, ...]) -> Path | None:
    for store in stores:
        store.clean_leftovers()
    moving = [path for store in stores for path in (*store.candidates(), *store.records())]
    if not any(path.is_dir() for path in moving):
        return None
    root = stores[0].root
    aside = _free_name(root)
    aside.mkdir()
    for path in moving:
        os.replace(path, aside / path.name)
    flush_folder(root)
    return aside


def _free_name(root: Path) -> Path:
    number = 1
    while (root / f"earlier_run_{number}").exists():
        number += 1
    return root / f"earlier_run_{number}"
