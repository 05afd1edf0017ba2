"""The zoo's results, for people (zoo.md) and as data (zoo.json)."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from tests.zoo.cells import CELLS, Finding

PACKAGES = ("torch", "transformers", "peft", "deepspeed")

JUSTIFIED: tuple[tuple[str, str], ...] = (  # a refusal's pattern, and why it is right
    (r"layers of the type", "a state, an index or chunks of the whole row run on across samples"),
    (r"carries a state", "the state runs on from one sample into the next"),
    (
        r"cannot be replaced",
        "transformers marks it so: attention of the model's own, ALiBi, decoders of encoder-decoders",
    ),
    (r"takes no borders", "transformers marks it unfit for kernels that are told the borders of samples"),
    (
        r"attention (eager|sdpa): in a pack the hidden states of a sample move",
        "asked for by name, and the model's own mask does not follow the positions; the message names what works",
    ),
    (
        r"not its samples' borders",
        "the model does not hand the borders on; the message names an attention that needs none",
    ),
    (r"does not compute by torch's scaled_dot", "asked for by name; transformers has no such attention for it"),
    (r"computes its attention itself", "asked for by name; transformers marks its attention as the model's own"),
    (r"cannot recompute its layers", "transformers has no gradient checkpointing for it"),
    (
        r"in a padded batch a sample gets other hidden states",
        "the model reads padding, or counts positions through it; the message names micro-batches of one sample",
    ),
    (
        r"the attention ring: in a pack a sample gets other hidden states",
        "the look before training has measured it; a pack without a ring is computed right",
    ),
    (r"not causal", "a token sees later ones, of its neighbours too"),
)


@dataclass
class Results:
    """By type, the findings of its cells; or why there is no small model of it."""

    versions: dict[str, str] = field(default_factory=lambda: {name: version(name) for name in PACKAGES})
    findings: dict[str, dict[str, Finding]] = field(default_factory=dict)
    not_built: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What was found with these versions."""
        path, results = folder / "zoo.json", cls()
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if stored.get("versions") == results.versions:
            results.not_built = stored["not_built"]
            for name, cells in stored["findings"].items():
                results.findings[name] = {cell: Finding(**finding) for cell, finding in cells.items()}
        return results

    def write(self, folder: Path) -> None:
        """A line of zoo.json for each model."""
        head = json.dumps({"versions": self.versions, "not_built": self.not_built}, indent=1).removesuffix("\n}")
        rows = [f"{json.dumps(name)}: {json.dumps(_short(cells))}" for name, cells in sorted(self.findings.items())]
        body = ",\n  ".join(rows)
        (folder / "zoo.json").write_text(f'{head},\n "findings": {{\n  {body}\n }}\n}}\n', encoding="utf-8")
        (folder / "zoo.md").write_text(in_words(self), encoding="utf-8")

    def add(self, name: str, found: dict[str, Finding] | str) -> None:
        self.findings.pop(name, None)
        self.not_built.pop(name, None)
        if isinstance(found, str):
            self.not_built[name] = found
        else:
            self.findings[name] = found

    def of_verdict(self, *verdicts: str) -> Iterator[tuple[str, str, Finding]]:
        for name, cells in sorted(self.findings.items()):
            for cell, finding in cells.items():
                if finding.verdict in verdicts:
                    yield name, cell, finding

    @property
    def problems(self) -> list[str]:
        """What ought not to be in the table."""
        found = [f"{name}, {cell}: {f.verdict}: {f.text}" for name, cell, f in self.of_verdict("wrong", "crash")]
        refused = [(name, cell, f.text) for name, cell, f in self.of_verdict("refused")]
        return found + [f"{n}, {c}: refused without a justification: {t}" for n, c, t in refused if not why_right(t)]


def _short(cells: dict[str, Finding]) -> dict[str, dict[str, object]]:
    """Without what is not said of a cell."""
    return {cell: {name: value for name, value in vars(found).items() if value} for cell, found in cells.items()}


def why_right(refusal: str) -> str | None:
    return next((reason for pattern, reason in JUSTIFIED if re.search(pattern, refusal)), None)


def in_words(results: Results) -> str:
    """A page of markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    num_built, num_left_out = len(results.findings), len(results.not_built)
    parts = [
        "# The zoo",
        "Small models (2 to 4 layers, hidden 64, windows of 16 tokens, soft caps of 3, large weights) of the types in "
        "transformers' causal-LM mapping, trained for three AdamW steps on ten rows of 20 to 112 tokens with holes in "
        "the targets; losses and gradient norms are held to plain transformers in float64, eager, one unpadded sample "
        f"at a time. Made by `python -m tests.zoo` with {versions}. {num_built} models, {num_left_out} types left out.",
        "`packed` is the attention that `auto` takes; `eager` and `sdpa` are packed too, asked for by name. `export` "
        "is opened again in plain transformers. `aux loss` is held to transformers' own, where it has one (–: none).",
        _table(["check", "ok", "refused", "wrong", "crash"], list(_sums(results))),
        "## Refusals",
        _table(["refused", "cells", "models", "why it is right"], list(_refusals(results))),
        *_problems(results),
        "## Left out",
        _table(["type", "reason"], [[name, reason] for name, reason in sorted(results.not_built.items())]),
        "## Models",
        _table(["model", *CELLS], [_row(name, cells) for name, cells in sorted(results.findings.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def _sums(results: Results) -> Iterator[list[object]]:
    for cell in CELLS:
        verdicts = Counter(cells[cell].verdict for cells in results.findings.values() if cell in cells)
        yield [cell, *(verdicts[verdict] for verdict in ("ok", "refused", "wrong", "crash"))]


def _refusals(results: Results) -> Iterator[list[object]]:
    kinds = defaultdict(list)
    for name, cell, finding in results.of_verdict("refused"):
        kinds[_kind(finding)].append((name, cell))
    for text, places in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        models = sorted({name for name, _ in places})
        few = ", ".join(models) if len(models) <= 6 else f"{', '.join(models[:5])} and {len(models) - 5} more"
        yield [text, len(places), few, why_right(text) or "**not justified**"]


def _kind(refusal: Finding) -> str:
    """Its text without the names of classes and of layers' types."""
    text = re.sub(r"\b(?=\w{8})\w*[a-z][A-Z]\w*", "…", refusal.text)
    text = re.sub(r"layers of the type [\w, ]+, which", "layers of the type …, which", text)
    return f"{text} (in the first step)" if refusal.is_late else text


def _problems(results: Results) -> list[str]:
    rows = [[name, cell, f"{f.verdict}: {f.text}"] for name, cell, f in results.of_verdict("wrong", "crash")]
    return ["## Wrong or crashed", _table(["model", "check", "finding"], rows)] if rows else []


def _row(name: str, cells: dict[str, Finding]) -> list[object]:
    verdicts = [cells[cell].verdict for cell in CELLS]
    return [name, *("–" if verdict == "none" else verdict for verdict in verdicts)]


def _table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
