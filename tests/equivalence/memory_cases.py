"""A recipe trained while memory runs out, or while its layout changes; runs inside a rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from tests.equivalence.cells import Layout, Run, prepare_run
from tests.equivalence.reference import Curve, Recipe

EVERYONE = (0, 1, 2, 3)
SMALL_BUCKET = 8_192  # numbers: a few of them hold the model
_REDUCES_A_BUCKET = ("reduce_ipg_grads", "_DeepSpeedZeroOptimizer_Stage3__reduce_and_partition_ipg_grads")


@dataclass(frozen=True)
class Fault:
    """Memory runs out once: in a pass of a micro-batch of a step, on some ranks."""

    step: int
    micro_step: int
    where: str  # forward, head (in a tile), backward, bucket (behind the first), gather, reduction, reduced (behind it)
    ranks: tuple[int, ...] = EVERYONE


def train_with_faults(recipe: Recipe, layout: Layout, faults: tuple[Fault, ...]) -> tuple[Curve, list[str]]:
    """The curve, and what was told. After every step one halving is taken back."""
    from openrlhf.trainer.memory import MemoryBudget

    run = prepare_run(recipe, layout)
    told: list[str] = []
    memory = MemoryBudget(run.loader, run.actor, tell=lambda words, facts: told.append(words))
    results = []
    with _failing(run, faults) as steps:
        for number, window in zip(range(recipe.num_steps), run.windows(0), strict=False):
            memory._patience, memory._has_grown = 1, False
            steps.append(number)
            results.append(memory.compute(window, lambda one, number=number: run.step.run(one, number)))
    return _curve(run, results), told


def train_in_changing_layouts(recipe: Recipe, layout: Layout) -> Curve:
    """Another micro-batch size at every step, and activations recomputed at every other."""
    from openrlhf.batching import FixedSize, TokenBudget

    run = prepare_run(recipe, layout)
    layouts = [FixedSize(1), TokenBudget(64, layout.packed), FixedSize(4), FixedSize(2)]
    results = []
    windows = run.windows(0)
    for number in range(recipe.num_steps):
        run.loader.layout = layouts[number % len(layouts)]
        if number % 2:
            run.actor.gradient_checkpointing_enable()
        else:
            run.actor.gradient_checkpointing_disable()
        results.append(run.step.run(next(windows), number))
    windows.close()
    return _curve(run, results)


def train_while_tuning(recipe: Recipe, layout: Layout, slow_rank: int) -> tuple[Curve, list[str]]:
    """The layouts of its steps are those of a tuner's trials; the second one is the fastest, but on one rank."""
    from openrlhf.batching import StepLayout
    from openrlhf.trainer.layout_tuner import LayoutTuner
    from openrlhf.trainer.memory import MemoryBudget

    run = prepare_run(recipe, layout)
    candidates = [StepLayout(64), StepLayout(128), StepLayout(96, recomputes=True)]
    memory = MemoryBudget(run.loader, run.actor)
    tuner = LayoutTuner(run.strategy, run.loader, run.actor, memory, candidates)
    tuner.begin(200, None)
    windows, results, layouts = run.windows(0), [], []
    for number in range(recipe.num_steps):
        layouts.append(f"{run.loader.layout.max_tokens} {run.actor.is_checkpointing}")
        results.append(run.step.run(next(windows), number))
        is_second, is_slow = run.loader.layout.max_tokens == 128, run.strategy.get_rank() == slow_rank
        seconds = {96: 0.8}.get(run.loader.layout.max_tokens, 1.0)
        tuner.after_step(0.5 if is_second and not is_slow else seconds, results[-1].counts.num_tokens_global)
    windows.close()
    return _curve(run, results), layouts


def _curve(run: Run, results: list[Any]) -> Curve:
    from openrlhf.engine.parameters import whole_weights

    weights = dict(whole_weights(run.actor.model, True))
    run.actor.engine.destroy()
    return Curve([r.loss for r in results], [r.outcome.grad_norm for r in results], weights, [])


