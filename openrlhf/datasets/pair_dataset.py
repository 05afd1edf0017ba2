"""PairDataset: prepared pairs of answers as units of two sequences; RewardDataset: OpenRLHF's way to make one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from openrlhf.batching import TokenSequence, Unit, pads_alone
from openrlhf.config import DataConfig, PairDataConfig, from_namespace
from openrlhf.config.schema import Command, Root
from openrlhf.config.settings import free
from openrlhf.config.synonyms import COMMON_SYNONYMS
from openrlhf.datasets.formats import find_format
from openrlhf.datasets.formats.columns import DEFAULT_INPUT_KEY
from openrlhf.datasets.prepare import prepare_sources
from openrlhf.datasets.prepared import PreparedSamples
from openrlhf.datasets.report import MAX_NAMES, DataReport
from openrlhf.datasets.samples import MARGIN, NO_MARGIN
from openrlhf.datasets.sources.find import open_sources, source_of
from openrlhf.datasets.sources.mixing import parse_probabilities
from openrlhf.errors import UserError

PairTensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class PairDataset(torch.utils.data.Dataset):
    """Pairs of answers to one prompt, as units of two sequences: the chosen answer's, then the rejected one's.

    A sequence is prompt and answer; its loss mask is that of supervised fine-tuning on this answer. The pairs lie in an
    Arrow file that is read by page, so memory does not grow with their number.

    Attributes:
        num_tokens: of each pair's longer sequence, `(len,)` int32.
        num_target_tokens: of both sequences of each pair, `(len,)` int32.
        is_dpo: whether an item ends with the prompt's length in place of the margin.
        fingerprint: changes when the rows, the tokenizer, the template or a setting changes.
        report: counts of the rows and of the pairs made of them.
    """

    is_dpo = False

    def __init__(self, samples: PreparedSamples, tokenizer: Any):
        """`samples`: as a `PairDataConfig` prepares them."""
        self.samples = samples
        self.fingerprint: str = samples.fingerprint
        self.report: DataReport = samples.report
        self._lengths = np.asarray(samples.num_tokens).reshape(-1, 2)  # a line is read in a tenth of a memmap's time
        self.num_tokens: np.ndarray = self._lengths.max(axis=1)
        self.num_target_tokens: np.ndarray = samples.num_target_tokens.reshape(-1, 2).sum(axis=1, dtype=np.int32)
        self._pad_id: int = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self._lengths)

    def unit(self, row: int) -> Unit:
        """The pair with its weight, and the number `margin`, 0 where the row has none. Tensors are int64."""
        first = 2 * int(row)
        chosen, rejected = self.samples.sample(first), self.samples.sample(first + 1)
        sequences = tuple(
            TokenSequence(*(torch.from_numpy(part.astype(np.int64)) for part in (sample.input_ids, sample.loss_mask)))
            for sample in (chosen, rejected)
        )
        return Unit(sequences, self.sample_name(row), chosen.row_weight, {"margin": self.samples.margin(first)})

    def check_margins(self, needs_one: bool = True) -> None:
        """For a loss that takes the margins off.

        Args: needs_one: a row at least must have a margin.

        Raises UserError where rows have what is no margin, which the other losses pass over, or no row has one.
        """
        found, first, num_bad, has_one = list[str](), 0, 0, False
        for of_samples in self.samples.margins():
            of_pairs = of_samples[::2]
            bad = np.flatnonzero(np.isnan(of_pairs))
            found += [self.sample_name(first + place) for place in bad[: MAX_NAMES - len(found)].tolist()]
            num_bad, has_one = num_bad + len(bad), has_one or bool(of_pairs.any())
            first += len(of_pairs)
        if num_bad:
            more = f" and {num_bad - len(found):,} more rows" if num_bad > len(found) else ""
            raise UserError(
                f"{', '.join(found)}{more}: {NO_MARGIN}, and --model.margin_loss_enable reads it: leave it out where "
                "none is known, or leave the flag out."
            )
        if needs_one and not has_one:
            raise UserError(
                f"--model.margin_loss_enable takes off what rows have in a column {MARGIN!r}, and no row has another "
                "margin than 0: add the column, or leave the flag out."
            )

    def unit_lengths(self, row: int) -> tuple[int, int]:
        """Tokens of the chosen answer's sequence, and of the rejected one's."""
        chosen, rejected = self._lengths[int(row)].tolist()
        return chosen, rejected

    def sample_name(self, row: int) -> str:
        """The place that the pair came from, for messages: file and line, or data set and row."""
        table, number = self.samples.origin(2 * int(row))
        return f"{self.samples.table_names[table]}{number}"

    def __getitem__(self, row: int) -> PairTensors:
        """`(chosen_ids, chosen_mask, rejected_ids, rejected_mask, extra)`.

        Ids and attention masks are `(L,)` int64, each pair of them of a length of its own. `extra` is the margin, a
        float32; with `is_dpo` the number of tokens before the first target, an int64. The loss masks are in `unit`.
        """
        unit = self.unit(row)
        chosen, rejected = (sequence.input_ids for sequence in unit.sequences)
        extra = torch.tensor(unit.numbers["margin"], dtype=torch.float32)
        if self.is_dpo:
            extra = torch.stack([sequence.loss_mask.argmax() + 1 for sequence in unit.sequences]).min()
        return chosen, torch.ones_like(chosen), rejected, torch.ones_like(rejected), extra

    @pads_alone
    def collate_fn(self, items: list[PairTensors]) -> PairTensors:
        """Items → the same five, ids and masks `(B, S)` padded on the right, `extra` `(B,)`."""
        *sides, extras = zip(*items, strict=True)
        padded = (
            pad_sequence(list(side), batch_first=True, padding_value=padding)
            for side, padding in zip(sides, (self._pad_id, 0, self._pad_id, 0), strict=True)
        )
        return *padded, torch.stack(extras)  # type: ignore[return-value]  # five of them


@dataclass(frozen=True)
class _DataAlone(Root):
    """What a strategy's settings say of the data, by their meaning in OpenRLHF where `compat` asks for it."""

    command: ClassVar[Command] = Command(synonyms=COMMON_SYNONYMS)
    compat: str | None = free(None, "as of the training, which says what it may be")
    data: PairDataConfig = PairDataConfig()


