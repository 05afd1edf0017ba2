"""Preferences trained on real ranks, in any layout and with each kind of reference; runs inside a rank."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from openrlhf.batching import Unit
from openrlhf.errors import UserError
from openrlhf.objectives.pair_losses import PairLossSettings
from openrlhf.objectives.preference import PreferenceObjective
from openrlhf.objectives.reference import BaseUnderAdapters, ComputedReference, FrozenReference
from openrlhf.processes import this_process
from openrlhf.trainer import computed_reference
from openrlhf.trainer.computed_reference import compute_reference, with_log_probs
from openrlhf.trainer.memory import MemoryBudget
from tests.objectives.pair_cases import BATCH_SIZE, NUM_PAIRS, NUM_STEPS, Pairs

SETTINGS = PairLossSettings(beta=0.1, label_smoothing=0.1)
MIX = {"sigmoid": 1.0, "ipo": 0.01, "aot": 0.5, "bco_pair": 0.5, "sft": 0.2, "orpo": 0.1}


class WeightedPairs(Pairs):
    """Pairs that count differently, with the reference's log-probs; one stands twice in a window."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.weights = (torch.rand(NUM_PAIRS, generator=draw) + 0.5).tolist()
        self.references = (-6 * torch.rand(NUM_PAIRS, 2, generator=draw) - 60).tolist()
        self.ids[3], self.references[3] = self.ids[0], self.references[0]

    def unit(self, row: int) -> Unit:
        chosen, rejected = self.references[row]
        numbers = {"reference_chosen": chosen, "reference_rejected": rejected}
        return replace(super().unit(row), weight=self.weights[row], numbers=numbers)


def _strategy(ring: int, zero_stage: int, packed: bool, max_tokens: int | None):
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.strategy import DeepspeedStrategy

    strategy = DeepspeedStrategy(
        train=TrainConfig(batch_size=BATCH_SIZE, micro_batch_size=1, max_tokens_per_micro_batch=max_tokens),
        ds=DeepspeedConfig(zero_stage=zero_stage, param_dtype="fp32", packing_samples=packed, ring_attn_size=ring),
        adam=AdamConfig(lr=1e-3, eps=1e-6),
    )
    strategy.setup_distributed()
    return strategy


def curve(
    ring: int, zero_stage: int, packed: bool, max_tokens: int | None = None, mix: dict[str, float] = MIX
) -> list[tuple[float, float, float]]:
    """(loss, reward margin, gradient norm) of each step; the reference is computed before."""
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.trainer.step import WindowStep
    from tests.helpers.tiny_models import tiny_model

    strategy = _strategy(ring, zero_stage, packed, max_tokens)
    actor = Actor(tiny_model("llama"), packing_samples=packed, ring_attn_size=ring)
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    actor.train()
    step = WindowStep(actor, actor.trained, strategy, PreferenceObjective(mix, SETTINGS, reference=ComputedReference()))
    windows = strategy.setup_dataloader(WeightedPairs(), 1, shuffle=False).windows(max_epochs=2)
    results = [step.run(window, number) for number, window in zip(range(NUM_STEPS), windows, strict=False)]
    actor.engine.destroy()
    return [(r.loss, r.metrics["rewards/margins"], r.outcome.grad_norm) for r in results]


