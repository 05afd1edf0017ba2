"""SFTDataset: prepared samples as torch tensors."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrlhf.datasets.prepare import prepare_from_spec, prepare_sources
from openrlhf.datasets.prepared import PreparedSamples
from openrlhf.datasets.report import DataReport
from openrlhf.datasets.settings import DataSettings
from openrlhf.datasets.sources.find import Source
from openrlhf.datasets.sources.tables import DatasetTable, ListTable

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SFTDataset(torch.utils.data.Dataset):
    """Rows as `(input_ids, attention_mask, loss_mask)`, each `(L,)` int64.

    `loss_mask[t]` is 1 where the log-prob at index t, that of token t+1, counts; the last entry is 0. The samples lie
    in an Arrow file that is read by page, so memory does not grow with their number.

    Attributes:
        num_tokens: length of each sample, `(len,)` int32.
        num_target_tokens: number of targets of each sample, `(len,)` int32.
        fingerprint: changes when the rows, the tokenizer, the template or a setting changes.
        report: what became of the rows.
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
            strategy: any object whose `args` hold `input_key`, `output_key`, `apply_chat_template` and
                `tokenizer_chat_template` (and further names of `DataSettings`), flat or under `args.data`.

        Raises UserError if rows are unusable or none can be trained.
        """
        given = _settings_in(strategy.args)
        cache_dir = given.pop("cache_dir", None)
        given.update(
            max_len=max_length,
            input_template=input_template,
            pretrain_mode=pretrain_mode,
            multiturn=multiturn,
        )
        self._open(prepare_sources([_source(dataset)], tokenizer, DataSettings(**given),
                                   num_processors=num_processors, cache_dir=cache_dir), tokenizer)  # fmt: skip

    @classmethod
    def from_spec(cls, spec: str, tokenizer: Any, settings: DataSettings, **choices: Any) -> SFTDataset:
        """The data set of a spec such as `train.jsonl,more@folder`; `choices` as in `prepare.prepare_from_spec`."""
        return cls.from_prepared(prepare_from_spec(spec, tokenizer, settings, **choices), tokenizer)

    @classmethod
    def from_prepared(cls, samples: PreparedSamples, tokenizer: Any) -> SFTDataset:
        """The data set of samples that are on disk already."""
        dataset = cls.__new__(cls)
        dataset._open(samples, tokenizer)
        return dataset

    def _open(self, samples: PreparedSamples, tokenizer: Any) -> None:
        self.samples = samples
        self.num_tokens: np.ndarray = samples.num_tokens
        self.num_target_tokens: np.ndarray = samples.num_target_tokens
        self.fingerprint: str = samples.fingerprint
        self.report: DataReport = samples.report
        self._pad_id: int = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensors:
        """`(input_ids, attention_mask, loss_mask)`, each `(L,)` int64."""
        sample = self.samples.sample(int(index))
        input_ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        loss_mask = torch.from_numpy(sample.loss_mask.astype(np.int64))
        return input_ids, torch.ones_like(input_ids), loss_mask

    def sample_name(self, index: int) -> str:
        """Where the sample came from, for messages: file and line, or data set and row."""
        table, row = self.samples.origin(int(index))
        return f"{self.samples.table_names[table]}{row}"

    def collate_fn(self, items: list[Tensors]) -> Tensors:
        """Samples → `(input_ids, attention_mask, loss_mask)`, each `(B, S)`, padded on the right by length."""
        longest = max(len(input_ids) for input_ids, _, _ in items)
        shape = (len(items), longest)
        batch = (
            torch.full(shape, self._pad_id),
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int64),
        )
        for row, tensors in enumerate(items):
            for padded, values in zip(batch, tensors, strict=True):
                padded[row, : len(values)] = values
        return batch


def prepare_sft_dataset(
    spec: str,
    tokenizer: Any,
    settings: DataSettings,
    *,
    split: str = "train",
    probabilities: str | None = None,
    seed: int = 42,
    max_samples: int | None = None,
    num_processors: int = 8,
    cache_dir: str | Path | None = None,
) -> SFTDataset:
    """The data set of a spec: a comma list of files, folders (`path@subfolder`), saved data sets or hub names.

    Args:
        split: which split of a folder or hub data set.
        probabilities: one number for each source, as `0.7,0.3`; None: all rows of all sources.
        seed: draws the rows of a mix.
        max_samples: takes no more rows than this.
        num_processors: at most so many processes tokenize.
        cache_dir: where prepared data is kept; None: the user's cache folder.

    Raises UserError if a source is not there, too many rows are unusable, or no row can be trained.
    """
    return SFTDataset.from_spec(
        spec, tokenizer, settings, split=split, probabilities=probabilities, seed=seed, max_samples=max_samples,
        num_processors=num_processors, cache_dir=cache_dir,
    )  # fmt: skip


def _source(dataset: Any) -> Source:
    is_dataset = hasattr(dataset, "with_format") and hasattr(dataset, "features")
    name = "the data set"
    return Source(name, [DatasetTable(name, dataset) if is_dataset else ListTable(name, dataset)])


def _settings_in(args: Any) -> dict[str, Any]:
    """The names of `DataSettings` that `args` has, nested (`args.data.input_key`) or flat (`args.input_key`)."""
    nested = getattr(args, "data", None)
    names = [each.name for each in fields(DataSettings)] + ["cache_dir"]
    found = {}
    for name in names:
        for holder in (nested, args):
            if hasattr(holder, name):
                found[name] = getattr(holder, name)
                break
    return found
