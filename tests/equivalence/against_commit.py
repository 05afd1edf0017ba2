"""Does this tree train as an earlier commit did, to the bit? Every fp32 cell of the matrix, by the command line.

    python -m tests.equivalence.against_commit 063792e [--only text ...] [--compiled]

Each cell is a whole run of `train_sft` inside ranks that are started once for each tree: rows from a file, the loader,
20 optimizer steps and more, evaluations, `metrics.jsonl`, a checkpoint, the exported model. Both trees get the same
words, model and rows. Compared are all that the earlier `metrics.jsonl` holds, except times and memory, and every
exported weight.
Ends with 1 on any difference. A run of all cells writes `benchmarks/results/against_<commit>.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.equivalence.matrix import AUX_LOSS, LAYOUTS, MORE_AUX_LOSS, MORE_LAYOUTS, SAMPLE_MEAN, Cell
from tests.equivalence.reference import Recipe, rows
from tests.helpers.ranks import RankError, RankPool
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import tiny_tokenizer
from tests.helpers.workbench import flags, read_metrics

PROJECT_ROOT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT_ROOT / "benchmarks/results"
OF_THE_PROCESS = ("tokens_per_second", "step_seconds", "host_memory_bytes")
LONGEST_ROW = 40  # tokens; a budget of tokens must have room for it
NOT_A_TARGET = -100


@dataclass(frozen=True)
class Finding:
    """A cell on both trees."""

    cell: Cell
    num_records: int
    num_weights: int
    differences: tuple[str, ...]
    seconds: float  # both runs


@dataclass(frozen=True)
class Outcome:
    """What a run left: the lines of metrics.jsonl, and its exported weights by name."""

    records: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]


def main() -> int:
    arguments = _arguments()
    matrix = (*LAYOUTS, *MORE_LAYOUTS, *SAMPLE_MEAN, *AUX_LOSS, *MORE_AUX_LOSS)
    cells = [cell for cell in matrix if arguments.compiled or not cell.layout.compiled]
    chosen = [cell for cell in cells if not arguments.only or any(text in str(cell) for text in arguments.only)]
    print(f"{len(chosen)} of {len(cells)} cells; compiled ones {'are' if arguments.compiled else 'not'} among them")
    findings = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(_Trees(arguments.commit, Path(scratch))) as trees:
        for cell in sorted(chosen, key=lambda cell: cell.ranks):
            findings.append(trees.compare(cell))
            print(_row(findings[-1]), flush=True)
    if len(chosen) == len(cells):
        _write_table(arguments.commit, findings, arguments.compiled)
    unlike = [finding for finding in findings if finding.differences]
    print(f"{len(findings) - len(unlike)} of {len(findings)} cells are the same to the bit")
    for finding in unlike:
        print(f"{finding.cell}:", *finding.differences, sep="\n  ")
    return 1 if unlike else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.equivalence.against_commit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--only", nargs="+", default=[], metavar="text", help="cells whose names hold one of these")
    parser.add_argument("--compiled", action="store_true", help="also cells with compiled layers: minutes more")
    return parser.parse_args()


class _Trees:
    """Both trees, with ranks for each; a pool serves all cells of its number of ranks."""

    def __init__(self, commit: str, scratch: Path):
        self._scratch = scratch
        self._roots = {"before": package_of(commit, scratch / "tree"), "after": PROJECT_ROOT}
        self._pools: dict[str, RankPool] = {}

    def compare(self, cell: Cell) -> Finding:
        began_at = time.monotonic()
        folder = self._scratch / str(cell)
        try:
            before, after = (self._train(cell, tree, folder / tree) for tree in ("before", "after"))
        except RankError as error:
            self.close()  # ranks that failed may wait for one another for ever
            return Finding(
                cell, 0, 0, (f"a run failed: {str(error).strip().splitlines()[-1]}",), time.monotonic() - began_at
            )
        differences = (*unlike_records(before.records, after.records), *unlike_weights(before, after))
        return Finding(cell, len(before.records), len(before.weights), differences, time.monotonic() - began_at)

    def _train(self, cell: Cell, tree: str, out: Path) -> Outcome:
        pool = self._pool(cell.ranks, tree)
        pool.run(run_command_line, str(self._roots[tree]), _words(cell, out, self._inputs(cell.recipe)))
        weights = [load_file(path) for path in sorted(out.glob("*.safetensors"))]
        return Outcome(read_metrics(out), {name: value for part in weights for name, value in part.items()})

    def _pool(self, ranks: int, tree: str) -> RankPool:
        if tree in self._pools and self._pools[tree].world_size != ranks:
            self.close()
        if tree not in self._pools:
            with first_in_path(self._roots[tree]):
                self._pools[tree] = RankPool(ranks, imports_itself=True)
        return self._pools[tree]

    def _inputs(self, recipe: Recipe) -> Path:
        """A folder with the recipe's model and its rows."""
        folder = self._scratch / f"{recipe.model_kind}-{recipe.num_rows}rows"
        if not folder.exists():
            tiny_model(recipe.model_kind).save_pretrained(folder / "model")
            tiny_tokenizer().save_pretrained(folder / "model")
            lines = [json.dumps(_tokenized(*row)) + "\n" for row in rows(recipe)]
            (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


def run_command_line(root: str, words: list[str]) -> None:
    """`python -m openrlhf.cli.train_sft` with the package below `root`; runs inside a rank."""
    from openrlhf.cli import train_sft

    assert Path(train_sft.__file__).is_relative_to(root), f"{train_sft.__file__} is not below {root}"
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        train_sft.main(words)


def package_of(commit: str, folder: Path, *more: str) -> Path:
    """The package as it was, without its tests, and `more` files: the ranks of both trees take these tests."""
    words = ["git", "archive", commit, "openrlhf", *more]
    archive = subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@contextlib.contextmanager
def first_in_path(root: Path) -> Iterator[None]:
    """Processes started meanwhile find the package below `root`."""
    whole = list(sys.path)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path[:] = whole


def _tokenized(ids: torch.Tensor, is_target: torch.Tensor) -> dict[str, list[int]]:
    labels = torch.where(is_target, ids, NOT_A_TARGET)
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def _words(cell: Cell, out: Path, inputs: Path) -> list[str]:
    recipe, layout = cell.recipe, cell.layout
    changes = {
        "data.input_key": None,
        "data.output_key": None,
        "data.max_len": LONGEST_ROW,
        "data.cache_dir": out / "cache",  # its own: an earlier tree may prepare data otherwise
        "eval.dataset": inputs / "rows.jsonl",
        "eval.steps": 7,
        "train.batch_size": recipe.batch_size,
        "train.micro_batch_size": layout.micro_batch_size,
        "train.max_tokens_per_micro_batch": layout.max_tokens,
        "train.max_epochs": math.ceil(recipe.num_steps / math.ceil(recipe.num_rows / recipe.batch_size)),
        "train.loss_reduction": recipe.loss_reduction,
        "model.aux_loss_coef": recipe.aux_loss_coef,
        "model.aux_loss_scope": layout.aux_loss_scope,
        "model.gradient_checkpointing_enable": layout.checkpointing,
        "model.compile_layers": layout.compiled,
        "ds.zero_stage": layout.zero_stage,
        "ds.packing_samples": layout.packed,
        "ds.ring_attn_size": layout.ring,
        "ds.tensor_parallel_size": layout.tensor_parallel,
        "ds.adam_offload": layout.offload,
        "ds.param_dtype": layout.dtype,
        "adam.lr": recipe.lr,
        "adam.eps": recipe.eps,
        "adam.weight_decay": recipe.weight_decay,
        "max_norm": recipe.max_norm,
        "lr_warmup_ratio": recipe.warmup_ratio,
        "min_lr_ratio": recipe.min_lr_ratio,
    }
    return flags(inputs / "model", inputs / "rows.jsonl", out, **changes)


# --- comparing ---------------------------------------------------------------------------------------------------


def unlike_records(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Iterator[str]:
    """All that the earlier file holds stands in the later one, in its order; later names may follow."""
    if len(before) != len(after):
        yield f"metrics.jsonl has {len(before)} lines before and {len(after)} after"
        return
    for number, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if list(new)[: len(old)] != list(old):
            yield f"line {number} of metrics.jsonl begins with {list(new)[: len(old)]}, not with {list(old)}"
            return
        for name in old:
            if name not in OF_THE_PROCESS and old[name] != new[name]:
                yield f"line {number} of metrics.jsonl: {name} is {old[name]!r} before and {new[name]!r} after"


def unlike_weights(before: Outcome, after: Outcome) -> Iterator[str]:
    old, new = before.weights, after.weights
    if old.keys() != new.keys():
        yield f"exported by one alone: {', '.join(sorted(old.keys() ^ new.keys()))}"
    for name in sorted(old.keys() & new.keys()):
        if old[name].dtype != new[name].dtype or old[name].shape != new[name].shape:
            yield f"{name} is another tensor: {old[name].dtype}, {new[name].dtype}"
        elif not torch.equal(old[name].flatten().view(torch.uint8), new[name].flatten().view(torch.uint8)):
            yield f"{name} is off by {(old[name] - new[name]).abs().max():.1e}"


# --- telling -----------------------------------------------------------------------------------------------------


def _row(finding: Finding) -> str:
    same = f"unlike in {len(finding.differences)} places" if finding.differences else "the same"
    return f"| {finding.cell} | {finding.num_records} | {finding.num_weights} | {same} | {finding.seconds:.0f} |"


def _write_table(commit: str, findings: list[Finding], with_compiled: bool) -> None:
    same = sum(not finding.differences for finding in findings)
    command = f"python -m tests.equivalence.against_commit {commit}{' --compiled' if with_compiled else ''}"
    lines = [
        f"# Against {commit}",
        "",
        f"{same} of {len(findings)} cells of the equivalence matrix in fp32 train as commit {commit} did, to the bit.",
        "Compared are all that its `metrics.jsonl` holds, except times and memory, and every exported weight.",
        f"Made by `{command}` at {head()}, with torch {torch.__version__}.",
        *([] if with_compiled else ["Cells with compiled layers are left out."]),
        "",
        "| cell | lines of metrics.jsonl | weights | before and after | s |",
        "| --- | ---: | ---: | --- | ---: |",
        *map(_row, findings),
    ]
    for finding in findings:
        lines += [f"\n{finding.cell}:\n", *(f"- {text}" for text in finding.differences)] if finding.differences else []
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"against_{commit}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def head() -> str:
    """This tree's commit, and whether it has changes beside it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, check=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
