"""Log-probs of each next token of a padded batch, as scripts ask an Actor for them; also where a ring shares the batch.

Shapes: B batch, S sequence (padded), T tokens of all rows, N next tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.utils.rnn import pad_sequence

from openrlhf.parallel.collectives import SumOverRanks, rank_in, size_of
from openrlhf.parallel.sequence_shares import sequence_share


@dataclass(frozen=True)
class ActorOutput:
    """What `Actor.forward(…, return_output=True)` gives beside the log-probs. There are no logits: none are made.

    Attributes:
        aux_loss: scalar, the load-balancing loss of a model with experts; 0 for another.
        entropy: (B, S-1) of each prediction, 0.0 where there is none; None where it was not asked for.
    """

    aux_loss: Tensor
    entropy: Tensor | None


@dataclass(frozen=True)
class NextTokens:
    """Where the next tokens of a batch stand."""

    sequences: Tensor  # (B, S)
    is_real: Tensor  # (B, S) bool
    ring: ProcessGroup | None  # the ranks that share the batch; None: this one has it alone
    pack_lengths: tuple[int, ...] | None = None  # of the rows that were given as a pack (1, T)

    @classmethod
    def of(
        cls, sequences: Tensor, attention_mask: Tensor | None, ring: Any, pack_lengths: Sequence[int] | None
    ) -> NextTokens:
        """Of (B, S) sequences, or of rows of these lengths in a pack (1, T)."""
        if pack_lengths is None:
            is_real = torch.ones_like(sequences) if attention_mask is None else attention_mask
            return cls(sequences, is_real.bool(), ring)
        rows = sequences.flatten().split(list(pack_lengths))
        padded = [pad_sequence([*part], batch_first=True) for part in (rows, map(torch.ones_like, rows))]
        return cls(padded[0], padded[1].bool(), ring, tuple(pack_lengths))

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the tokens whose next one is real too, (N,) each."""
        rows, columns = (self.is_real[:, :-1] & self.is_real[:, 1:]).nonzero(as_tuple=True)
        return rows, columns

    def inputs(self) -> tuple[dict[str, Any], Tensor]:
        """(inputs of `score_targets`, which of the N this rank scores)."""
        return self._padded() if self.ring is None else self._share(self.ring)

    def _padded(self) -> tuple[dict[str, Any], Tensor]:
        rows, columns = self.places
        inputs = dict(
            input_ids=self.sequences,
            position_ids=(self.is_real.long().cumsum(-1) - 1).clamp(min=0),
            attention_mask=self.is_real.long(),
            target_index=rows * self.sequences.shape[1] + columns,
            target_ids=self.sequences[rows, columns + 1],
        )
        return inputs, torch.arange(len(rows), device=rows.device)

    def _share(self, ring: ProcessGroup) -> tuple[dict[str, Any], Tensor]:
        """This rank's share of the rows as one pack."""
        rows, columns = self.places
        lengths = self.is_real.sum(-1)
        borders = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).cpu()
        in_pack = self.is_real.flatten().long().cumsum(0) - 1  # (B*S,) place in the pack of each real token
        mine = sequence_share(borders, rank_in(ring), size_of(ring)).to(rows.device)  # (T_local,)
        local = in_pack.new_full((int(borders[-1]),), -1).index_put(
            (mine,), torch.arange(len(mine), device=mine.device)
        )
        index = local[in_pack[rows * self.sequences.shape[1] + columns]]  # (N,) -1: another rank's
        scored = (index >= 0).nonzero().flatten()
        inputs = dict(
            input_ids=self.sequences[self.is_real][mine][None],
            position_ids=(self.is_real.long().cumsum(-1) - 1)[self.is_real][mine][None],
            cu_seqlens=borders,
            max_seqlen=int(lengths.max()),
            target_index=index[scored],
            target_ids=self.sequences[rows, columns + 1][scored],
            sequence_group=ring,
            router_group=ring,
        )
        return inputs, scored

    def spread(self, of_scored: Tensor, scored: Tensor) -> Tensor:
        """Numbers of the scored next tokens → (B, S-1), or (1, T-1) of a pack; 0.0 elsewhere, whole on every rank."""
        rows, columns = (one[scored] for one in self.places)
        spread = of_scored.new_zeros(self.sequences.shape)
        spread = spread.index_put((rows, columns), of_scored)
        if self.ring is not None:
            spread = SumOverRanks.apply(spread, self.ring)
        if self.pack_lengths is not None:
            spread = torch.cat([row[:length] for row, length in zip(spread, self.pack_lengths, strict=True)])[None]
        return spread[:, :-1]
