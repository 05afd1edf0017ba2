"""What a model does to its head's output before the softmax, as far as the chunked log-probs can do it too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """logits = softcap(scale * x) / temperature, with softcap(y) = cap * tanh(y / cap), or y where `cap` is None."""

    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def apply_(self, head_output: Tensor) -> Tensor:
        """Turns the head's output into logits, in place."""
        if self.cap is not None:
            return head_output.mul_(self.scale / self.cap).tanh_().mul_(self.cap / self.temperature)
        if self.scale != self.temperature:
            head_output.mul_(self.scale / self.temperature)
        return head_output

    def slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d head output, from the logits; a new tensor where it differs between them."""
        steepest = self.scale / self.temperature
        if self.cap is None:
            return steepest
        return (logits * (self.temperature / self.cap)).square_().neg_().add_(1.0).mul_(steepest)


PLAIN = LogitTransform()  # the head's output is the logits
