"""The last layer of a transformer, computed behind its attention for those tokens alone whose hidden states are read.

There a layer treats each token by itself, so what it computes of the others is thrown away: nine tenths of its products
of matrices. A reward model reads one token of each answer; a loss reads no prompt.

Shapes: B batch, S sequence, N tokens that are read, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.models.layout_probe import looking_only

_NUM_TOKENS = 8  # of the look at the layer's form
# Relative: products of fewer rows may be summed in another order.
_ROUNDING = {torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float32: 1e-4, torch.float64: 1e-4}


class _Now:
    """What the pass at work reads. One for all models: what hangs on a module, torch.compile takes for constant."""

    places: Tensor | None = None  # (N,) in the flattened input; None: all are read
    all: Tensor | None = None  # (B, S, H) that the layer was given
    is_short = False  # the layer was given N rows instead


_now = _Now()


class LastLayer:
    """A layer of the usual form: norm, attention, sum, norm, MLP, sum. One of another form is computed whole.

    It is given the rows of the N tokens, its norm and attention all rows, and the attention's output projection the N
    rows again.
    """

    def __init__(self, backbone: nn.Module, layer: nn.Module, norm: nn.Module, projection: nn.Module):
        self._backbone, self._layer = backbone, layer
        self._is_usual: bool | None = None  # None: nobody has looked yet
        layer.register_forward_pre_hook(_begin)
        _give(norm, lambda rows: _now.all if _now.is_short else rows)
        _give(projection, lambda rows: _read_rows(rows) if _now.is_short else rows)

    @staticmethod
    def of(backbone: nn.Module, layers: list[nn.Module]) -> LastLayer | None:
        """None where it lacks a part of the usual form. Args: layers: of the model, in their order."""
        layer: Any = layers[-1] if layers else None
        norm = getattr(layer, "input_layernorm", None)
        projection = getattr(getattr(layer, "self_attn", None), "o_proj", None)
        return None if norm is None or projection is None else LastLayer(backbone, layer, norm, projection)

    def states_at(self, places: Tensor, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The backbone's outputs, and the hidden states (N, H) at N places of the flattened input."""
        if self._is_usual is None:
            self._is_usual = self._has_usual_form()
        recomputes = self._layer.training and any(
            getattr(module, "gradient_checkpointing", False) for module in self._backbone.modules()
        )
        with self._only(places if self._is_usual and not recomputes else None):
            outputs = self._backbone(**inputs)
            rows = outputs[0].flatten(0, 1)
            return outputs, rows if _now.is_short else rows[places]

    @contextmanager
    def _only(self, places: Tensor | None) -> Iterator[None]:
        _now.places = places
        try:
            yield
        finally:
            _now.places, _now.all, _now.is_short = None, None, False

    def _has_usual_form(self) -> bool:
        """Whether hidden states that are read are what they are with all others computed; looked at in a few tokens."""
        ids = torch.arange(_NUM_TOKENS, device=next(self._layer.parameters()).device)[None]
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        places = ids[0, 1::2]
        try:
            with looking_only(self._backbone):
                expected = self._backbone(**inputs)[0].flatten(0, 1)[places]
                with self._only(places):
                    found = self._backbone(**inputs)[0].flatten(0, 1)
        except Exception:  # whatever it is, the layer has another form
            return False
        allowed = _ROUNDING[found.dtype] * expected.norm()
        return found.shape == expected.shape and bool((found - expected).norm() <= allowed)


def _begin(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if _now.places is None or len(_now.places) >= args[0].shape[:-1].numel():
        return args
    _now.all, _now.is_short = args[0], True
    return _read_rows(args[0]), *args[1:]


def _read_rows(rows: Tensor) -> Tensor:
    """(1, N, ...) of (B, S, ...)."""
    return rows.flatten(0, 1)[_now.places].unsqueeze(0)


def _give(module: nn.Module, rows_for: Callable[[Tensor], Any]) -> None:
    """Its forward pass is given `rows_for(x)` for x. By a class of its own: torch.compile does not look at hooks."""
    kind = type(module)

    def forward(self: nn.Module, rows: Tensor, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, rows_for(rows), *args, **kwargs)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
