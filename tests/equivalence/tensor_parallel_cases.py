"""Cases of tensor parallelism that run inside a rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tests.equivalence.cells import Layout, Run, prepare_run
from tests.equivalence.reference import Recipe

Weights = dict[str, Tensor]
STEPS_BEFORE, STEPS_IN_ALL = 4, 8


@dataclass(frozen=True)
class Resumed:
    """What an unbroken run and a resumed one came to; empty but on rank 0."""

    weights_when_saved: Weights
    weights_unbroken: Weights
    weights_resumed: Weights


def names_of_parameters_held(recipe: Recipe, layout: Layout) -> tuple[list[str], list[str]]:
    """Names of those held in part, and of those held whole."""
    from openrlhf.engine.parameters import is_shared_out, whole_shape

    run = prepare_run(recipe, layout)
    in_part, whole = [], []
    for name, parameter in run.actor.model.named_parameters():
        num_elements = 1
        for size in whole_shape(parameter):
            num_elements *= size
        assert num_elements == parameter.numel() * (2 if is_shared_out(parameter) else 1), name
        (in_part if is_shared_out(parameter) else whole).append(name)
    run.actor.engine.destroy()
    return in_part, whole


def save_export_and_resume(recipe: Recipe, layout: Layout, folder: Path) -> Resumed:
    """Trains on behind a save and an export; then again from the save."""
    run = prepare_run(recipe, layout)
    consumed_samples = _train_and_save(run, folder)
    run.strategy.save_model(run.actor, None, str(folder / "model"))
    saved = _weights(run)
    run.train(STEPS_BEFORE, STEPS_IN_ALL, consumed_samples)
    unbroken = _weights(run)
    run.actor.engine.destroy()
    again = prepare_run(recipe, layout)
    _, states = again.strategy.load_ckpt(again.actor, str(folder / "checkpoints"))
    again.train(STEPS_BEFORE, STEPS_IN_ALL, states["consumed_samples"])
    resumed = _weights(again)
    again.actor.engine.destroy()
    return Resumed(saved, unbroken, resumed)


def resume_with_another_size(recipe: Recipe, layout: Layout, folder: Path) -> str:
    """What is said of a checkpoint that, by its own word, was saved without tensor parallelism."""
    import torch.distributed as dist

    from openrlhf.errors import UserError

    run = prepare_run(recipe, layout)
    _train_and_save(run, folder)
    path = folder / "checkpoints" / f"global_step{STEPS_BEFORE}" / "training_state.json"
    if run.strategy.is_rank_0():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tensor_parallel_size": 1}))
    dist.barrier()
    try:
        from openrlhf.checkpoint.training_state import load_training_state

        load_training_state(run.actor.engine, path.parent, run.strategy.get_rank(), 2)
    except UserError as error:
        return str(error)
    finally:
        run.actor.engine.destroy()
    return ""


def _train_and_save(run: Run, folder: Path) -> int:
    """Returns the consumed samples."""
    results = run.train(0, STEPS_BEFORE)
    consumed_samples = sum(result.counts.num_units_global for result in results)
    run.strategy.save_ckpt(
        run.actor,
        str(folder / "checkpoints"),
        tag=f"global_step{STEPS_BEFORE}",
        client_state={"consumed_samples": consumed_samples},
    )
    return consumed_samples


def _weights(run: Run) -> Weights:
    from openrlhf.engine.parameters import whole_weights

    is_rank_0 = run.strategy.is_rank_0()
    return {name: value for name, value in whole_weights(run.actor.model, is_rank_0) if value is not None}
