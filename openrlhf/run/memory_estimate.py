"""The memory of a rank, from the model's configuration alone: before a weight is read, or without any."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from openrlhf.checkpoint.host_memory import bytes_left
from openrlhf.config import DeepspeedConfig, DPOConfig, TrainingConfig
from openrlhf.config.checks import sums_in_another_dtype
from openrlhf.engine.devices import free_device_bytes
from openrlhf.engine.engine_config import gradient_dtype
from openrlhf.engine.launchers import num_local_ranks
from openrlhf.engine.state_memory import MemoryEstimate, estimate_memory
from openrlhf.errors import UserError
from openrlhf.models.activation_memory import ModelMemory, memory_of
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import keeps_scores
from openrlhf.models.limits import check_positions, check_vocabulary
from openrlhf.objectives.reference import FrozenReference
from openrlhf.run.reference import reference_of

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
SHARE_TO_FILL = 0.9  # the allocator's slack takes the rest
_BYTES_OF_FOUR_BITS = 0.55
LARGEST_ERROR = 1.15  # of the estimate, see benchmarks/results/memory.md


ZeroStage = Literal[0, 1, 2, 3]
ZERO_STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class Way:
    """A way to spend less memory: what a run may choose without changing what it computes."""

    zero_stage: ZeroStage
    offload: bool
    recomputes: bool

    def flags(self) -> str:
        """As the command line says it."""
        words = [f"--ds.zero_stage {self.zero_stage}"]
        words += ["--ds.adam_offload"] if self.offload else []
        return " ".join([*words, "--model.gradient_checkpointing_enable"] if self.recomputes else words)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank that computes one way."""

    states: MemoryEstimate
    activation_bytes: int

    @property
    def device_bytes(self) -> int:
        """The most that its device holds."""
        return self.states.peak_bytes(self.activation_bytes)

    def least_bytes(self, memory: Memory) -> int:
        """Without room to spare: of the device, and on a CPU of the host too."""
        return self.device_bytes + (self.states.host_bytes if memory.on_cpu else 0)

    def fits(self, memory: Memory) -> bool:
        """With some room to spare; on a CPU device and host are one. A save's copy is left out: it waits for room."""
        on_host = memory.host_bytes is None or self.states.host_bytes <= SHARE_TO_FILL * memory.host_bytes
        return on_host and self.least_bytes(memory) <= SHARE_TO_FILL * memory.device_bytes


@dataclass(frozen=True)
class Memory:
    """What a rank may fill."""

    on_cpu: bool
    device_bytes: int
    host_bytes: int | None = None  # None: not known

    @classmethod
    def free_here(cls, on_cpu: bool) -> Memory | None:
        """A rank's part of what this machine has free; None where the system does not say."""
        ranks_here = num_local_ranks(os.environ)
        on_host, on_device = bytes_left(), free_device_bytes()
        host_bytes = None if on_host is None else on_host // ranks_here
        device_bytes = host_bytes if on_cpu else on_device
        return None if device_bytes is None else cls(on_cpu, device_bytes, host_bytes)

    @classmethod
    def least(cls, of_ranks: Sequence[Memory | None]) -> Memory | None:
        """As much as every rank has; None where one does not know."""
        known = [one for one in of_ranks if one is not None]
        if len(known) < len(of_ranks):
            return None
        on_host = [one.host_bytes for one in known if one.host_bytes is not None]
        return cls(known[0].on_cpu, min(one.device_bytes for one in known), min(on_host, default=None))

    def over(self, factor: float) -> Memory:
        """So many times less."""
        on_host = None if self.host_bytes is None else int(self.host_bytes / factor)
        return Memory(self.on_cpu, int(self.device_bytes / factor), on_host)


