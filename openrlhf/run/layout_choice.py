"""The layout of a run: what its settings leave open is chosen from the model, the device, the memory and the lengths.

It changes no result. `open_layout` decides what the model decides, before data are prepared; `OpenLayout.choose` the
rest, when the ranks have joined. Behind these two no setting is `auto`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.batching import StepLayout
from openrlhf.config.checks import LAYOUT_CHECKS, sums_in_another_dtype
from openrlhf.config.schema import AUTO, left_open, with_values, without_auto
from openrlhf.engine.devices import usable_device_type
from openrlhf.engine.model_internals import values_in_layers
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import PLAIN
from openrlhf.parallel.collectives import gather_objects
from openrlhf.run.builders import check_layout, check_way
from openrlhf.run.lengths import Lengths
from openrlhf.run.memory_estimate import LARGEST_ERROR, ZERO_STAGES, Memory, RunMemory, Way, lowest_stage, way_of

MOST_TOKENS_CPU = 8_192  # a micro-batch of more is no faster
MOST_TOKENS_CPU_FLOAT32 = 4_096  # likewise; its activations take twice as much
MOST_TOKENS_ACCELERATOR = 32_768  # likewise, as far as anybody guesses: it was never measured
MODEST_TOKENS = 2_048  # products of so many rows are fast; taken where nobody can tell the memory
_LEAST_TOKENS_TRIED = 512
_AS_SET = "as set"

_PACKS, _STAGE, _RECOMPUTES, _STRIDE, _SAMPLES, _TOKENS = (
    "ds.packing_samples",
    "ds.zero_stage",
    "model.gradient_checkpointing_enable",
    "ds.ring_head_stride",
    "train.micro_batch_size",
    "train.max_tokens_per_micro_batch",
)


@dataclass(frozen=True)
class ChosenLayout:
    """Settings of which none is `auto`.

    Attributes:
        config: the command's.
        memory: of the run.
        reasons: (what, why) of each part of the layout.
        candidates: the ways to compute a step that are worth a trial, the chosen one first; each fits the memory.
        has_chosen_tokens: of a micro-batch.
    """

    config: Any
    memory: RunMemory
    reasons: tuple[tuple[str, str], ...]
    candidates: tuple[StepLayout, ...] = ()
    has_chosen_tokens: bool = False

    @property
    def config_again(self) -> Any:
        """For a file that runs it again: a chosen budget may have no room for `--data.max_len`, a given one must."""
        return with_values(self.config, {_TOKENS: AUTO}) if self.has_chosen_tokens else self.config

    def in_words(self) -> str:
        """For the start table."""
        by_reason = itertools.groupby(sorted(self.reasons, key=lambda one: one[1] == _AS_SET), lambda one: one[1])
        return "; ".join(f"{', '.join(what for what, _ in group)}: {reason}" for reason, group in by_reason)


@dataclass(frozen=True)
class OpenLayout:
    """What is known before the data are.

    Attributes:
        asked: the settings as they were given.
        config: the same, and what was `auto` is as it will be, or, where that is not known yet, as it may be.
        memory: of the run.
        ways: those that the settings and the model leave, the fastest first.
        reasons: by setting, of what is decided.
        is_plain: nothing is left to choose.
    """

    asked: Any
    config: Any
    memory: RunMemory
    ways: tuple[Way, ...]
    reasons: Mapping[str, str]
    is_plain: bool = False

    @property
    def may_pad(self) -> bool:
        """Whether it packs, and nobody has said so."""
        return self.config.ds.packing_samples and _PACKS in left_open(self.asked) and self.config.ds.ring_attn_size == 1

    @property
    def may_recompute(self) -> bool:
        """Whether nobody has said if activations are recomputed: they are where memory is short."""
        return _RECOMPUTES in left_open(self.asked)

    def padded(self) -> OpenLayout:
        reasons = {**self.reasons, _PACKS: "this model cannot pack"}
        return replace(self, config=with_values(self.config, {_PACKS: False}), reasons=reasons)

    def check_data(self, data: Sequence[Any]) -> None:
        """Raises UserError where no way has room for the longest unit, or the model too few positions."""
        for one in filter(None, data):
            self.memory.check_data(self.ways, one)

    def choose_together(self, data: Sequence[Any], group: ProcessGroup | None) -> ChosenLayout:
        """By the rank with the least memory; all ranks of the group call.

        Args: data: as of `Lengths.of`.
        """
        free = Memory.least(gather_objects(Memory.free_here(self.memory.on_cpu), group))
        return self.choose(Lengths.of(data, self.config.train.batch_size, self.config.ds.packing_samples), free)

    def choose(self, lengths: Lengths, free: Memory | None) -> ChosenLayout:
        """Args: free: what the rank with the least memory has; None: not known."""
        if self.is_plain:
            return ChosenLayout(self.config, self.memory, tuple(_told(self.config, self.reasons)))
        part = lengths.of_rank(self.config.ds, self.memory.num_ranks)
        room, train, names = _Room(self.memory, free), self.config.train, left_open(self.asked)
        most = most_tokens(self.config.ds, self.memory.on_cpu)
        way, reasons = room.way(self.ways, self._tokens_needed(names, part))
        values: dict[str, Any] = {_STAGE: way.zero_stage, _RECOMPUTES: way.recomputes}
        candidates: tuple[StepLayout, ...] = ()
        if _TOKENS in names:
            values[_TOKENS], reasons[_TOKENS] = room.budget(way, part, most)
            candidates = _candidates(values[_TOKENS], part.longest, way.recomputes)
        elif _SAMPLES in names and train.max_tokens_per_micro_batch is None:
            tokens, reasons[_SAMPLES] = room.budget(way, part, train.micro_batch_size * part.longest)
            values[_SAMPLES] = max(1, tokens // part.longest)
        config = with_values(self.config, values)
        reasons = {name: why for name, why in {**self.reasons, **reasons}.items() if name in names}
        return ChosenLayout(config, self.memory, tuple(_told(config, reasons)), candidates, _TOKENS in names)

    def _tokens_needed(self, names: frozenset[str], part: Lengths) -> tuple[int, ...]:
        """Of a micro-batch for which a way must have room; the second where no way has room for the first."""
        train = self.config.train
        if _TOKENS in names:
            return max(part.longest, min(part.step, MODEST_TOKENS)), part.longest
        if train.max_tokens_per_micro_batch is not None:
            return (train.max_tokens_per_micro_batch,)
        return (part.longest * (1 if _SAMPLES in names else train.micro_batch_size),)


Check = Callable[[Any, ModelFacts], None]


def open_layout_here(asked: Any, facts: ModelFacts) -> OpenLayout:
    """On the ranks that were started. Raises UserError as `open_layout`, and where memory is too small for any way."""
    num_ranks, on_cpu = int(os.environ.get("WORLD_SIZE", "1")), usable_device_type() == "cpu"
    layout = open_layout(asked, facts, num_ranks, on_cpu)
    layout.memory.check(layout.ways, 0, "a single token")
    return layout


def open_layout(asked: Any, facts: ModelFacts, num_ranks: int, on_cpu: bool, check: Check = check_layout) -> OpenLayout:
    """Raises UserError where nothing that the settings leave open makes them possible.

    Args:
        num_ranks: of the whole run.
        check: raises UserError where a model cannot be laid out as settings without `auto` say.
    """
    names, why_plain = left_open(asked), _reason_for_plain(asked)
    plain = without_auto(asked)
    if why_plain or not names:
        _check_settings(plain, num_ranks)
        check(plain, facts)
        memory, reasons = RunMemory(plain, facts, num_ranks, on_cpu), dict.fromkeys(names, why_plain)
        return OpenLayout(asked, plain, memory, (way_of(plain),), reasons, is_plain=True)
    if _STRIDE in names and asked.ds.ring_attn_size > 1:
        plain = with_values(plain, {_STRIDE: _num_key_heads(facts)})
    packs, why_packs = _packs(asked, facts) if _PACKS in names else ([asked.ds.packing_samples], "")
    of_packs = [with_values(plain, {_PACKS: one}) for one in packs]
    ways = tuple(_ways(of_packs[0], names, facts, num_ranks))
    fastest = {_STAGE: ways[0].zero_stage, _RECOMPUTES: ways[0].recomputes}
    config = next(_possible([with_values(one, fastest) for one in of_packs], lambda one: check(one, facts)))
    if not config.ds.packing_samples and len(packs) > 1:
        why_packs = "this model cannot pack"
    reasons = {_PACKS: why_packs, _STRIDE: "fewer messages"}
    return OpenLayout(asked, config, RunMemory(config, facts, num_ranks, on_cpu), ways, reasons)


def roomy_layout(asked: Any, data: Any, num_ranks: int) -> Any:
    """The settings as a model that can pack has them where memory is ample: for who has no model at hand."""
    names, config = left_open(asked), without_auto(asked)
    if _PACKS in names and not _reason_for_plain(asked):
        config = with_values(config, {_PACKS: config.ds.attn_implementation not in PLAIN})
    if _TOKENS in names and not _reason_for_plain(asked):
        lengths = Lengths.of([data], config.train.batch_size, config.ds.packing_samples)
        most = most_tokens(config.ds, on_cpu=usable_device_type() == "cpu")
        tokens, _ = budget_wanted(lengths.of_rank(config.ds, num_ranks), most)
        config = with_values(config, {_TOKENS: tokens})
    return config


def most_tokens(ds: Any, on_cpu: bool) -> int:
    """Of a micro-batch: more gains nothing."""
    if not on_cpu:
        return MOST_TOKENS_ACCELERATOR
    return MOST_TOKENS_CPU_FLOAT32 if ds.param_dtype == "fp32" else MOST_TOKENS_CPU


def budget_wanted(of_rank: Lengths, most: int) -> tuple[int, str]:
    """(tokens of a micro-batch where memory does not matter, why)"""
    tokens, why = min((of_rank.step, "a rank's whole step"), (most, "more is no faster"))
    return (tokens, why) if tokens > of_rank.longest else (of_rank.longest, "the longest sample")


def _reason_for_plain(config: Any) -> str:
    """Why a micro-batch must stay as it is without a choice; '' where nothing hangs on it."""
    return "the balancing loss counts each micro-batch" if config.model.aux_loss_coef else ""


def _packs(config: Any, facts: ModelFacts) -> tuple[list[bool], str]:
    """(whether samples are packed, the better first, the reason for the better)"""
    if config.ds.ring_attn_size > 1:
        return [True], "ranks share packs"
    if config.ds.attn_implementation in PLAIN:
        return [False], f"{config.ds.attn_implementation} is slow in packs"
    if facts.model_class is None:
        return [False], "the model brings its own code"
    return [True, False], "nothing is padded"


def _ways(config: Any, names: frozenset[str], facts: ModelFacts, num_ranks: int) -> Iterator[Way]:
    """Those that settings and model allow, the fastest first. Raises UserError where there is none."""

    def check(one: Any) -> None:
        _check_settings(one, num_ranks)
        check_way(one, facts)

    recomputes = (False, True) if _RECOMPUTES in names else (config.model.gradient_checkpointing_enable,)
    stages = _stages(config, num_ranks) if _STAGE in names else (config.ds.zero_stage,)
    values = [{_RECOMPUTES: one, _STAGE: stage} for one, stage in itertools.product(recomputes, stages)]
    return map(way_of, _possible([with_values(config, one) for one in values], check))


def _stages(config: Any, num_ranks: int) -> Sequence[int]:
    """Of ZeRO, the fastest first."""
    if config.optim == "muon":  # the stage changes its result: see `config_for_muon`, which says where it is clipped
        if config.ds.deepcompile:
            return (2,)
        clips_in_zero_1 = config.ds.param_dtype == "bf16" and config.ds.grad_accum_dtype in (None, "fp32")
        return (1,) if clips_in_zero_1 or sums_in_another_dtype(config.ds) else (0,)
    return ZERO_STAGES[lowest_stage(config.ds, num_ranks, config.ds.adam_offload) :]


def _check_settings(config: Any, num_ranks: int) -> None:
    if problems := [problem for check in LAYOUT_CHECKS for problem in check(config, num_ranks)]:
        raise UserError(*problems)


def _possible(configs: Sequence[Any], check: Callable[[Any], None]) -> Iterator[Any]:
    """Those that `check` lets pass. Raises UserError with the problems of each where it lets none pass."""
    refusals = []
    for config in configs:
        try:
            check(config)
        except UserError as error:
            refusals.append(error)
        else:
            yield config
    if len(refusals) == len(configs):
        raise UserError(*dict.fromkeys(problem for error in refusals for problem in error.problems))


def _num_key_heads(facts: ModelFacts) -> int:
    """Of the layer with the most: every layer then sends all of its heads at once."""
    config = facts.config.get_text_config()
    numbers = [values_in_layers(config, name) for name in ("num_key_value_heads", "num_attention_heads")]
    return next((max(filter(None, found)) for found in numbers if any(found)), 1)


class _Room:
    """What fits into the memory of every rank; an estimate may be off by `LARGEST_ERROR`."""

    def __init__(self, memory: RunMemory, free: Memory | None):
        self._memory, self._free = memory, free

    def way(self, ways: Sequence[Way], tokens_needed: Sequence[int]) -> tuple[Way, dict[str, str]]:
        """The fastest that has room for a micro-batch of so many tokens, and the reasons for its parts."""
        if not self._is_known(ways[0]):
            return ways[0], dict.fromkeys((_STAGE, _RECOMPUTES), "the memory is not known")
        fitting = [way for tokens in tokens_needed for way in ways if self._holds(way, tokens)]
        assert self._free is not None, "it is known"
        if not fitting:
            leanest = self._memory.leanest(ways, tokens_needed[-1], self._free)
            return leanest, dict.fromkeys((_STAGE, _RECOMPUTES), "nothing surely fits, this takes least")
        way = fitting[0]
        lowest, highest = min(one.zero_stage for one in ways), max(one.zero_stage for one in ways)
        known = {0: "one rank splits nothing", 1: "states fit"}
        reasons = known | ({2: "gradients are offloaded too"} if way.offload else {}) if lowest < highest else {}
        why_lowest = reasons.get(lowest, "other settings need it")
        return way, {
            _STAGE: why_lowest if way.zero_stage == lowest else "less does not fit",
            _RECOMPUTES: "there is no room to keep them" if way.recomputes else "there is room",
        }

    def budget(self, way: Way, of_rank: Lengths, most: int) -> tuple[int, str]:
        """(tokens of a micro-batch, why). Memory cuts it to powers of two: a resume then finds the same one."""
        if not self._is_known(way):
            return budget_wanted(of_rank, MODEST_TOKENS)[0], "the memory is not known"
        wanted, why = budget_wanted(of_rank, most)
        if self._holds(way, wanted):
            return wanted, why
        for power in range(wanted.bit_length() - 1, of_rank.longest.bit_length() - 1, -1):
            if of_rank.longest <= 2**power < wanted and self._holds(way, 2**power):
                return 2**power, "as memory allows"
        return of_rank.longest, "the longest sample"

    def _is_known(self, way: Way) -> bool:
        return self._free is not None and self._memory.of(way, 0) is not None

    def _holds(self, way: Way, num_tokens: int) -> bool:
        return self._free is not None and self._memory.fits(way, num_tokens, self._free.over(LARGEST_ERROR))


def _candidates(tokens: int, longest: int, recomputes: bool) -> tuple[StepLayout, ...]:
    """Smaller micro-batches stay in a processor's caches, and are cut from no fewer samples."""
    smaller = [tokens // parts for parts in (2, 4) if tokens // parts >= max(longest, _LEAST_TOKENS_TRIED)]
    return tuple(StepLayout(one, recomputes) for one in (tokens, *smaller)) if smaller else ()


def _told(config: Any, reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(what, why) of each part; what was not left open is as it was set."""
    tokens, ring = config.train.max_tokens_per_micro_batch, config.ds.ring_attn_size
    size = f"{tokens:,} tokens" if tokens else f"{config.train.micro_batch_size:,} samples"
    parts = {
        _PACKS: "packed" if config.ds.packing_samples else "padded",
        _TOKENS if tokens else _SAMPLES: f"micro-batches of {size}",
        _STAGE: f"ZeRO {config.ds.zero_stage}",
        _RECOMPUTES: f"activations {'recomputed' if config.model.gradient_checkpointing_enable else 'kept'}",
    }
    if ring > 1:
        parts[_STRIDE] = f"key heads at once in the ring {config.ds.ring_head_stride}"
    return ((what, reasons.get(name, _AS_SET)) for name, what in parts.items())
