"""Token embeddings that share the head's weight: their gradient is a few rows, added to the head's.

torch makes a second gradient of the whole vocabulary for them, sums each token's rows in the model's precision, and
adds the two up. Here the rows of a token are summed in float32 and go straight into the head's gradient.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from openrlhf.engine.parameters import is_partitioned

_Rows = list[tuple[Tensor, Tensor]]  # token ids (N,) and gradients (N, H) that are to be added


class TiedEmbedding(nn.Embedding):
    """Takes the place of plain embeddings whose weight a `LogProbHead` has too. For the CPU; elsewhere torch works."""

    _rows: _Rows
    _hooked_id: int | None  # of the weight with our hook; another weight may take its place
    _head_holder: tuple[nn.Module]  # a tuple: as an attribute of its own the head would become a child

    @staticmethod
    def install(embedding: Any, head: nn.Module) -> None:
        """Does nothing where the two are not tied, or are more than a plain table and a plain head."""
        is_plain = type(embedding) is nn.Embedding and embedding.max_norm is None and not embedding.scale_grad_by_freq
        if is_plain and embedding.weight is getattr(head, "weight", None):
            embedding.__class__ = TiedEmbedding  # it stays the module that others may hold
            embedding._rows, embedding._hooked_id, embedding._head_holder = [], None, (head,)

    def forward(self, ids: Tensor) -> Tensor:
        """(..., H) of token ids (...)."""
        weight = self.weight
        is_tied = self._head_holder[0].weight is weight and not is_partitioned(weight)  # ZeRO 3 cuts gradients up
        if not (is_tied and weight.device.type == "cpu" and weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(ids)
        assert not self._rows, "the last backward pass reached the embeddings but not the head that shares their weight"
        if self._hooked_id != id(weight):
            weight.register_hook(self._add_rows)
            self._hooked_id = id(weight)
        return _Lookup.apply(weight, ids, self._rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Embedding:
        """Plain embeddings: nobody can tell here whether the head is copied with them."""
        plain = nn.Embedding.__new__(nn.Embedding)
        memo[id(self)] = plain
        own = set(TiedEmbedding.__annotations__)
        plain.__dict__.update({name: deepcopy(part, memo) for name, part in vars(self).items() if name not in own})
        return plain

    def _add_rows(self, gradient: Tensor | None) -> Tensor | None:
        """Called with the head's gradient (V, H) once all that used the weight has had its turn."""
        if gradient is None:  # the head had no part in the loss; autograd takes no gradient from here then
            return None
        gradient = gradient.contiguous()  # an expanded one cannot be added to
        for ids, rows in self._rows:
            if self.padding_idx is not None:
                rows = rows * (ids != self.padding_idx)[:, None]
            present, places = ids.unique(return_inverse=True)
            exact = torch.promote_types(rows.dtype, torch.float32)
            sums = torch.zeros(len(present), rows.shape[1], dtype=exact).index_add_(0, places, rows.to(exact))
            gradient.index_add_(0, present, sums.to(gradient.dtype))
        self._rows.clear()
        return gradient


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = rows
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.rows.append((ids.flatten(), grads[0].flatten(0, -2)))
        return None, None, None  # autograd waits for this answer before it calls the weight's hook
