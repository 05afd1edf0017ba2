"""How much memory a rank needs for what lasts through the run: weights, gradients, optimizer state.

With A parameters of which T are trained, N ranks, w bytes a weight and g bytes a gradient (4 for fp32, 2 for
bf16 and fp16), ZeRO stage z:

    weights          = w·A           divided by N from z = 3 on
    gradients        = g·T           divided by N from z = 2 on
    optimizer state  = (m + 4·k)·T   divided by N from z = 1 on
                       m = 4 for the fp32 master copy; 0 where the weights themselves are it (fp32, z = 0)
                       k = fp32 numbers the optimizer keeps for a weight: 2 for Adam, 1 for Muon's matrices

An offloaded optimizer keeps its state in the host's memory, with a fp32 gradient (4·T, divided by N from
z = 1 on) beside it. Activations, log-prob chunks, communication buckets and the allocator's slack come on
top: they depend on the batch, not on the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES_OF_DTYPE = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a rank holds through the run."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    host_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """What the accelerator (or, without one, the process) holds."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


def estimate_memory(
    num_parameters: int,
    num_trainable_parameters: int,
    *,
    num_ranks: int,
    zero_stage: int,
    param_dtype: str,
    gradient_dtype: str | None = None,
    optimizer_numbers_per_weight: int = 2,
    optimizer_offload: bool = False,
) -> MemoryEstimate:
    """The formula above. Dtypes: "fp32", "bf16", "fp16"; `gradient_dtype` is `param_dtype` when not given."""
    weight_bytes = BYTES_OF_DTYPE[param_dtype]
    gradient_bytes = BYTES_OF_DTYPE[gradient_dtype or param_dtype]
    weights_are_master = param_dtype == "fp32" and zero_stage == 0
    state_bytes = (0 if weights_are_master else 4) + 4 * optimizer_numbers_per_weight

    def share(num_bytes: int, from_stage: int) -> int:
        return -(-num_bytes // num_ranks) if zero_stage >= from_stage else num_bytes

    optimizer_bytes = share(state_bytes * num_trainable_parameters, from_stage=1)
    offloaded_gradient_bytes = share(4 * num_trainable_parameters, from_stage=1)
    return MemoryEstimate(
        weights_bytes=share(weight_bytes * num_parameters, from_stage=3),
        gradients_bytes=share(gradient_bytes * num_trainable_parameters, from_stage=2),
        optimizer_bytes=0 if optimizer_offload else optimizer_bytes,
        host_bytes=optimizer_bytes + offloaded_gradient_bytes if optimizer_offload else 0,
    )