def curve_of_adapters(
    kind: str,
    ring: int,
    zero_stage: int,
    folder: str = "",
    max_tokens: int | None = None,
    dropout: float = 0.1,
    short: tuple[int, ...] = (),
) -> list[tuple[float, float, float]]:
    """(loss, reward margin, gradient norm) of adapters whose reference is of that kind.

    Args: short: ranks on which memory runs out in the second pass of the reference.
    """
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.trainer.step import WindowStep
    from tests.helpers.tiny_models import tiny_model

    strategy = _strategy(ring, zero_stage, True, max_tokens)
    is_short, met = strategy.get_rank() in short, [False]
    pairs: Any = Pairs()
    reference: Any = BaseUnderAdapters()
    if kind != "off":
        frozen = strategy.prepare(Actor(tiny_model("llama"), packing_samples=True, ring_attn_size=ring))
        reference = FrozenReference(frozen)
        _fail_in_second_pass(frozen, is_short, met)
    if kind == "computed":
        loader = strategy.setup_dataloader(pairs, 1, shuffle=False)
        computed = compute_reference(lambda: frozen, loader, strategy, Path(folder) / "reference.f64")
        pairs = with_log_probs(pairs, computed)
        reference = ComputedReference()
    torch.manual_seed(0)
    actor = Actor(
        tiny_model("llama"), packing_samples=True, ring_attn_size=ring, lora_rank=4, lora_alpha=32, lora_dropout=dropout
    )
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    actor.train()
    _fail_in_second_pass(actor, is_short and kind == "off", met)
    step = WindowStep(actor, actor.trained, strategy, PreferenceObjective({"sigmoid": 1.0}, reference=reference))
    loader = strategy.setup_dataloader(pairs, 1, shuffle=False)
    windows, memory = loader.windows(max_epochs=2), MemoryBudget(loader, actor)
    results = [
        memory.compute(window, partial(step.run, optimizer_step=number))
        for number, window in zip(range(NUM_STEPS), windows, strict=False)
    ]
    actor.engine.destroy()
    assert met[0] == is_short
    assert actor.training, "its dropout is on"
    return [(r.loss, r.metrics["rewards/margins"], r.outcome.grad_norm) for r in results]


def _fail_in_second_pass(model: Any, is_short: bool, met: list[bool]) -> None:
    """Of those without gradients, between two layers. Args: met: is told when it has failed."""
    passes = [0]

    def fail(module: torch.nn.Module, inputs: Any) -> None:
        passes[0] += not torch.is_grad_enabled()
        if is_short and passes[0] == 2 and not met[0]:
            met[0] = True
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.scorer.base_model.model.layers[1].register_forward_pre_hook(fail)


def _strategy_model_and_loader() -> tuple[Any, Any, Any]:
    from openrlhf.models import Actor
    from tests.helpers.tiny_models import tiny_model

    strategy = _strategy(1, 0, True, None)
    model = strategy.prepare(Actor(tiny_model("llama"), packing_samples=True))
    return strategy, model, strategy.setup_dataloader(Pairs(), 1, shuffle=False)


def reference_beside(folder: str, what: str) -> tuple[Any, np.ndarray, np.ndarray, list[str]]:
    """What is computed, or what is told, where `what` happens amid it; what the next run has; what is right."""
    strategy, model, loader = _strategy_model_and_loader()
    whole = compute_reference(lambda: model, loader, strategy, Path(folder) / "whole.f64")
    append, replace_file, said = computed_reference._append, computed_reference.replace_file, list[str]()
    file, passes = Path(folder) / "reference.f64", [0]

    def happen(target: Any, content: bytes) -> None:
        append(target, content)
        passes[0] += 1
        if passes[0] == 3 and what == "folder removed":
            shutil.rmtree(folder)
        if passes[0] == 3 and what == "journal spoilt":
            Path(target.name).write_bytes(b"7" * 100)
        if passes[0] == 3 and what == "file of another run":
            marks = np.full(whole.shape, 7.0).tobytes()
            file.write_bytes(marks + xxhash.xxh3_64_digest(marks))

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    computed_reference._append, strategy.print = happen, said.append
    computed_reference.replace_file = refuse if what == "disk full" else replace_file
    try:
        first: Any = compute_reference(lambda: model, loader, strategy, file)
    except UserError as error:
        first = str(error)
    finally:
        computed_reference._append, computed_reference.replace_file = append, replace_file
    needed: Any = model if what == "disk full" else None
    return first, compute_reference(lambda: needed, loader, strategy, file), whole, said


def reference_after_a_kill(
    folder: str, num_bytes: int, damaged_row: int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What is computed in one go, and by a run that finds so many bytes of a killed one's journal; what that says."""
    strategy, model, loader = _strategy_model_and_loader()
    file, said = Path(folder) / "reference.f64", list[str]()
    whole = compute_reference(lambda: model, loader, strategy, file)
    if strategy.is_rank_0():
        kept = computed_reference._with_checksums(np.concatenate([[[7.0, 7.0]], whole[1:]]))  # a mark
        if damaged_row is not None:
            kept["log_probs"][damaged_row] = 7.0
        ended = this_process().rpartition("-")[0] + "-1"
        file.with_name(f"reference.making-{ended}").write_bytes(kept.tobytes()[:num_bytes])
        file.unlink()
        strategy.print = said.append
    return whole, compute_reference(lambda: model, loader, strategy, file), said