@contextmanager
def _failing(run: Run, faults: tuple[Fault, ...]) -> Iterator[list[int]]:
    """Within, passes fail as `faults` say; the list that it gives is told the number of each step."""
    from deepspeed.runtime.zero import partition_parameters

    from openrlhf.models.head.tiles import TiledHead

    waiting, steps, at, tile = list(faults), [], [0], TiledHead.output
    gather = partition_parameters._dist_allgather_fn

    def fail(where: str) -> None:
        for fault in waiting:
            is_here = (fault.step, fault.micro_step, fault.where) == (steps[-1], at[0], where)
            if is_here and run.strategy.get_rank() in fault.ranks:
                waiting.remove(fault)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Injected into {where}.")

    compute, engine, step = run.step._forward_and_backward, run.actor.engine, run.step
    buckets = _small_buckets(engine.optimizer, fail) if any(one.where == "bucket" for one in faults) else []

    def noted(scorer: Any, micro_step: int, *more: Any) -> Any:
        at[0] = micro_step
        buckets.clear()
        return compute(scorer, micro_step, *more)

    def failing_tile(*args: Any) -> Any:
        output = tile(*args)
        fail("head")
        return output

    def failing_reduction(*args: Any, **kwargs: Any) -> Any:
        fail("reduction")
        type(engine).allreduce_gradients(engine, *args, **kwargs)
        fail("reduced")

    def failing_gather(*args: Any) -> Any:
        fail("gather")
        return gather(*args)

    step._forward_and_backward, engine.allreduce_gradients = noted, failing_reduction
    partition_parameters._dist_allgather_fn = failing_gather
    TiledHead.output = failing_tile  # type: ignore[method-assign]
    hooks = _hooks(run.actor.scorer.base_model.model, fail)
    try:
        yield steps
    finally:
        TiledHead.output = tile  # type: ignore[method-assign]
        partition_parameters._dist_allgather_fn = gather
    for hook in hooks:
        hook.remove()
    assert not [fault for fault in waiting if run.strategy.get_rank() in fault.ranks], "a fault was not met"


def _hooks(transformer: Any, fail: Any) -> list[RemovableHandle]:
    def in_backward(module: Any, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: fail("backward"))

    return [
        transformer.layers[1].register_forward_pre_hook(lambda module, inputs: fail("forward")),
        transformer.layers[0].register_forward_hook(in_backward),
    ]


def _small_buckets(optimizer: Any, fail: Any) -> list[int]:
    """The gradients of a pass go in several buckets. Returns a list that grows by each of them."""
    (name,) = (one for one in _REDUCES_A_BUCKET if hasattr(optimizer, one))
    reduce, reduced = getattr(optimizer, name), []

    def reduce_or_fail(*args: Any, **kwargs: Any) -> None:
        if reduced:
            fail("bucket")
        reduce(*args, **kwargs)
        reduced.append(1)

    optimizer.reduce_bucket_size = SMALL_BUCKET
    setattr(optimizer, name, reduce_or_fail)
    return reduced


def evaluate_with_a_fault(recipe: Recipe, layout: Layout, ranks: tuple[int, ...]) -> tuple[dict, dict, int]:
    """The record of an evaluation, that of one in which memory runs out in the second pass, and its halvings."""
    from openrlhf.objectives import objective_named
    from openrlhf.trainer.evaluation import evaluate
    from openrlhf.trainer.memory import MemoryBudget

    run, objective = prepare_run(recipe, layout), objective_named(recipe.loss)
    right = evaluate(run.actor, run.loader.windows(max_epochs=1), run.strategy, objective)
    passes, loss = [0], objective.loss

    def failing(*args: Any) -> Any:
        passes[0] += 1
        share = loss(*args)
        if passes[0] == 2 and run.strategy.get_rank() in ranks:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return share

    objective.loss = failing
    memory = MemoryBudget(run.loader)
    found = evaluate(run.actor, run.loader.windows(max_epochs=1), run.strategy, objective, memory=memory)
    run.actor.engine.destroy()
    return right, found, memory.halvings