class RewardDataset(PairDataset):
    """A `PairDataset` by OpenRLHF's signature. `StepWindowLoader` takes it; its items are those of `PairDataset`."""

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        input_template: str | None = None,
        is_dpo: bool = False,
        num_processors: int = 8,
    ):
        """Prepares a `datasets.Dataset` (or any sequence of dicts).

        Args:
            max_length: most tokens that prompt and answer may have; longer pairs are left out, or cut where
                `data.overlong` or `compat` says so.
            strategy: any object whose `args` hold `prompt_key`, `chosen_key`, `rejected_key`, `apply_chat_template`
                and `tokenizer_chat_template` (and further names of `PairDataConfig`), flat or under `args.data`.
            is_dpo: items end with the prompt's length in place of the margin.

        Raises UserError if rows are unusable or no pair is left.
        """
        data = replace(
            from_namespace(_DataAlone, strategy.args).data,
            max_len=max_length,
            input_template=input_template,
            num_processors=num_processors,
            max_samples=None,
        )
        super().__init__(prepare_sources([source_of(dataset)], tokenizer, data), tokenizer)
        self.is_dpo = is_dpo


def holds_pairs(data: DataConfig) -> bool:
    """Whether the first row has the columns of pairs, and fits no format of rows with one answer.

    Raises UserError if a source is not there.
    """
    if data.format != "auto" or data.output_key is not None or data.input_key not in (None, DEFAULT_INPUT_KEY):
        return False
    tables = (table for source in open_sources(data.dataset, data.dataset_split) for table in source.tables)
    row = next((row for table in tables for _, row in table.first_rows(1)), {})
    if not {PairDataConfig.chosen_key, PairDataConfig.rejected_key} <= row.keys():
        return False
    try:
        find_format(row, data, "the first row")
    except UserError:
        return True
    return False


def prepare_pair_dataset(data: PairDataConfig, tokenizer: Any, *, seed: int = 42) -> PairDataset:
    """The pairs that `data.dataset` names: a comma list of files, folders, saved data sets or hub names.

    Args:
        seed: draws the rows of a mix.

    Raises UserError if a source is not there, a column is missing, too many rows are unusable, or no pair is left.
    """
    sources = open_sources(data.dataset, data.dataset_split)
    shares = parse_probabilities(data.dataset_probs, len(sources))
    return PairDataset(prepare_sources(sources, tokenizer, data, shares=shares, seed=seed), tokenizer)
