"""Rows of the data → prompts, each with an identity of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf.config import PromptConfig
from openrlhf.datasets.formats.chat import COLUMNS as MESSAGE_COLUMNS
from openrlhf.datasets.formats.chat import conversation, is_message_list, with_system
from openrlhf.datasets.formats.columns import KINDS, names
from openrlhf.datasets.report import BadRows
from openrlhf.datasets.samples import BadRow, check_unicode
from openrlhf.datasets.sources.find import open_sources
from openrlhf.datasets.sources.tables import Table
from openrlhf.errors import UserError
from openrlhf.rejection.answer import BESIDE_THE_TEXT
from openrlhf.rejection.records import content_of

OWN_COLUMNS = (
    "prompt_id", "sample_index", "prompt", "response", "finish_reason", "seed", "num_tokens", "model", "label",
    "reward", "rewards", "reason", "provenance", *BESIDE_THE_TEXT,
)  # fmt: skip
_PROMPT_COLUMNS = ("prompt", *MESSAGE_COLUMNS, "instruction", "input")
_SEED_BITS = 31  # what every server takes


@dataclass(frozen=True)
class Prompt:
    """What the model is asked.

    Attributes:
        prompt_id: hash of text, or of messages and tools; behind the second of equal prompts stands -2, and so on.
            Rows of one prompt may have other labels: each is asked and judged for itself.
        content: text, or messages that end with what the assistant is to answer.
        tools: JSON schemas, or None.
        columns: the row's label and its other columns.
    """

    prompt_id: str
    content: str | list[dict[str, Any]]
    tools: list[Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.content if isinstance(self.content, list) else self.content.strip())


def seed_of(seed: int, prompt_id: str, sample_index: int) -> int:
    """The seed of one answer: it depends on nothing but these three."""
    digest = hashlib.blake2b(f"{seed} {prompt_id} {sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)


def template_file(data: PromptConfig) -> dict[str, str]:
    """By its name the hash of the file that `data.tokenizer_chat_template` names; empty where it names none."""
    file = os.path.expanduser(data.tokenizer_chat_template or "")
    return {"data.tokenizer_chat_template file": content_of(Path(file))} if os.path.isfile(file) else {}


class Prompts:
    """The prompts of a data spec, in the order of its rows; each iteration reads them anew."""

    def __init__(self, data: PromptConfig):
        """Raises UserError where a source is not there."""
        self._data = data
        self._tables: list[Table] = [
            table for source in open_sources(data.dataset, data.dataset_split) for table in source.tables
        ]

    def content_hash(self) -> str:
        """Hash of the rows."""
        hashes = [table.content_hash({}) for table in self._tables]
        return hashlib.blake2b(json.dumps(hashes).encode(), digest_size=16).hexdigest()

    def __iter__(self) -> Iterator[Prompt]:
        """Raises UserError of rows that have no prompt, where they are more than `data.max_bad_rows`."""
        bad_rows, num_rows, times = BadRows(self._data.max_bad_rows), 0, Counter[str]()
        for name, row in self._rows():
            num_rows += 1
            try:
                content, tools, columns = _read(row, self._data)
            except BadRow as error:
                bad_rows.add(name, str(error))
                bad_rows.check(num_rows)
                continue
            key = _hash_of(content, tools)
            times[key] += 1
            yield Prompt(key if times[key] == 1 else f"{key}-{times[key]}", content, tools, columns)
        bad_rows.check(num_rows, at_end=True)
        if not num_rows:
            raise UserError(f"--data.dataset {self._data.dataset} holds no row.")

    def _rows(self) -> Iterator[tuple[str, Any]]:
        num_left = self._data.max_samples
        for table in self._tables:
            for block in table.blocks():
                for number, row in zip(block.numbers, block.rows(), strict=True):
                    if num_left == 0:
                        return
                    num_left = None if num_left is None else num_left - 1
                    yield table.row_name(number), row


def _read(row: Any, data: PromptConfig) -> tuple[Any, list[Any] | None, dict[str, Any]]:
    """Content, tools and columns of a row. Raises BadRow where it has no prompt."""
    if not isinstance(row, dict):
        raise BadRow(str(row))
    key = data.input_key or next((name for name in _PROMPT_COLUMNS if row.get(name) is not None), None)
    if key is None or key not in row:
        raise BadRow(
            f"there is no column {key!r}; it has {names(row)}"
            if key
            else f"its prompt is in no known column; it has {names(row)}: name the column by --data.input_key"
        )
    content, tools = _content(row, key, data)
    check_unicode(content if isinstance(content, str) else json.dumps([content, tools], ensure_ascii=False))
    left = {name: value for name, value in row.items() if name not in (key, data.label_key)}
    if both := next((name for name in OWN_COLUMNS if name in left and f"row_{name}" in left), None):
        raise BadRow(f"it has the columns {both!r} and 'row_{both}', as which the first would be kept: rename one")
    columns = {f"row_{name}" if name in OWN_COLUMNS else name: value for name, value in left.items()}
    return content, tools, {"label": row.get(data.label_key), **columns}


def _content(row: dict[str, Any], key: str, data: PromptConfig) -> tuple[str | list[dict[str, Any]], list[Any] | None]:
    value = row[key]
    if isinstance(value, str) and key not in MESSAGE_COLUMNS:
        if key == "instruction" and isinstance(row.get("input"), str) and row["input"]:
            value = f"{value}\n\n{row['input']}"
        if not data.apply_chat_template:
            return (value if data.input_template is None else data.input_template.format(value)), None
        value = [{"role": "user", "content": value}] if value.strip() else []
    elif not isinstance(value, str) and not is_message_list(value) and value != []:
        raise BadRow(f"column {key!r} holds {KINDS.get(type(value), type(value).__name__)} where a prompt belongs")
    if not value:
        return [], None
    whole = with_system(conversation(value, row), row, read=(key,))
    messages = whole.messages
    while messages and messages[-1]["role"] == "assistant":  # rows of training have an answer
        messages = messages[:-1]
    return messages, whole.tools


def _hash_of(content: Any, tools: Any) -> str:
    """A text alone is hashed as it is."""
    text = content if isinstance(content, str) else json.dumps([content, tools], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
