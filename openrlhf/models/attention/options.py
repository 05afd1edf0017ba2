"""What a model asks of its attention beside queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionOptions:
    scaling: float | None  # of query · key; None: 1 / sqrt(head size)
    dropout: float = 0.0
    window: int | None = None  # how many tokens back a token sees, itself included; None: all
    softcap: float | None = None  # scores = softcap * tanh(scores / softcap)
    sinks: Tensor | None = None  # (heads,) score of a place in each head that takes weight and gives nothing

    @property
    def is_plain(self) -> bool:
        """True where torch's own scaled_dot_product_attention computes it."""
        return self.softcap is None and self.sinks is None
