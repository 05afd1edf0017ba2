"""SFTDataset: prepared samples as torch tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from openrlhf.batching import pads_alone
from openrlhf.config import DataConfig, SFTConfig, from_namespace
from openrlhf.datasets.prepare import Runner, prepare_sources
from openrlhf.datasets.prepared import PreparedSamples
from openrlhf.datasets.report import DataReport
from openrlhf.datasets.sources.find import open_sources, source_of
from openrlhf.datasets.sources.mixing import parse_probabilities

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SFTDataset(torch.utils.data.Dataset):
    """Rows as `(input_ids, attention_mask, loss_mask)`, each `(L,)` int64.

    `loss_mask[t]` is above 0 where the log-prob at index t, that of token t+1, counts; the last entry is 0. It is 1
    there, unless rows or messages have a `weight`: then the mask of every sample is float32 and holds the weight of
    each target, the row's times its message's. The samples lie in an Arrow file that is read by page, so memory does
    not grow with their number.

    Attributes:
        num_tokens: length of each sample, `(len,)` int32.
        num_target_tokens: targets of each sample (their weight is above 0), `(len,)` int32.
        pretrain_mode: whether every token is a target.
        fingerprint: changes when the rows, the tokenizer, the template or a setting changes.
        report: counts of the rows and of the samples made of them.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        max_length: int,
        strategy: Any,
        input_template: str | None = None,
        pretrain_mode: bool = False,
        num_processors: int = 8,
        multiturn: bool = False,
    ):
        """Prepares a `datasets.Dataset` (or any sequence of dicts).

        Args:
            max_length: most tokens a sample may have.
            input_template: text around the prompt, which stands at {}; None: none, or with `strategy.args.compat` that
                of OpenRLHF ("{}" is none there, too).
            strategy: any object whose `args` hold `input_key`, `output_key`, `apply_chat_template` and
                `tokenizer_chat_template` (and further names of `DataConfig`), flat or under `args.data`. Its `print`,
                if it has one, tells how many rows became samples, and why others did not.

        Raises UserError if rows are unusable or none can be trained.
        """
        config = from_namespace(SFTConfig, strategy.args)
        if input_template is None and config.compat is not None:
            input_template = config.data.input_template
        data = replace(
            config.data,
            max_len=max_length,
            input_template=input_template,
            num_processors=num_processors,
            multiturn=multiturn,
            max_samples=None,
        )
        samples = prepare_sources([source_of(dataset)], tokenizer, data, pretrain_mode)
        self._open(samples, tokenizer, pretrain_mode)
        for line in self.report.lines() if hasattr(strategy, "print") else ():
            strategy.print(line)

    @classmethod
    def from_prepared(cls, samples: PreparedSamples, tokenizer: Any, pretrain_mode: bool = False) -> SFTDataset:
        """The data set of samples that are on disk already."""
        dataset = cls.__new__(cls)
        dataset._open(samples, tokenizer, pretrain_mode)
        return dataset

    def _open(self, samples: PreparedSamples, tokenizer: Any, pretrain_mode: bool) -> None:
        self.samples = samples
        self.pretrain_mode = pretrain_mode
        self.num_tokens: np.ndarray = samples.num_tokens
        self.num_target_tokens: np.ndarray = samples.num_target_tokens
        self.fingerprint: str = samples.fingerprint
        self.report: DataReport = samples.report
        self._mask_dtype: type[np.number] = np.float32 if samples.report.num_weighted else np.int64
        self._pad_id: int = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensors:
        """`(input_ids, attention_mask, loss_mask)`, each `(L,)`."""
        sample = self.samples.sample(int(index))
        input_ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        loss_mask = torch.from_numpy(sample.loss_mask.astype(self._mask_dtype))
        return input_ids, torch.ones_like(input_ids), loss_mask

    def row_weight(self, index: int) -> float:
        """The weight of the sample's row, 1 without one: the share of `loss_mask` that all its targets have."""
        return self.samples.sample(int(index)).row_weight if self.report.num_weighted else 1.0

    def sample_name(self, index: int) -> str:
        """The place that the sample came from, for messages: file and line, or data set and row."""
        table, row = self.samples.origin(int(index))
        return f"{self.samples.table_names[table]}{row}"

    @pads_alone
    def collate_fn(self, items: list[Tensors]) -> Tensors:
        """Samples → `(input_ids, attention_mask, loss_mask)`, each `(B, S)`, padded on the right by length."""
        input_ids, attention_mask, loss_mask = (
            torch.nn.utils.rnn.pad_sequence([item[part] for item in items], batch_first=True, padding_value=padding)
            for part, padding in enumerate((self._pad_id, 0, 0))
        )
        return input_ids, attention_mask, loss_mask


def prepare_sft_dataset(
    data: DataConfig, tokenizer: Any, *, pretrain_mode: bool = False, seed: int = 42, runner: Runner = "local"
) -> SFTDataset:
    """The data set that `data.dataset` names: a comma list of files, folders, saved data sets or hub names.

    Args:
        pretrain_mode: rows are plain text, every token after the first is a target.
        seed: draws the rows of a mix.
        runner: as of `prepare_sources`.

    Raises UserError if a source is not there, too many rows are unusable, or no row can be trained.
    """
    sources = open_sources(data.dataset, data.dataset_split)
    shares = parse_probabilities(data.dataset_probs, len(sources))
    samples = prepare_sources(sources, tokenizer, data, pretrain_mode, shares, seed, runner)
    return SFTDataset.from_prepared(samples, tokenizer, pretrain_mode)
