"""Finds out, before training, whether a model computes the samples of a micro-batch as it computes each of them alone.

Two samples of a few tokens are computed alone, without padding or position ids, as plain transformers does; then in one
pack or one padded batch, on the way of a training step; then again with another first sample. The second one may not
move.

Shapes: N tokens, K numbers that stand for a hidden state (see `PreparedModel.probe_states`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PretrainedConfig

from openrlhf.batching.micro_batch import make_micro_batch
from openrlhf.batching.unit import TokenSequence, Unit
from openrlhf.engine.model_internals import attention_name
from openrlhf.errors import UserError, first_line_of, is_out_of_memory
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import CannotPack, choose_attention
from openrlhf.parallel.collectives import is_lost_rank

if TYPE_CHECKING:
    from openrlhf.models.prepared_model import PreparedModel

_NUM_WORDS = 16
_NUM_TOKENS = 6  # of a sample, for each rank that shares it: few, so that most of them see what leaks in
_ROUNDING = {torch.float16: 0.1, torch.bfloat16: 0.1}  # relative: a router near a tie takes another expert
_ROUNDING_OF_WIDE_DTYPES = 5e-3


def check_layout(
    model: PreparedModel, is_packed: bool, sequence_group: ProcessGroup | None, shares_prompts: bool = False
) -> None:
    """Raises UserError, of packs CannotPack, for a model that lets samples of a micro-batch see one another, or
    miscounts their positions.

    Every rank calls. Random numbers, gradients and training modes stay as they are.

    Args:
        is_packed: packs are looked at, else padded batches.
        sequence_group: the ranks that share a pack; None: none do.
        shares_prompts: the samples begin alike, and what they begin with stands in the pack once.
    """
    probe = _Probe(model, is_packed, sequence_group, shares_prompts)
    with looking_only(model.scorer):
        reason = probe.reason_against()
        if reason is None:
            return
        instead = _attention_that_works(model, probe) if probe.is_plain_pack else None
    name, attention = type(model.scorer.base_model).__name__, attention_name(model.config)
    if not is_packed:
        raise UserError(
            f"{name} cannot be trained on padded batches with the attention {attention}: {reason}. Give "
            "--train.micro_batch_size 1 without --train.max_tokens_per_micro_batch: nothing is padded then."
        )
    if shares_prompts:
        raise UserError(
            f"{name} cannot compute a prompt once for two answers with the attention {attention}: {reason}. Give "
            "--ds.share_prompts false."
        )
    raise CannotPack(
        f"{name} cannot be trained on packed samples with the attention {attention}: {reason}. "
        + (f"Use --ds.attn_implementation {instead}, or remove" if instead else "Remove")
        + " --ds.packing_samples (and --ds.ring_attn_size) to train it on padded batches."
    )


class _Probe:
    def __init__(
        self, model: PreparedModel, is_packed: bool, sequence_group: ProcessGroup | None, shares_prompts: bool
    ):
        self._model, self._is_packed, self._group = model, is_packed, sequence_group
        self._shares_prompts = shares_prompts
        self.is_plain_pack = is_packed and sequence_group is None and not shares_prompts
        self._device = model.device
        self._ring_rank = 0 if sequence_group is None else dist.get_rank(sequence_group)
        self._ring_size = 1 if sequence_group is None else dist.get_world_size(sequence_group)
        length = _NUM_TOKENS * self._ring_size
        first, other, second, self._words = _plain_tokens(model.config, 3 * length + _NUM_WORDS).split(
            [length, length, length, _NUM_WORDS]
        )
        second = second[:-2]
        self._samples, self._changed = (first, second), (other, second)
        if shares_prompts:
            prompt, changed = other.repeat(2), first.flip(0)
            first, second, changed = (torch.cat([prompt, ids]) for ids in (first, second, changed))
            self._samples, self._changed = (first, second), (changed, second)

    def reason_against(self) -> str | None:
        """What is wrong with the layout; None where nothing is."""
        rounding = _ROUNDING.get(self._model.scorer.base_model.dtype, _ROUNDING_OF_WIDE_DTYPES)
        # Shapes stay the same: without experts, which take as many tokens as come, nothing is rounded differently.
        strict = rounding if self._model.is_mixture_of_experts else _ROUNDING_OF_WIDE_DTYPES
        row = "pack" if self._is_packed else "padded batch"
        try:
            found, changed = self._together(self._samples), self._together(self._changed)
        except UserError as error:  # our attention lacks the borders of a pack
            return str(error).split(". ")[0]
        except Exception as error:
            if not self.is_plain_pack or is_out_of_memory(error) or is_lost_rank(error):
                raise
            self._alone(self._samples[0])  # a model that fails so, too, tells of its own fault
            return f"it fails in a {row}, by {type(error).__name__}: {first_line_of(error)}".rstrip(". ")
        if self._moves(changed[1][1], found[1][1], strict):
            return f"in a {row} the hidden states of a sample move when the sample before it changes"
        for ids, (places, states) in zip(self._samples, found, strict=True):
            if self._moves(states, self._alone(ids)[places], rounding):
                return f"in a {row} a sample gets other hidden states than alone"
        return None

    def _alone(self, ids: Tensor) -> Tensor:
        """(N, K) of a sample that is a batch by itself."""
        ids = ids[None].to(self._device)
        return self._states(
            torch.arange(ids.shape[1], device=self._device), input_ids=ids, attention_mask=ids.new_ones(ids.shape)
        )

    def _together(self, samples: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Of each sample: the places (N,) of the tokens that this rank holds, and (N, K) for their states."""
        sequences = [TokenSequence(ids, torch.ones(len(ids))) for ids in samples]
        alone = [Unit((sequence,), "probe") for sequence in sequences]
        units = [Unit(tuple(sequences), "probe")] if self._shares_prompts else alone
        batch = make_micro_batch(units, self._is_packed, shares_prompts=self._shares_prompts)
        batch = batch.share(self._ring_rank, self._ring_size).to(self._device)
        states = self._states(
            batch.target_index,
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            cu_seqlens=batch.cu_seqlens,
            max_seqlen=batch.max_seqlen,
            prompt_of=batch.prompt_of,
            sequence_group=self._group,
        )
        places = batch.position_ids.flatten()[batch.target_index]
        is_of = [batch.target_sequence == number for number in range(len(samples))]
        return [(places[mine], states[mine]) for mine in is_of]

    def _states(self, index: Tensor, **inputs: Any) -> Tensor:
        return self._model.probe_states(index, self._words.to(self._device), **inputs)

    def _moves(self, found: Tensor, expected: Tensor, tolerance: float) -> bool:
        """Whether most of a sample's tokens on some rank differ, relative to the size of their states."""
        distance = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-9)
        typical = distance.nan_to_num(nan=torch.inf).median() if len(distance) else distance.new_zeros(())
        if self._group is not None:
            dist.all_reduce(typical, dist.ReduceOp.MAX, group=self._group)
        return typical.item() > tolerance


