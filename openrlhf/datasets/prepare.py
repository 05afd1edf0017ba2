"""From sources to prepared samples on disk: find formats, choose rows, encode, write, count."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from openrlhf.config import DataConfig, PairDataConfig
from openrlhf.config.checks import input_template_problems
from openrlhf.datasets.cache import open_cache_dir, prepared_folder
from openrlhf.datasets.fingerprint import data_fingerprint, hash_of
from openrlhf.datasets.formats import find_format, has_named_columns, tokenized
from openrlhf.datasets.prepared import BLOCKS_A_SHARD, PAIR_SCHEMA, SCHEMA, PreparedSamples, is_whole
from openrlhf.datasets.report import FIRST_ROWS, MAX_NAMES, BadRows, DataReport, SourceReport
from openrlhf.datasets.sample_writer import SampleWriter
from openrlhf.datasets.samples import Row
from openrlhf.datasets.shards import encode_on_ray, take_over
from openrlhf.datasets.sources.find import Source
from openrlhf.datasets.sources.mixing import drawn_rows
from openrlhf.datasets.sources.tables import Table, readable_rows
from openrlhf.datasets.tokenization.chat_template import resolve_chat_template
from openrlhf.datasets.tokenization.encoder import CONTROL_TOKENS_ARE_TEXT, SampleEncoder
from openrlhf.datasets.tokenization.turns import target_choice
from openrlhf.datasets.tokenizer import check_gives_offsets, prepare_special_tokens
from openrlhf.datasets.workers import BlockResult, Encode, EncodingTask, encode_block, encode_blocks
from openrlhf.errors import UserError

FILE_FORMAT = 8  # raise it when `prepared` lays out its files in another way, or rows are read in another way
NAMED_COLUMNS_ARE_READ = "the columns that --data.input_key and --data.output_key name are read instead"
Runner = Literal["local", "ray"]


def prepare_sources(
    sources: list[Source],
    tokenizer: Any,
    data: DataConfig,
    pretrain_mode: bool = False,
    shares: list[Fraction] | None = None,
    seed: int = 42,
    runner: Runner = "local",
) -> PreparedSamples:
    """Prepared samples of opened sources; from the cache if nothing changed.

    Args:
        data: a `PairDataConfig` makes pairs of the rows.
        shares: of the sources in a mix that the seed draws; None: every row is taken.
        runner: who encodes the rows: processes of this machine, or of a Ray cluster. Both leave the same files.

    Raises UserError if a source is not there, too many rows are unusable, or no row has a target token.
    """
    _check(data)
    check_gives_offsets(tokenizer)
    prepare_special_tokens(tokenizer)
    if data.tokenizer_chat_template is not None:  # the exported tokenizer is to render as it was trained
        tokenizer.chat_template = resolve_chat_template(tokenizer, data.tokenizer_chat_template)
    folder = open_cache_dir(data.cache_dir)
    selection: dict[str, Any] = {
        "weights": None if shares is None else list(map(str, shares)),
        "seed": None if shares is None else seed,
        "max_samples": data.max_samples,
    }
    if shares is not None:
        selection["tables"] = [len(source.tables) for source in sources]
    if shares is not None and data.stopping_strategy == "all_exhausted":
        selection["repeats"] = True
    if pretrain_mode and not data.pretrain_end_token:
        selection["no_end_token"] = True
    fingerprint = data_fingerprint(sources, tokenizer, data, pretrain_mode, selection, folder)
    names = [table.name for source in sources for table in source.tables]  # samples are kept with the names of rows
    key = f"{hash_of([fingerprint, names])}-{data.control_tokens}-{FILE_FORMAT}"
    shards = folder / f"{key}.shards" if runner == "ray" else None
    make = _Preparation(sources, tokenizer, data, pretrain_mode, shares, seed, fingerprint, shards).run
    samples = PreparedSamples(prepared_folder(folder, key, make, is_whole))
    report = samples.report
    report.notes += filter(None, map(_skipped_members, sources))  # they do not change the samples, and may come and go
    if report.num_bad_rows > data.max_bad_rows:  # it was prepared under a higher limit
        raise UserError(
            f"{report.num_bad_rows} rows cannot be used (--data.max_bad_rows allows {data.max_bad_rows}):",
            *report.bad_rows,
        )
    return samples


def _skipped_members(source: Source) -> str:
    if not source.skipped:
        return ""
    more = f" and {len(source.skipped) - MAX_NAMES:,} more" if len(source.skipped) > MAX_NAMES else ""
    return f"not read in {source.name}: {len(source.skipped):,} ({'; '.join(source.skipped[:MAX_NAMES])}{more})"


def _check(data: DataConfig) -> None:
    """Raises UserError of values that no command line has checked."""
    problems = [] if data.max_len >= 2 else [f"--data.max_len is {data.max_len}: a sample needs two tokens at least."]
    if data.input_template is not None:
        problems += input_template_problems(data.input_template)
    if problems:
        raise UserError(*problems)


@dataclass
class _Preparation:
    """One pass over the rows.

    Attributes: shards: where workers on Ray leave theirs until all are there; None: no Ray.
    """

    sources: list[Source]
    tokenizer: Any
    data: DataConfig
    pretrain_mode: bool
    shares: list[Fraction] | None
    seed: int
    fingerprint: str
    shards: Path | None
    report: DataReport = field(default_factory=DataReport)
    bar: Any = field(init=False)  # of the rows that were taken

    def __post_init__(self) -> None:
        self.tables: list[Table] = [table for source in self.sources for table in source.tables]
        self.source_of = [number for number, source in enumerate(self.sources) for _ in source.tables]
        self.report.sources = [SourceReport(source.name) for source in self.sources]
        self.bad_rows = BadRows(self.data.max_bad_rows)

    def run(self, folder: Path) -> None:
        """Fills the folder."""
        tasks = self._tasks(self._find_formats())
        make_encode = functools.partial(_make_encode, self.tokenizer, self.data, self.pretrain_mode)
        schema = PAIR_SCHEMA if isinstance(self.data, PairDataConfig) else SCHEMA
        with (
            SampleWriter(folder, schema) as writer,
            tqdm(desc="preparing data", unit=" rows", leave=False, disable=None) as self.bar,
        ):
            if self.shards is None:
                self._encode(tasks, make_encode(), writer)
            else:
                take_over(self.shards, encode_on_ray(tasks, make_encode, self.shards, schema, self._count), writer)
        for table in self.tables:
            table.check_unchanged()  # the folder is named by its hash
        self._check_end()
        # Where no row holds a control token the samples are the same for `text` and `keep`.
        is_text = any(remark.endswith(CONTROL_TOKENS_ARE_TEXT) for remark in self.report.remarks)
        ending = "-refused" if self.data.control_tokens == "refuse" else "-text" if is_text else ""
        table_names = [table.row_name(0).removesuffix("0") for table in self.tables]
        writer.finish(self.report, {"fingerprint": self.fingerprint + ending, "table_names": table_names})
        if self.shards is not None:
            shutil.rmtree(self.shards)

    def _encode(self, tasks: Iterator[EncodingTask], encode: Encode, writer: SampleWriter) -> None:
        for number, result in enumerate(encode_blocks(tasks, encode, self.data.num_processors)):
            if number % BLOCKS_A_SHARD == 0:
                writer.begin_shard()
            self._count(result)
            if result.samples is not None:
                writer.append(result.samples)

    def _find_formats(self) -> list[str]:
        """The format of each source, whose files are of one shape.

        Raises UserError of every table that is empty or in no known format.
        """
        found: list[list[str]] = [[] for _ in self.sources]
        problems = []
        for table, source_number in zip(self.tables, self.source_of, strict=True):
            try:
                found[source_number].append(self._format_of(table))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)
        for source, report, names in zip(self.sources, self.report.sources, found, strict=True):
            _check_one_shape(source, names)
            report.formats = names[:1]
        return [names[0] for names in found]

    def _format_of(self, table: Table) -> str:
        for number, row in table.first_rows(FIRST_ROWS):
            name = find_format(row, self.data, table.row_name(number), self.pretrain_mode)
            self._note_passed_over(table, row)
            return self._mask_convention(table) if name == "tokenized" and "loss_mask" in row else name
        for _ in readable_rows([table]):  # tells the reasons, if there are rows at all
            pass
        raise UserError(f"{table.name} is empty: it holds no row.")

    def _note_passed_over(self, table: Table, row: Row) -> None:
        data = self.data
        is_by_name = data.format == "auto" and not isinstance(data, PairDataConfig) and has_named_columns(row, data)
        if is_by_name and tokenized.fits(row):
            self.report.notes.append(f"{table.name} holds input_ids too: {NAMED_COLUMNS_ARE_READ}")

    def _mask_convention(self, table: Table) -> str:
        """`tokenized` or `tokenized_by_token`: as the user says, else the one that the first rows' masks fit."""
        if self.data.format == "tokenized" or not tokenized.stand_beside_tokens(
            row for _, row in table.first_rows(FIRST_ROWS)
        ):
            return "tokenized"
        self.report.notes.append(
            f"{table.name}: loss_mask ends with 1, so entry t is taken to judge token t itself, not token t+1 "
            "(--data.format tokenized or tokenized_by_token says so outright)"
        )
        return "tokenized_by_token"

    def _tasks(self, formats: list[str]) -> Iterator[EncodingTask]:
        """Blocks of all tables with the rows to take, up to `max_samples` rows."""
        num_left = self.data.max_samples
        for pass_number, chosen in enumerate(self._rows_by_share()):
            position = [0] * len(self.sources)
            for number, table in enumerate(self.tables):
                source = self.source_of[number]
                for block in table.blocks():
                    if num_left == 0:
                        return
                    start, end = position[source], position[source] + len(block.numbers)
                    taken = np.ones(end - start, dtype=bool) if chosen is None else _flags(chosen[source], start, end)
                    if num_left is not None:
                        taken &= np.cumsum(taken) <= num_left
                        num_left -= int(taken.sum())
                    position[source] = end
                    yield EncodingTask(number, formats[source], block, taken, is_repeat=pass_number > 0)

    def _rows_by_share(self) -> list[Any]:
        """For each pass over the tables, the rows that each source gives; None: all of them."""
        if self.shares is None:
            return [None]
        counts = [
            sum(len(block.numbers) for table in source.tables for block in table.blocks()) for source in self.sources
        ]
        return drawn_rows(counts, self.shares, self.seed, self.data.stopping_strategy, self.data.max_samples)

    def _count(self, result: BlockResult) -> None:
        """Adds a block's counts to the report."""
        report, source = self.report, self.report.sources[self.source_of[result.table]]
        source.num_rows += result.num_rows
        source.num_rows_taken += result.num_rows_taken
        self.bar.update(result.num_rows_taken)
        for reason, count in result.left_out.items():
            report.left_out[reason] = report.left_out.get(reason, 0) + count
        for remark, count in result.remarks.items():
            report.remarks[remark] = report.remarks.get(remark, 0) + count
        for number, bad_row in result.bad_rows:
            self.bad_rows.add(self.tables[result.table].row_name(number), bad_row)
        self.bad_rows.check(report.num_rows)
        if (samples := result.samples) is not None:
            source.num_samples += samples.num_rows
            report.num_samples += samples.num_rows
            report.num_tokens += int(samples.num_tokens.sum())
            report.num_target_tokens += int(samples.num_targets.sum())
            report.num_cut += samples.num_cut
            report.num_weighted += samples.num_weighted
            report.largest_id = max(report.largest_id, samples.largest_id)
            if report.turn_end_id is None and samples.turn_end_id is not None:
                self._note_turn_end(samples.turn_end_id)

    def _note_turn_end(self, end_id: int) -> None:
        """The token that answers end with: a model stops there, so generation has to stop there."""
        if target_choice(self.data, self.pretrain_mode).endswith("everything"):
            return
        self.report.turn_end_id, self.report.turn_end = end_id, self.tokenizer.decode([end_id])
        if end_id == self.tokenizer.eos_token_id:
            return
        if end_id not in self.tokenizer.added_tokens_decoder:
            self.report.notes.append("answers end without a token of their own: the model will not know when to stop")
        else:
            self.report.notes.append(
                f"answers end with {self.report.turn_end!r}, not with the tokenizer's end token "
                f"{self.tokenizer.eos_token!r}: generation must stop at both"
            )

    def _check_end(self) -> None:
        self.bad_rows.check(self.report.num_rows, at_end=True)
        self.report.num_bad_rows = self.bad_rows.count
        self.report.bad_rows = self.bad_rows.lines()
        if not self.report.num_samples:
            raise UserError(_nothing_to_train(self.report, self.data))


