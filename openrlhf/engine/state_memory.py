"""The memory that DeepSpeed holds for a model in training: weights, gradients, optimizer state, and updates.

The figures of an update were found by `python -m benchmarks.memory`, which compares all of this with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES_OF_DTYPE = {"fp32": 4, "bf16": 2, "fp16": 2}
BUCKET_NUMBERS = 500_000_000  # DeepSpeed sends gradients in buckets of at most so many numbers
LIVE_NUMBERS = 1_000_000_000  # ZeRO-3 gathers at most about so many weights at a time
ADAM_NUMBERS_A_WEIGHT = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a rank.

    Attributes:
        weights_bytes, gradients_bytes, optimizer_bytes: on the device, through the run.
        beside_bytes: on the device, beside activations: gathered weights and gradients on their way.
        update_bytes: on the device, from the last backward pass to the end of the update, when activations are gone.
        host_bytes: in the host's memory, through the run.
        save_bytes: in the host's memory, once a checkpoint has been saved beside the training.
        waiting_bytes: of a number of a gradient, in a bucket that fills in the backward pass and is then sent; 0 where
            it is among `beside_bytes`.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    beside_bytes: int = 0
    update_bytes: int = 0
    host_bytes: int = 0
    save_bytes: int = 0
    waiting_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """Bytes that the accelerator (or, without one, the process) holds through the run."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    def peak_bytes(self, activation_bytes: int) -> int:
        """The most that the device holds, with so much for the activations of a micro-batch."""
        return self.device_bytes + max(self.beside_bytes + activation_bytes, self.update_bytes)


def estimate_memory(
    num_parameters: int,
    num_trainable_parameters: int,
    *,
    num_ranks: int,
    zero_stage: int,
    param_dtype: str,
    gradient_dtype: str | None = None,
    optimizer_offload: bool = False,
    on_cpu: bool = True,
) -> MemoryEstimate:
    """The memory that a rank needs beside activations.

    With A parameters of which T are trained, N ranks, w bytes a weight and g bytes a gradient (4 for fp32, 2 for
    bf16 and fp16), ZeRO stage z:

        weights          = w·A           divided by N from z = 3 on
        gradients        = g·T           divided by N from z = 2 on
        optimizer state  = (m + 4·k)·T   divided by N from z = 1 on
                           m = 4 for the fp32 master copy; 0 where the weights themselves are it (fp32, z = 0)
                           k = 2 fp32 numbers that Adam keeps for a weight

    An offloaded optimizer keeps its state in the host's memory, with two fp32 gradients and a copy of the weights
    ((8 + w)·T, divided by N from z = 1 on) beside it. With z = 1 it takes gradients off the device at the end of a
    backward pass alone, so they are all there by then; from z = 2 on as they come. The allocator's slack comes on top.

    Dtypes are "fp32", "bf16", "fp16"; `gradient_dtype` is `param_dtype` when not given.
    """
    weight_bytes = BYTES_OF_DTYPE[param_dtype]
    gradient_bytes = BYTES_OF_DTYPE[gradient_dtype or param_dtype]
    weights_are_master = param_dtype == "fp32" and zero_stage == 0
    state_bytes = (0 if weights_are_master else 4) + 4 * ADAM_NUMBERS_A_WEIGHT

    def share(num_bytes: int, from_stage: int) -> int:
        return -(-num_bytes // num_ranks) if zero_stage >= from_stage else num_bytes

    optimizer_bytes = share(state_bytes * num_trainable_parameters, from_stage=1)
    on_host = share((8 + weight_bytes) * num_trainable_parameters, from_stage=1)
    gradients_bytes = share(gradient_bytes * num_trainable_parameters, from_stage=2)
    bucket = min(num_trainable_parameters, BUCKET_NUMBERS) if on_cpu or not num_trainable_parameters else BUCKET_NUMBERS
    gathered = weight_bytes * min(num_parameters, LIVE_NUMBERS) if zero_stage == 3 else 0
    sums_in_bf16_optimizer = zero_stage == 1 and param_dtype == "bf16" and not optimizer_offload
    sent = 0 if sums_in_bf16_optimizer or zero_stage == 0 else _sent_bytes(zero_stage, weight_bytes, gradient_bytes)
    flat_gradient = 0 if sums_in_bf16_optimizer else share(4 * num_trainable_parameters, from_stage=1)
    if zero_stage == 0 and param_dtype != "fp32":
        flat_gradient *= 2
    elif zero_stage == 0 and num_ranks == 1:
        flat_gradient = 0
    fills = sent > 0 and on_cpu and zero_stage < 3  # a bucket that is made for each step; ZeRO-3 keeps one for good
    at_update = max(sent * bucket, flat_gradient) if zero_stage < 3 else sent * bucket + flat_gradient
    return MemoryEstimate(
        weights_bytes=share(weight_bytes * num_parameters, from_stage=3),
        gradients_bytes=0 if optimizer_offload and zero_stage > 1 else gradients_bytes,
        optimizer_bytes=0 if optimizer_offload else optimizer_bytes,
        beside_bytes=gathered + (0 if fills or not sent else weight_bytes * bucket),
        update_bytes=gathered + (sent * bucket if optimizer_offload else at_update),
        host_bytes=optimizer_bytes + on_host if optimizer_offload else 0,
        save_bytes=share((4 + 4 * ADAM_NUMBERS_A_WEIGHT) * num_trainable_parameters, from_stage=0),
        waiting_bytes=weight_bytes if fills else 0,
    )


def _sent_bytes(zero_stage: int, weight_bytes: int, gradient_bytes: int) -> int:
    """Of a number on its way to other ranks: gradients, the bucket that they stand in, a copy as they are added up."""
    if zero_stage == 3:
        return weight_bytes + (gradient_bytes if gradient_bytes != weight_bytes else 0)
    if zero_stage == 2:
        return 2 * weight_bytes + (gradient_bytes if gradient_bytes != weight_bytes else 0)
    return weight_bytes
