"""Fingerprints of a tokenizer and of prepared data: rows, tokenizer, template, settings, this code's version."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import xxhash

from openrlhf.atomic_file import replace_file
from openrlhf.config import DataConfig
from openrlhf.datasets.sources.find import Source
from openrlhf.datasets.tokenization.chat_template import template_text

CODE_VERSION = 2  # raise it when the same rows and settings would give other ids or masks
# They choose rows, which `selection` and the tables' content tell, or never change a sample. What `control_tokens`
# changes stands behind the fingerprint: few data sets.
NOT_IN_THE_KEY = (
    "dataset", "dataset_probs", "dataset_split", "max_samples", "max_bad_rows", "overlong_memory", "cache_dir",
    "num_processors", "control_tokens", "stopping_strategy", "pretrain_end_token",
)  # fmt: skip
KNOWN_HASHES = "known_files.json"


def data_fingerprint(
    sources: list[Source],
    tokenizer: Any,
    data: DataConfig,
    pretrain_mode: bool,
    selection: dict[str, Any],
    cache_dir: Path,
) -> str:
    """The fingerprint of the samples that the rows of these sources become, wherever they lie; checkpoints hold it.

    Args:
        selection: the rows that are taken (probabilities, seed, max_samples).
        cache_dir: holds hashes of files by size, time and inode, so that a big file is read once.
    """
    known = known_hashes(cache_dir)
    num_known = len(known)
    tables = [[table.kind, table.content_hash(known)] for source in sources for table in source.tables]
    if len(known) > num_known:
        with contextlib.suppress(OSError):  # it only saves time
            replace_file(cache_dir / KNOWN_HASHES, json.dumps(known, indent=0))
    settings = {name: value for name, value in asdict(data).items() if name not in NOT_IN_THE_KEY}
    settings["tokenizer_chat_template"] = template_text(tokenizer, data.tokenizer_chat_template)
    settings["pretrain_mode"] = pretrain_mode
    return hash_of([CODE_VERSION, tables, _splitting_hash(tokenizer), settings, selection])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of vocabulary, special tokens and chat template; empty without a tokenizer. Checkpoints hold it."""
    if tokenizer is None:
        return ""
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template]
    return blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _splitting_hash(tokenizer: Any) -> str:
    """Of all that decides how a tokenizer splits text: merges and normalizer too, which its fingerprint lacks."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["padding"] = backend["truncation"] = None
    facts = [backend, tokenizer.bos_token, tokenizer.eos_token, tokenizer.special_tokens_map.get("unk_token")]
    return hash_of([*facts, "split"] if tokenizer.split_special_tokens else facts)


def hash_of(value: Any) -> str:
    """Hash of a JSON-like value."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def known_hashes(cache_dir: Path) -> dict[str, str]:
    """Hashes of files by their state, as far as they were computed before."""
    try:
        known = json.loads((cache_dir / KNOWN_HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
