"""Settings of adapters; checks of them, of 4 bits under them, and of weights that stay as they are."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openrlhf.config.disk import ADAPTER_FILE, local_path
from openrlhf.config.kinds import BelowOne, Count, Place, PositiveCount, Rank
from openrlhf.config.schema import Check, free, must_match

if TYPE_CHECKING:
    from openrlhf.config.settings import TrainingConfig

MERGED = "merged"  # folder, in that of an adapter, of the model that it has been merged into
_OPTIONS = ("use_rslora", "use_dora", "modules_to_save", "target_parameters", "layers_to_transform")
_OF_THE_ADAPTER = ("rank", "alpha", "dropout", "target_modules", *_OPTIONS)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, by PEFT."""

    rank: Rank = must_match(0, "rank of the adapters; 0 trains the whole model")
    alpha: PositiveCount = must_match(16, "scale of the adapters")
    dropout: BelowOne = must_match(0.0, "dropout before the adapters")
    target_modules: tuple[str, ...] = free(("all-linear",), "names of the modules that get an adapter")
    use_rslora: bool = must_match(False, "scale by alpha over the root of the rank, not over the rank")
    use_dora: bool = must_match(False, "DoRA: magnitudes trained apart from directions (arXiv 2402.09353)")
    modules_to_save: tuple[str, ...] | None = must_match(
        None, "modules that are trained whole and saved with the adapter, such as embed_tokens lm_head"
    )
    target_parameters: tuple[str, ...] | None = must_match(
        None, "parameters that are no layers and get an adapter, such as mlp.experts.gate_up_proj"
    )
    layers_to_transform: tuple[Count, ...] | None = must_match(None, "numbers of the layers that get adapters")
    adapter_name_or_path: Place | None = free(None, "adapter to start from; it brings rank, alpha and layers with it")

    @property
    def is_used(self) -> bool:
        return self.rank > 0 or self.adapter_name_or_path is not None


def _adapters(config: TrainingConfig, world_size: int) -> Iterator[str]:
    lora = config.ds.lora
    if lora.adapter_name_or_path is not None:
        yield from _start(lora, lora.adapter_name_or_path, config.ds.zero_stage)
    elif lora.rank == 0:
        for flag in _asked_for(lora, _OPTIONS):
            yield f"{flag} is a matter of adapters, and there are none: add --ds.lora.rank, or leave it out."
    if lora.use_dora:
        yield from _dora(f"--ds.lora.use_dora {_CUT_UP}", config.ds.zero_stage)
    if lora.target_parameters and lora.use_dora:
        yield "--ds.lora.target_parameters adapts weights that are no layers, which DoRA cannot: leave one of them out."
    if lora.target_parameters and lora.dropout:
        yield (
            f"--ds.lora.target_parameters has no input to drop from: leave --ds.lora.dropout {lora.dropout:g} out, or "
            "the parameters."
        )
    if config.ckpt.merge_lora and not lora.is_used:
        yield "--ckpt.merge_lora has no adapter to merge: add --ds.lora.rank, or leave it out."


_CUT_UP = "reads whole weights beside their layers, which ZeRO-3 cuts up: use --ds.zero_stage 2 or less."


def _dora(problem: str, zero_stage: int) -> Iterator[str]:
    if zero_stage == 3:
        yield problem


def _asked_for(lora: LoraConfig, names: tuple[str, ...]) -> list[str]:
    defaults = type(lora)()
    return [f"--ds.lora.{name}" for name in names if getattr(lora, name) != getattr(defaults, name)]


def _start(lora: LoraConfig, name: str, zero_stage: int) -> Iterator[str]:
    """The adapter that a run starts from; one on the hub is looked at when it is loaded."""
    flag, folder = f"--ds.lora.adapter_name_or_path {name}", local_path(name)
    if asked := _asked_for(lora, _OF_THE_ADAPTER):
        yield f"{flag} has its own rank, scale and layers: leave {', '.join(asked)} out."
    if not (folder.exists() or name.startswith((".", "/", "~"))):
        return
    try:
        settings = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{flag} holds no adapter: {ADAPTER_FILE} cannot be read ({error})."
        return
    if (kind := _kind_of(settings)) != "LORA":
        yield f"{flag} is an adapter of PEFT's kind {kind}: LoRA's can be trained here."
    elif settings.get("use_dora"):
        yield from _dora(f"{flag} is a DoRA adapter, which {_CUT_UP}", zero_stage)


def _kind_of(settings: Any) -> Any:
    return settings.get("peft_type") if isinstance(settings, dict) else None


def _freezing(config: TrainingConfig, world_size: int) -> Iterator[str]:
    for pattern in config.model.trainable or ():
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"--model.trainable {pattern} is no regular expression: {error}."
    if config.model.trainable and config.ds.lora.is_used:
        yield (
            "--model.trainable chooses among the model's own weights, which adapters leave as they are: use "
            "--ds.lora.modules_to_save for what is trained beside them."
        )


def _four_bits(config: TrainingConfig, world_size: int) -> Iterator[str]:
    ds = config.ds
    if not ds.load_in_4bit:
        return
    if not ds.lora.is_used:
        yield "--ds.load_in_4bit freezes the model, so nothing is trained: add adapters, --ds.lora.rank 16."
    if ds.zero_stage == 3:
        yield "--ds.load_in_4bit does not go with --ds.zero_stage 3; use --ds.zero_stage 2 or less."


def four_bits_package(config: TrainingConfig, world_size: int) -> Iterator[str]:
    """What the ranks of the training need, and a look at its data does not."""
    if config.ds.load_in_4bit and not importlib.util.find_spec("bitsandbytes"):
        yield "--ds.load_in_4bit needs a package that is not installed: pip install bitsandbytes."


ADAPTER_CHECKS: tuple[Check, ...] = (_adapters, _freezing, _four_bits)
