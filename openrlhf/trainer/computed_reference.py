"""Log-probs of a reference model, computed once for a data set and kept in a file that a kill does not spoil.

The file holds float64 numbers in the order of the rows, two a pair. Rows are appended a window at a time, each window
flushed; a run that goes on cuts what was not flushed whole. Whoever holds the same weights, tokens and settings finds
the same file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from openrlhf.batching import StepWindow, StepWindowLoader
from openrlhf.models import Actor
from openrlhf.objectives import Scorer
from openrlhf.parallel.collectives import gather_objects
from openrlhf.strategy import DeepspeedStrategy

_ROW_BYTES = 2 * 8


def compute_reference(model: Actor, loader: StepWindowLoader, strategy: DeepspeedStrategy, file: Path) -> np.ndarray:
    """(rows, 2) float64 log-probs of the chosen and the rejected answer of each row. Every rank calls.

    Args:
        model: frozen or not; it is not changed.
        loader: without shuffling, over a data set of pairs.
        file: on a disk that rank 0 sees; rows that it holds are not computed again.
    """
    num_rows, batch_size = len(loader.dataset), loader.schedule.batch_size
    on_disk = gather_objects(_whole_rows(file, num_rows, batch_size), strategy.groups.control)[0]
    was_training = model.training
    model.eval()
    shown = tqdm(total=num_rows, initial=on_disk, desc="reference", disable=None if strategy.is_rank_0() else True)
    if on_disk < num_rows:
        for window in loader.windows(on_disk, max_epochs=1):
            strategy.watchdog.note("computing the reference's log-probs")
            values = _of_window(model, window, strategy)
            if strategy.is_rank_0():
                _append(file, values)
            shown.update(len(values))
    shown.close()
    model.train(was_training)
    whole = np.fromfile(file, dtype=np.float64).reshape(-1, 2) if strategy.is_rank_0() else None
    return gather_objects(whole, strategy.groups.control)[0]


def _whole_rows(file: Path, num_rows: int, batch_size: int) -> int:
    """The rows that the file holds in whole windows; it is cut behind them."""
    if not file.is_file():
        return 0
    rows = min(file.stat().st_size // _ROW_BYTES, num_rows)
    rows = rows if rows == num_rows else rows // batch_size * batch_size
    os.truncate(file, rows * _ROW_BYTES)
    return rows


def _append(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as target:
        target.write(values.tobytes())
        target.flush()
        os.fsync(target.fileno())


def _of_window(model: Actor, window: StepWindow, strategy: DeepspeedStrategy) -> np.ndarray:
    """(rows of the window, 2), in the order of the rows; the same on every rank."""
    mine: dict[int, list[float]] = {}
    for rows, micro_batch in zip(window.rows_of_micro_batches, window.micro_batches, strict=True):
        of_pairs = _log_probs(Scorer(model, micro_batch.to(strategy.device), strategy.groups)).view(-1, 2)
        mine |= dict(zip(rows, of_pairs.double().tolist(), strict=True))
    everyone: dict[int, list[float]] = {}
    for of_rank in gather_objects(mine, strategy.groups.control):
        everyone |= of_rank
    return np.array([everyone[row] for row in sorted(everyone)], dtype=np.float64)


@torch.no_grad()
def _log_probs(scorer: Scorer) -> Tensor:
    return scorer.sequence_sums(scorer.log_probs())
