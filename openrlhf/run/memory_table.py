"""The table of estimate_memory: a line for each ZeRO stage, with and without offload and checkpointing."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from openrlhf.config.estimate_settings import EstimateConfig
from openrlhf.config.kinds import size_bytes
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import check_packable
from openrlhf.models.loading import facts_of
from openrlhf.run.layout_choice import ChosenLayout, open_layout
from openrlhf.run.lengths import Lengths
from openrlhf.run.memory_estimate import Memory, RankMemory, Way, lowest_stage, size_text, unit_of

_COLUMNS = ("ZeRO", "offload", "recompute", "weights", "grads", "states", "active", "update", "peak", "host", "fits")


def print_memory_table(config: EstimateConfig, console: Console | None = None) -> None:
    """Prints what each way of the settings needs on a rank, and which of them fit.

    Raises UserError for a model that does not run without its weights.
    """
    console = console or Console()
    facts = facts_of(config.model.model_name_or_path, config.ds.param_dtype, config.model.trust_remote_code)
    memory = _memory(config)
    layout = _layout(config, facts, memory)
    run, num_tokens = layout.memory, _tokens(layout.config)
    model = run.model(recomputes=False)
    if model is None:
        raise UserError(
            f"{config.model.model_name_or_path}: this model does not run without its numbers, so its memory cannot be "
            "told before it trains."
        )
    found = {way: needed for way in run.ways() if (needed := run.of(way, num_tokens)) is not None}
    share = model.num_trained / model.num_parameters
    console.print(
        f"{model.num_parameters:,} parameters, {model.num_trained:,} of them trained ({share:.2%}), in "
        f"{config.ds.param_dtype}; ranks: {config.ranks:,} × {config.device}; micro-batches of {num_tokens:,} tokens.",
        soft_wrap=True,
    )
    unit, unit_bytes = unit_of(max(needed.device_bytes for needed in found.values()))
    table = Table(*_COLUMNS, box=None, pad_edge=False, padding=(0, 1))
    for way, needed in found.items():
        table.add_row(*_row(way, needed, memory, unit_bytes))
    console.print(table)
    saved = size_text(next(iter(found.values())).states.save_bytes)
    console.print(
        f"In {unit}, of a rank. The peak is what lasts, with activations or with the update, whichever is more; a "
        f"checkpoint saved beside the training keeps {saved} of host memory.",
        soft_wrap=True,
    )
    console.print(_verdict(found, memory, lowest_stage(config.ds, config.ranks)), soft_wrap=True)
    console.print(f"A run here: {layout.in_words()}.", soft_wrap=True)


def _layout(config: EstimateConfig, facts: ModelFacts, memory: Memory | None) -> ChosenLayout:
    """Of a run on data whose samples are all as long as may be."""

    def check(settled: EstimateConfig, facts: ModelFacts) -> None:
        if settled.ds.packing_samples and facts.model_class:
            check_packable(facts.model_class, facts.config)

    longest = config.data.max_len
    lengths = Lengths(longest, config.train.batch_size * longest)
    return open_layout(config, facts, config.ranks, config.device == "cpu", check).choose(lengths, memory)


def _tokens(config: EstimateConfig) -> int:
    """Of a micro-batch: the budget, or the longest samples."""
    budget = config.train.max_tokens_per_micro_batch
    return budget or config.data.max_len * (1 if config.ds.packing_samples else config.train.micro_batch_size)


def _memory(config: EstimateConfig) -> Memory | None:
    if config.memory is not None:
        return Memory(config.device == "cpu", size_bytes(config.memory))
    is_here = config.device == "cpu" or torch.cuda.is_available()
    return Memory.free_here(config.device == "cpu") if is_here else None


def _row(way: Way, needed: RankMemory, memory: Memory | None, unit_bytes: int) -> list[str]:
    states = needed.states
    sizes = [
        states.weights_bytes,
        states.gradients_bytes,
        states.optimizer_bytes,
        states.beside_bytes + needed.activation_bytes,
        states.update_bytes,
        needed.device_bytes,
        states.host_bytes,
    ]
    switches = ["yes" if one else "" for one in (way.offload, way.recomputes)]
    fits = "" if memory is None else "yes" if needed.fits(memory) else "no"
    return [str(way.zero_stage), *switches, *(f"{size / unit_bytes:.1f}" for size in sizes), fits]


def _verdict(found: dict[Way, RankMemory], memory: Memory | None, lowest: int) -> str:
    """Args: lowest: stage of ZeRO to be recommended."""
    if memory is None:
        return "Give --memory 80GB, or another size, to see what fits."
    room = size_text(memory.device_bytes)
    fitting = [way for way, needed in found.items() if way.zero_stage >= lowest and needed.fits(memory)]
    if fitting:
        return f"Of {room}, a tenth is left for the allocator. The fastest that fits: {fitting[0].flags()}"
    least = min(found, key=lambda way: found[way].device_bytes)
    return (
        f"Nothing fits {room}: {least.flags()} takes least, {size_text(found[least].device_bytes)}. More ranks, "
        "--ds.lora.rank or a lower --train.max_tokens_per_micro_batch would take less."
    )