def _make_encode(tokenizer: Any, data: DataConfig, pretrain_mode: bool) -> Encode:
    return functools.partial(encode_block, SampleEncoder(tokenizer, data, pretrain_mode), data)


def _flags(rows: np.ndarray, start: int, end: int) -> np.ndarray:
    """For each row from `start` to `end`: whether it is among the chosen ones (sorted)."""
    first, last = np.searchsorted(rows, [start, end])
    flags = np.zeros(end - start, dtype=bool)
    flags[rows[first:last] - start] = True
    return flags


def _check_one_shape(source: Source, formats: list[str]) -> None:
    for table, name in zip(source.tables, formats, strict=True):
        if name != formats[0]:
            first = source.tables[0]
            if {name, formats[0]} == {"tokenized", "tokenized_by_token"}:
                raise UserError(
                    f"{source.name}: the loss_mask of {table.name} is read as {name}, that of {first.name} as "
                    f"{formats[0]}. Say --data.format tokenized_by_token if entry t judges token t itself in all of "
                    "them, --data.format tokenized if it judges token t+1."
                )
            ours, theirs = (set(next(each.first_rows(FIRST_ROWS))[1]) for each in (first, table))
            raise UserError(
                f"{source.name} mixes shapes: {table.name} ({name}) differs from {first.name} ({formats[0]}): "
                f"it has {_quoted(theirs - ours)} and lacks {_quoted(ours - theirs)}. "
                "Put each shape into a folder of its own and give both, separated by a comma."
            )


def _quoted(columns: set[str]) -> str:
    return ", ".join(repr(column) for column in sorted(columns)) or "nothing more"


def _nothing_to_train(report: DataReport, data: DataConfig) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in report.left_out.items()]
    if report.num_bad_rows:
        reasons.append(f"{report.num_bad_rows:,} unusable")
    told = "; ".join(reasons) or "there was none"
    is_about_length = any("max_len" in reason for reason in report.left_out)
    remedy = f" Raise --data.max_len (now {data.max_len})." if is_about_length else ""
    return f"None of the {report.num_rows:,} rows can be trained: {told}.{remedy}"
