"""Drawing the next token, each row by random numbers of its own: a row's token depends on no other row."""

from __future__ import annotations

import numpy as np
import torch


def draws_of(seed: int, count: int) -> np.ndarray:
    """The random numbers of one answer, `(count,)` float64 in [0, 1), one for each token."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def next_tokens(logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token a row, `(B,)` int64.

    The token is the one in whose share of the cumulated probabilities the row's draw lies, so a rounding of the logits
    changes it only where the draw lies at a border.

    Args:
        logits: `(B, V)`.
        draws: `(B,)` float64 in [0, 1); see `draws_of`.
        temperature: 0 takes the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    order = None
    if top_p < 1:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulated = probabilities.cumsum(dim=-1, dtype=torch.float64)
    places = torch.searchsorted(cumulated, (draws * cumulated[:, -1]).unsqueeze(-1), right=True)
    last = (probabilities > 0).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # the last that can be drawn
    places = torch.minimum(places, last)
    return (places if order is None else order.gather(-1, places)).squeeze(-1)
