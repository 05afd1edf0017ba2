"""Small batches of token ids in every layout, and the log-probs that plain transformers gives for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

LENGTHS = (7, 3, 12, 1, 9)


@dataclass(frozen=True)
class Samples:
    token_ids: tuple[Tensor, ...]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.token_ids]

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *torch.tensor(self.lengths).cumsum(0).tolist()], dtype=torch.int32)

    def padded(self, side: str = "right") -> tuple[Tensor, Tensor]:
        """(sequences, attention_mask), each (B, S)."""
        width = max(self.lengths)
        sequences = torch.zeros(len(self.lengths), width, dtype=torch.long)
        mask = torch.zeros_like(sequences)
        for row, ids in enumerate(self.token_ids):
            place = slice(0, len(ids)) if side == "right" else slice(width - len(ids), width)
            sequences[row, place] = ids
            mask[row, place] = 1
        return sequences, mask

    def packed(self) -> dict[str, Any]:
        """Arguments of `Actor.score_targets` for one pack, every token but the first of a sample a target."""
        starts = self.cu_seqlens.tolist()
        return dict(
            input_ids=torch.cat(self.token_ids)[None],
            position_ids=torch.cat([torch.arange(length) for length in self.lengths])[None],
            target_index=torch.cat(
                [torch.arange(start, start + n - 1) for start, n in zip(starts, self.lengths, strict=False)]
            ),
            target_ids=torch.cat([ids[1:] for ids in self.token_ids]),
            cu_seqlens=self.cu_seqlens,
            max_seqlen=max(self.lengths),
        )


def make_samples(lengths: tuple[int, ...] = LENGTHS, vocab_size: int = 512, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(tuple(torch.randint(3, vocab_size, (length,), generator=generator) for length in lengths))


def reference_log_probs(model: PreTrainedModel, samples: Samples, temperature: float = 1.0) -> Tensor:
    """(N,) log-probs of every next token, each sample alone through the model's own forward method."""
    return torch.cat([_sample_log_probs(model, ids, temperature) for ids in samples.token_ids])


def _sample_log_probs(model: PreTrainedModel, ids: Tensor, temperature: float) -> Tensor:
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    return (logits.double() / temperature).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def assert_close(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Largest difference, relative to the largest expected value where that is above 1."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    error = ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    assert error <= tolerance, f"{what}: differs by {error:.3g}, more than {tolerance:.3g}"
