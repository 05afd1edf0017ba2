"""A new run in a folder that holds another's checkpoints moves them aside, lest one day the wrong run is resumed."""

import os
from pathlib import Path

import torch.distributed as dist

from openrlhf.checkpoint.agreement import from_all_ranks, this_rank
from openrlhf.checkpoint.durable import flush_folder
from openrlhf.checkpoint.store import CheckpointStore


def set_earlier_run_aside(store: CheckpointStore, group: dist.ProcessGroup | None) -> Path | None:
    """Move all checkpoints below the store's root into `earlier_run_<n>/` there; None if there are none. Collective."""
    moved_to = _move(store) if this_rank(group) == 0 else None
    return from_all_ranks(moved_to, group)[0]


def _move(store: CheckpointStore) -> Path | None:
    checkpoints = store.candidates()
    if not checkpoints:
        return None
    store.clean_leftovers()
    aside = _free_name(store.root)
    aside.mkdir()
    for path in sorted(store.root.iterdir()):
        is_record = path.is_file() and path.name in ("latest", "best.json")
        if path in checkpoints or is_record:
            os.replace(path, aside / path.name)
    flush_folder(store.root)
    return aside


def _free_name(root: Path) -> Path:
    number = 1
    while (root / f"earlier_run_{number}").exists():
        number += 1
    return root / f"earlier_run_{number}"
