"""The card of a trained model: README.md with the hub's metadata, the data, the settings and the results."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

import openrlhf
from openrlhf.atomic_file import replace_file
from openrlhf.config import shown_values
from openrlhf.config.schema import Root, settings
from openrlhf.tracking.metrics_file import METRICS_FILE, read_records

CARD_FILE = "README.md"
_MARK = "<!-- written by openrlhf -->"  # a card without it is the user's own
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PRIVATE = (
    "ckpt.",
    "logger.",
    "hub.",
    "data.cache_dir",
    "eval.prompts",
    "train.callbacks",
)  # folders and accounts are nobody else's business


def write_card(
    folder: Path,
    config: Root,
    report: Any,
    exported_step: int,
    *,
    model_name: str | None = None,
    dataset_names: Sequence[str] = (),
    tags: Sequence[str] = (),
    is_adapter: bool = False,
    **metadata: Any,
) -> bool:
    """Writes the card, in the place of an earlier one of ours. False where a card of the user's own stands there.

    Args:
        report: of the training data.
        exported_step: the optimizer step whose weights the model has; metrics.jsonl may lack it.
        dataset_names: those that are none of the hub's are left out of the metadata.
        metadata: further fields of the hub's, such as license and language.
    """
    path = folder / CARD_FILE
    if path.is_file() and not is_own_card(path):
        return False
    values = shown_values(config)
    base = str(values["model.model_name_or_path"])
    kind = config.command.usage.rpartition("train_")[2]  # sft, dpo, rm
    table, changed = settings(type(config)), changed_settings(config)
    layout = {name: value for name, value in changed.items() if table[name].takes_auto}
    data = ModelCardData(
        model_name=model_name,
        base_model=base if _is_of_hub(base) else None,
        datasets=[name for name in dataset_names if _is_of_hub(name)] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if kind == "rm" else "text-generation",
        tags=[*dict.fromkeys(("openrlhf", kind, *tags))],
        **metadata,
    )
    origin = base if _is_of_hub(base) else Path(base).name
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n{_MARK}\n",
        f"# {model_name or folder.name}\n\nTrained from `{origin}` by openrlhf.\n",
        _data(report),
        _results(folder, exported_step),
        _table("Settings that are not the default", {name: changed[name] for name in changed if name not in layout}),
        _table("Layout, as given or as the run chose it", layout),
        _table("Versions", _versions()),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, "\n".join(parts))
    return True


def is_own_card(path: Path) -> bool:
    """Whether `write_card` has written that file."""
    return path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace")


def _is_of_hub(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _data(report: Any) -> str:
    rows = {
        "samples": f"{report.num_samples:,}",
        "tokens": f"{report.num_tokens:,}",
        "target tokens": f"{report.num_target_tokens:,}",
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in report.left_out.items()) or "none",
    }
    return _table("Data", rows)


def _results(folder: Path, exported_step: int) -> str:
    """The numbers of the exported step, and the picture of the curves where it is there."""
    path = folder / METRICS_FILE
    records = read_records(path) if path.is_file() else []
    num_steps = max((record["global_step"] for record in records), default=exported_step)
    records = [record for record in records if record["global_step"] <= exported_step]
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_loss" in record]
    rows: dict[str, Any] = {"optimizer steps": exported_step}
    if steps:
        last = steps[-1]["global_step"]
        named = "the last step" if last == exported_step else f"step {last}, the last one in {METRICS_FILE}"
        rows |= {"loss of the first step": steps[0]["loss"], f"loss of {named}": steps[-1]["loss"]}
    if num_steps > exported_step:
        rows["optimizer steps"] = f"{exported_step}, the best of {num_steps}"
    if evaluations:
        evaluation = dict(evaluations[-1])
        rows |= {"evaluated after step": evaluation.pop("global_step")} | evaluation
    picture = "\n![Training curves](training_curves.png)\n" if (folder / "training_curves.png").is_file() else ""
    return _table("Results", rows) + picture


def changed_settings(config: Root) -> dict[str, Any]:
    """Those that are not the default, without folders and accounts."""
    table = settings(type(config))
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in shown_values(config).items()
        if value != table[name].default and not name.startswith(_PRIVATE) and not _is_path(value)
    }


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "~", "."))


def _versions() -> dict[str, str]:
    libraries = {name: importlib.metadata.version(name) for name in ("transformers", "torch", "deepspeed", "datasets")}
    return {"openrlhf": openrlhf.__version__} | libraries | {"python": platform.python_version()}


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}\n", "| | |", "| --- | --- |", *lines]) + "\n" if lines else ""


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:200]
