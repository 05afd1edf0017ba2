"""What all ranks of a run must have alike, compared before it matters: a difference would train wrong in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_objects

_MAX_SHOWN, _MAX_CHARACTERS = 20, 80


def check_agreement(facts: Mapping[str, Any], group: ProcessGroup | None) -> None:
    """Compares facts over the ranks of `group`, in one small exchange; every rank calls.

    Args: facts: values by the name that the user knows them by, such as a flag. They are compared as text. A mapping of
        many values is compared by its hash, and value by value where the hashes differ.
    Raises UserError, the same on every rank, that names each difference and the ranks that have it.
    """
    short = {name: _hash(value) if isinstance(value, Mapping) else str(value) for name, value in facts.items()}
    of_ranks = gather_objects(short, group)
    names = _different(of_ranks)
    if not names:
        return
    long = {name: {key: str(one) for key, one in facts[name].items()} for name in names if _is_long(facts, name)}
    details = gather_objects(long, group)
    lines = []
    for name in names:
        parts = [one.get(name, {}) for one in details]
        lines += [f"{name}: {key}: {_by_rank([part.get(key) for part in parts])}" for key in _different(parts)]
        lines += [] if any(parts) else [f"{name}: {_by_rank([one.get(name) for one in of_ranks])}"]
    more = [f"… and {len(lines) - _MAX_SHOWN} more."] if len(lines) > _MAX_SHOWN else []
    raise UserError(
        "The ranks of this run differ, so they would not train one model. Start all of them alike:",
        *lines[:_MAX_SHOWN],
        *more,
    )


def _is_long(facts: Mapping[str, Any], name: str) -> bool:
    return isinstance(facts.get(name), Mapping)


def _different(of_ranks: list[dict[str, str]]) -> list[str]:
    """The names whose values are not the same on every rank."""
    names = dict.fromkeys(name for one in of_ranks for name in one)
    return [name for name in names if len({one.get(name) for one in of_ranks}) > 1]


def _hash(values: Mapping[str, Any]) -> str:
    lines = "\n".join(f"{name} {value}" for name, value in values.items())
    return hashlib.blake2b(lines.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _by_rank(values: list[str | None]) -> str:
    """`a on rank 0, b on rank 1`: ranks that have one value stand together."""
    ranks: dict[str | None, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(
        f"{'nothing' if value is None else value[:_MAX_CHARACTERS]} on {_in_words(some)}"
        for value, some in ranks.items()
    )


def _in_words(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