class RunMemory:
    """Of a run, by the way that it takes."""

    def __init__(self, config: TrainingConfig, facts: ModelFacts, num_ranks: int, on_cpu: bool):
        self._config, self._facts, self.num_ranks = config, facts, num_ranks
        self.on_cpu, self._num_frozen = on_cpu, _num_frozen(config)
        self._longest = config.data.max_len  # tokens of a sample, at the most that is known

    @functools.cache  # noqa: B019  one a run
    def model(self, recomputes: bool) -> ModelMemory | None:
        """None where it does not run without its numbers."""
        lora, trained = self._config.ds.lora, self._config.model.trainable
        return memory_of(self._facts, lora, recomputes, trained, self._keeps_scores)

    @functools.cached_property
    def _keeps_scores(self) -> bool:
        ds, device_type = self._config.ds, "cpu" if self.on_cpu else "cuda"
        return keeps_scores(ds.attn_implementation, device_type, ds.packing_samples, ds.ring_attn_size, self._facts)

    def of(self, way: Way, num_tokens: int) -> RankMemory | None:
        """Args: num_tokens: of a rank's micro-batch."""
        model, ds = self.model(way.recomputes), self._config.ds
        if model is None:
            return None
        ds = replace(ds, zero_stage=way.zero_stage, adam_offload=way.offload)
        states = estimate_memory(
            model.num_parameters - model.num_shared_out + model.num_shared_out // ds.tensor_parallel_size,
            model.num_trained - model.num_trained_shared_out + model.num_trained_shared_out // ds.tensor_parallel_size,
            num_ranks=self.num_ranks // ds.tensor_parallel_size,
            zero_stage=way.zero_stage,
            param_dtype=ds.param_dtype,
            gradient_dtype=gradient_dtype(ds),
            optimizer_offload=way.offload,
            on_cpu=self.on_cpu,
        )
        frozen_bytes = self._num_frozen * states.weights_bytes
        if ds.load_in_4bit:  # half a byte a weight of the layers, and its scales; of a frozen model's too
            saved_bytes = model.weight_bytes - _BYTES_OF_FOUR_BITS
            frozen_bytes -= int(saved_bytes * model.num_linear * (1 + self._num_frozen))
        states = replace(states, weights_bytes=states.weights_bytes + frozen_bytes)
        num_pairs = num_tokens * min(num_tokens, self._longest)
        return RankMemory(states, model.activation_bytes(num_tokens, self.on_cpu, states.waiting_bytes, num_pairs))

    def check(self, ways: Sequence[Way], num_tokens: int, of_what: str) -> None:
        """Raises UserError as `check_in`, by what this machine has free."""
        self.check_in(Memory.free_here(self.on_cpu), ways, num_tokens, of_what)

    def check_in(self, memory: Memory | None, ways: Sequence[Way], num_tokens: int, of_what: str) -> None:
        """Raises UserError where the memory has no room for a micro-batch of so many tokens, any of the ways.

        An estimate that is off by its worst must not end a run: it has to be well beyond what is free.

        Args: memory: of a rank; None: not known. of_what: what has so many tokens, after "… has no room for".
        """
        if memory is None:
            return
        for way in ways:
            needed = self.of(way, num_tokens)
            if needed is None or needed.least_bytes(memory) <= LARGEST_ERROR * memory.device_bytes:
                return
        needed = self.of(self.leanest(ways, num_tokens, memory), num_tokens)
        assert needed is not None, "asked before"
        others = [way for way in self.ways_to_recommend() if self.fits(way, num_tokens, memory)]
        less = "more ranks would take less; of what changes it, adapters (--ds.lora.rank)"
        remedy = f"{others[0].flags()} would fit" if others else less
        needs, free = size_text(needed.least_bytes(memory)), size_text(memory.device_bytes)
        raise UserError(
            f"this run needs about {needs} on each rank, and {free} are free: it has no room for {of_what}. Of what "
            f"changes no result, {remedy}."
        )

    def leanest(self, ways: Sequence[Way], num_tokens: int, memory: Memory) -> Way:
        """The way that takes least; the first where nobody can tell."""
        needed = {way: found for way in ways if (found := self.of(way, num_tokens)) is not None}
        return min(needed, key=lambda way: needed[way].least_bytes(memory), default=ways[0])

    def check_data(self, ways: Sequence[Way], data: Any) -> None:
        """Raises UserError where this machine has no room for the longest unit, or the model too few positions."""
        row, config = int(data.num_tokens.argmax()), self._facts.config
        num_tokens, name = unit_tokens(data, row), data.sample_name(row)
        self.check(ways, num_tokens // self._config.ds.ring_attn_size, f"{name} of {num_tokens:,} tokens")
        check_positions(config, int(data.num_tokens[row]), name)
        check_vocabulary(config, 0, data.report.largest_id, data.report.sources[0].name)

    def fits(self, way: Way, num_tokens: int, memory: Memory) -> bool:
        """Whether a rank has room for micro-batches of so many tokens; no where nobody can tell."""
        needed = self.of(way, num_tokens)
        return needed is not None and needed.fits(memory)

    def ways_to_recommend(self) -> Iterator[Way]:
        """Those of `ways` whose stage gains something over a lower one."""
        for way in self.ways():
            if way.zero_stage >= lowest_stage(self._config.ds, self.num_ranks, way.offload):
                yield way

    def ways(self) -> Iterator[Way]:
        """All that the settings leave open, the fastest first: what is offloaded or recomputed costs time."""
        for offload in (False, True):
            for recomputes in (False, True):
                for stage in ZERO_STAGES:
                    if stage or not offload:
                        yield Way(stage, offload, recomputes)


def lowest_stage(ds: DeepspeedConfig, num_ranks: int, offload: bool) -> int:
    """The lowest stage of ZeRO to be recommended.

    In float32 each stage holds the weights twice, which is for nothing on a single rank. In 16 bits they are held twice
    without ZeRO too, and gradients are summed in 16 bits. An offloaded optimizer leaves all gradients on the device
    until a backward pass ends below stage 2.
    """
    if offload:
        return 2
    return 0 if num_ranks == 1 and ds.param_dtype == "fp32" and not sums_in_another_dtype(ds) else 1


def way_of(config: TrainingConfig) -> Way:
    """The way that the settings say."""
    return Way(config.ds.zero_stage, config.ds.adam_offload, config.model.gradient_checkpointing_enable)


def _num_frozen(config: TrainingConfig) -> int:
    """Models on the device beside the trained one, as large."""
    if not isinstance(config, DPOConfig) or config.ref.offload:
        return 0
    return int(isinstance(reference_of(config), FrozenReference))


def longest_tokens(config: TrainingConfig, data: Any) -> int:
    """Of a micro-batch, on a rank: the budget, or as many of the longest units as stand in it."""
    train, ds = config.train, config.ds
    longest = unit_tokens(data, int(data.num_tokens.argmax()))
    return train.max_tokens_per_micro_batch or -(-train.micro_batch_size * longest // ds.ring_attn_size)


def unit_tokens(data: Any, row: int) -> int:
    """Tokens of all sequences of a row's unit."""
    return int(sum(data.unit_lengths(row)) if hasattr(data, "unit_lengths") else data.num_tokens[row])


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 512 B, 3.4 MiB, 17.0 GiB."""
    unit, unit_bytes = unit_of(size_bytes)
    return f"{size_bytes} B" if unit == "B" else f"{size_bytes / unit_bytes:.1f} {unit}"


def unit_of(size_bytes: int) -> tuple[str, int]:
    """(the name of the unit that such sizes are told in, its bytes)"""
    power = min(max(size_bytes, 1).bit_length() - 1, 49) // 10
    return UNITS[power], 1024**power
