"""What all ranks of a run must have alike. Every rank calls; `parallel.agreement` raises the UserError."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

import openrlhf
from openrlhf.batching import StepWindowLoader
from openrlhf.config import shown_values
from openrlhf.config.schema import Root
from openrlhf.engine.optimizers import adam_in_words
from openrlhf.engine.parameters import whole_shape
from openrlhf.models.config_values import values_of_function
from openrlhf.parallel.agreement import check_agreement

_OF_A_MACHINE = ("data.cache_dir", "data.num_processors")
_ROWS_READ = 256  # of a data set that has no fingerprint


def check_strategy(strategy: Any) -> None:
    """Versions, and the settings that a strategy is made of."""
    groups = {"train": strategy.train, "ds": strategy.ds, "adam": strategy.adam, "muon": strategy.muon}
    settings = {
        f"--{name}.{field}": value
        for name, group in groups.items()
        for field, value in (asdict(group) if group else {}).items()
    }
    versions = {"the version of openrlhf": openrlhf.__version__, "the version of torch": torch.__version__}
    check_agreement({**versions, "--max_norm": float(strategy.max_norm), **settings}, strategy.groups.control)


def check_model(strategy: Any, module: nn.Module) -> None:
    """The weights of a model, before an engine holds it."""
    check_agreement(_facts_of_model(module), strategy.groups.control)


def check_training(strategy: Any, module: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """A model's weights, and kinds and numbers of its optimizer, schedule and engine, before the first step."""
    groups = getattr(optimizer, "param_groups", [])
    numbers = {
        f"{name} of group {number}": value
        for number, group in enumerate(groups)
        for name, value in group.items()
        if name != "params" and not isinstance(value, torch.Tensor)
    }
    schedule = {name: value for name, value in getattr(scheduler, "__dict__", {}).items() if _is_plain(value)}
    facts = {
        "DeepSpeed's configuration": strategy.get_ds_train_config(),
        "the optimizer (--adam.kernel torch: one that compiles nothing)": adam_in_words(optimizer).partition(";")[0],
        "the optimizer's numbers": numbers,
        "the schedule": {"kind": type(scheduler).__name__, **schedule},
    }
    check_agreement(_facts_of_model(module) | facts, strategy.groups.control)


def facts_of_config(config: Root) -> dict[str, Any]:
    """All settings but those that a machine may have for itself."""
    return {f"--{name}": value for name, value in shown_values(config).items() if name not in _OF_A_MACHINE}


def _facts_of_model(module: nn.Module) -> dict[str, Any]:
    shapes = {name: f"{tuple(whole_shape(one))} {one.dtype}" for name, one in module.named_parameters()}
    trained = {name: one.requires_grad for name, one in module.named_parameters()}
    configs = (getattr(one, "config", None) for one in module.modules())
    config = next((one for one in configs if isinstance(one, PretrainedConfig)), None)
    return {
        "the model": type(module).__name__,
        "its config.json": {} if config is None else values_of_function(config),
        "a weight's shape": shapes,
        "whether a weight is trained": trained,
    }


def facts_of_loader(name: str, loader: Any) -> dict[str, Any]:
    """The rows and order of a loader of step windows; of another one, whose batches are each rank's own, its kind."""
    if not isinstance(loader, StepWindowLoader):
        return {name: type(loader).__name__}
    data, schedule = loader.dataset, loader.schedule
    return {
        name: type(loader).__name__,
        f"{name}: rows": len(data),
        f"{name}: content": getattr(data, "fingerprint", None) or _content_hash(data),
        f"{name}: order": f"seed {schedule.seed}, {'shuffled' if schedule.shuffle else 'as it is'}",
        f"{name}: samples a step": schedule.batch_size,
        f"{name}: micro-batches": f"{loader.layout} {loader.micro_batch_format}",
    }


def _content_hash(data: Any) -> str:
    """Of rows spread evenly over the data set."""
    digest = hashlib.blake2b(digest_size=8)
    for number in range(min(len(data), _ROWS_READ)):
        row = number * len(data) // min(len(data), _ROWS_READ)
        for part in _tensors_of(data.unit(row) if hasattr(data, "unit") else data[row]):
            digest.update(part.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _tensors_of(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value if isinstance(value, list | tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    return [tensor for part in parts for tensor in _tensors_of(part)]


def _is_plain(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else (value,)
    return all(part is None or isinstance(part, int | float | str) for part in parts)
