"""Finds out what a model does around its output layer, by running its own forward method on stand-ins.

For one call the model gets a stand-in for its backbone, which returns known hidden states, and one for its head, which
notes its input and returns a known grid. The logits that the model's forward method makes of them tell:

- the head is given the hidden states as they are, and the logits are the grid, scaled or soft-capped
  → the log-probs can be computed from hidden states in tiles, with that transform;
- anything else, or an error → only the model's own logits are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from openrlhf.engine.model_internals import backbone_name
from openrlhf.models.head.tiles import LogitTransform

_NUM_TOKENS = 3
_HIDDEN_SIZE = 8
_HIGHEST_LOGIT = 1e6  # far above any soft cap
_LOWEST_LOGIT = 1e-6  # where a soft cap is as good as straight
_RELATIVE_TOLERANCE = 1e-6  # some models turn their logits into float32


@dataclass(frozen=True)
class HeadFinding:
    """The transform between head and logits; or None, and why the head is not simple."""

    transform: LogitTransform | None
    reason: str = ""


def probe_head(model: PreTrainedModel) -> HeadFinding:
    """Examines a Hugging Face causal language model (not one wrapped by PEFT)."""
    head = model.get_output_embeddings()
    name = next((name for name, child in model.named_children() if child is head), None)
    if type(head) is not nn.Linear:
        return HeadFinding(None, f"its output layer is a {type(head).__name__}, not a plain linear layer")
    if name is None:
        return HeadFinding(None, "its output layer is a part of another module")
    backbone_child = backbone_name(model)
    if backbone_child is None:
        return HeadFinding(None, f"it has no backbone named {model.base_model_prefix!r}")
    backbone, stub_head = _StubBackbone(), _StubHead(head.out_features)
    token_ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.long)
    try:
        with torch.no_grad(), _children_replaced(model, {backbone_child: backbone, name: stub_head}):
            logits = type(model).forward(model, input_ids=token_ids, use_cache=False).logits
    except Exception as error:  # any failure means the same: not a shape we know
        return HeadFinding(None, f"its forward method could not be examined ({type(error).__name__}: {error})")
    if stub_head.received is None or not _equal(stub_head.received, backbone.hidden):
        return HeadFinding(None, "it changes the hidden states before its output layer")
    transform = _transform_between(stub_head.grid, logits)
    return HeadFinding(transform, "" if transform else "it changes its logits in an unknown way")


class _StubBackbone(nn.Module):
    """Returns the same hidden states whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(1, _NUM_TOKENS, _HIDDEN_SIZE, dtype=torch.float64, generator=generator)

    @property
    def decoder(self) -> _StubBackbone:  # where the backbone holds the decoder inside it (OPT)
        return self

    def forward(self, *args: object, **kwargs: object) -> _StubOutput:
        return _StubOutput(self.hidden)


class _StubOutput:
    """The output of any kind of backbone: hidden states, by name or place; of the rest, nothing."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor | None:
        return self.last_hidden_state if place == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


class _StubHead(nn.Module):
    """Notes its input and returns a grid with values of every size, those of real logits most of all."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.weight = torch.zeros(1, dtype=torch.float64)
        self.received: Tensor | None = None
        mild = torch.linspace(-60.0, 60.0, _NUM_TOKENS * vocab_size, dtype=torch.float64)
        self.grid = mild.reshape(1, _NUM_TOKENS, vocab_size)
        self.grid[0, 0, :2] = torch.tensor([_HIGHEST_LOGIT, _LOWEST_LOGIT])

    def forward(self, hidden: Tensor) -> Tensor:
        self.received = hidden
        return self.grid.clone()


@contextmanager
def _children_replaced(model: nn.Module, children: dict[str, nn.Module]) -> Iterator[None]:
    """While it lasts `model` has these children in place of its own of the same names."""
    own = {name: model.get_submodule(name) for name in children}
    try:
        for name, child in children.items():
            setattr(model, name, child)
        yield
    finally:
        for name, child in own.items():
            setattr(model, name, child)


def _transform_between(grid: Tensor, logits: Tensor) -> LogitTransform | None:
    logits = logits.to(torch.float64)
    if logits.shape != grid.shape:
        return None
    # Of the two extreme logits, the highest shows the cap, where there is one, or else the scale; the lowest, where a
    # soft cap is still straight, shows the scale. All other values then tell whether the guess is right.
    highest, lowest = logits[0, 0, :2].tolist()
    candidates = [
        LogitTransform(),
        LogitTransform(scale=highest / _HIGHEST_LOGIT),
        LogitTransform(cap=highest),
        LogitTransform(scale=lowest / _LOWEST_LOGIT, cap=highest),
    ]
    for candidate in candidates:
        if candidate.cap != 0.0 and _equal(candidate.apply_(grid.clone()), logits):
            return candidate
    return None


def _equal(found: Tensor, expected: Tensor) -> bool:
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found.to(torch.float64), expected, rtol=_RELATIVE_TOLERANCE, atol=1e-9)