@contextmanager
def looking_only(model: nn.Module) -> Iterator[None]:
    """Without gradients, dropout or compilation; random numbers and modes are afterwards as they were."""
    modules, device = list(model.modules()), next(model.parameters()).device
    modes = [module.training for module in modules]
    devices = [device] if device.type == "cuda" else []
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _attention_that_works(model: PreparedModel, probe: _Probe) -> str | None:
    """The name of an attention that keeps the samples of a pack apart; None where none does."""
    base_model: Any = model.scorer.base_model
    own = attention_name(model.config)
    facts = ModelFacts(type(base_model), base_model.config, base_model.dtype)
    for name in ("auto", "sdpa", "eager"):
        try:
            choice = choose_attention(name, model.device.type, packed=True, ring_size=1, model=facts)
            base_model.set_attn_implementation(choice.name)
            if attention_name(model.config) != own and probe.reason_against() is None:
                return name
        except Exception:  # noqa: S112  whatever it is, that attention is none to recommend
            continue
        finally:
            base_model.set_attn_implementation(own)
    return None


def _plain_tokens(config: PretrainedConfig, count: int) -> Tensor:
    """(count,) token ids from all over the vocabulary, without those with a meaning of their own, such as padding."""
    text_config = config.get_text_config()
    fields = {**config.to_dict(), **text_config.to_dict()}
    named = [value for name, value in fields.items() if name.endswith(("token_id", "token_index"))]
    special = {one for value in named for one in (value if isinstance(value, list | tuple) else [value])}
    ids = torch.linspace(0, text_config.vocab_size - 1, 2 * count + 20).long().unique()
    plain = [one for one in ids.tolist() if one not in special]
    return torch.tensor(plain).repeat(count // len(plain) + 1)[:count]
