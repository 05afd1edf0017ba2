"""The table of estimate_memory: a line for each ZeRO stage, with and without offload and checkpointing."""

from __future__ import annotations

import os

import torch
from rich.console import Console
from rich.table import Table

from openrlhf.config.estimate_settings import EstimateConfig
from openrlhf.config.kinds import size_bytes
from openrlhf.engine.launchers import says_local_ranks
from openrlhf.errors import UserError
from openrlhf.models.attention.calls import ModelFacts
from openrlhf.models.attention.choice import check_packable
from openrlhf.models.loading import facts_of
from openrlhf.run.layout_choice import ChosenLayout, OpenLayout, open_layout
from openrlhf.run.lengths import Lengths
from openrlhf.run.memory_estimate import Memory, RankMemory, RunMemory, Way, size_text, unit_of

_COLUMNS = ("ZeRO", "offload", "recompute", "weights", "grads", "states", "active", "update", "peak", "host", "fits")


def print_memory_table(config: EstimateConfig, console: Console | None = None) -> None:
    """Prints what each way of the settings needs on a rank, and which of them fit.

    Raises UserError for a model that does not run without its weights.
    """
    console = console or Console()
    facts = facts_of(config.model.model_name_or_path, config.ds.param_dtype, config.model.trust_remote_code)
    memory = _memory(config)
    opened, longest = _open_layout(config, facts), config.data.max_len
    layout = opened.choose(Lengths(longest, config.train.batch_size * longest), memory)
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
    most = max(needed.device_bytes for needed in found.values())
    unit, unit_bytes = unit_of(min(most, 2**40 - 1))  # in TiB small cells would be 0.0
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
    console.print(_verdict(run, found, memory), soft_wrap=True)
    console.print(_words_on_run(opened, layout, memory, longest), soft_wrap=True)


def _words_on_run(opened: OpenLayout, layout: ChosenLayout, memory: Memory | None, longest: int) -> str:
    """Its layout, or why it is refused."""
    of_rank = longest // layout.config.ds.ring_attn_size
    try:
        layout.memory.check_in(memory, opened.ways, of_rank, f"a sample of {longest:,} tokens")
    except UserError as error:
        return f"A run here is refused: {error}"
    return f"A run here: {layout.in_words()}."


def _open_layout(config: EstimateConfig, facts: ModelFacts) -> OpenLayout:
    """Raises UserError where nothing that the settings leave open makes them possible."""

    def check(settled: EstimateConfig, facts: ModelFacts) -> None:
        if settled.ds.packing_samples and facts.model_class:
            check_packable(facts.model_class, facts.config)

    return open_layout(config, facts, config.ranks, config.device == "cpu", check)


def _tokens(config: EstimateConfig) -> int:
    """Of a micro-batch: the budget, or the longest samples."""
    budget = config.train.max_tokens_per_micro_batch
    return budget or config.data.max_len * (1 if config.ds.packing_samples else config.train.micro_batch_size)


def _memory(config: EstimateConfig) -> Memory | None:
    if config.memory is not None:
        return Memory(config.device == "cpu", size_bytes(config.memory))
    is_here = config.device == "cpu" or torch.cuda.is_available()
    is_known = says_local_ranks(os.environ)  # in a pod of a job the ranks of a machine are started by what runs there
    return Memory.free_here(config.device == "cpu") if is_here and is_known else None


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


def _verdict(run: RunMemory, found: dict[Way, RankMemory], memory: Memory | None) -> str:
    if memory is None:
        return "Give --memory 80GiB, or another size, to see what fits."
    room = size_text(memory.device_bytes)
    fitting = [way for way in run.ways_to_recommend() if way in found and found[way].fits(memory)]
    if fitting:
        return f"Of {room}, a tenth is left for the allocator. The fastest that fits: {fitting[0].flags()}"
    least = min(found, key=lambda way: found[way].device_bytes)
    return (
        f"Nothing fits {room}: {least.flags()} takes least, {size_text(found[least].device_bytes)}. More ranks, "
        "--ds.lora.rank or a lower --train.max_tokens_per_micro_batch would take less."
    )
