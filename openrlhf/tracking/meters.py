"""Sums with their counts, kept on the device until somebody asks."""

from __future__ import annotations

import math

import torch

Amount = torch.Tensor | float


class WeightedSums:
    """A (sum, count) pair for each name, all in one float64 tensor of shape (num_names, 2).

    Adding neither waits for the device nor talks to another rank. A step's numbers are reduced over ranks in
    one collective on `as_tensor()`, and come to the host in one copy in `means()`.
    """

    def __init__(self, names: tuple[str, ...], device: torch.device | str = "cpu"):
        self.names = names
        self._row = {name: row for row, name in enumerate(names)}
        self._pairs = torch.zeros(len(names), 2, dtype=torch.float64, device=device)

    @classmethod
    def from_tensor(cls, names: tuple[str, ...], pairs: torch.Tensor) -> WeightedSums:
        """Meters over `pairs`, shape (num_names, 2): what `as_tensor()` gave, reduced over ranks."""
        assert pairs.shape == (len(names), 2), f"{len(names)} names, but pairs of shape {tuple(pairs.shape)}"
        meters = cls(names, pairs.device)
        meters._pairs.copy_(pairs)
        return meters

    def add(self, name: str, total: Amount, count: Amount = 1.0) -> None:
        """Adds a sum of `count` things; scalars, as tensors of any device or plain numbers."""
        row = self._pairs[self._row[name]]
        row[0] += _without_graph(total)
        row[1] += _without_graph(count)

    def as_tensor(self) -> torch.Tensor:
        """The pairs themselves, shape (num_names, 2), float64: the meters see an all-reduce in place."""
        return self._pairs

    def sums(self) -> dict[str, float]:
        """Each name's sum, on the host."""
        return {name: total for name, (total, _) in self._on_host().items()}

    def means(self) -> dict[str, float]:
        """Each name's sum / count, on the host; nan where nothing was counted."""
        return {name: _mean(total, count) for name, (total, count) in self._on_host().items()}

    def reset(self) -> None:
        """Everything back to nothing, without waiting for the device."""
        self._pairs.zero_()

    def _on_host(self) -> dict[str, list[float]]:
        pairs = self._pairs.tolist()
        return {name: pairs[row] for name, row in self._row.items()}


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan


def _without_graph(amount: Amount) -> Amount:
    return amount.detach() if isinstance(amount, torch.Tensor) else amount
