"""DeepSpeed as it is, without our patches; runs inside a rank."""

from __future__ import annotations

import math
import os
import pickle
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from openrlhf.engine.patches.patch import SWITCH


@contextmanager
def without_patches():
    with patch.dict(os.environ, {SWITCH: "off"}):
        yield


def updates_while_an_engine_is_made() -> int:
    """Calls of the optimizer's step, in bf16 without ZeRO."""
    from openrlhf.config import DeepspeedConfig
    from openrlhf.models import Actor
    from openrlhf.strategy import DeepspeedStrategy
    from tests.helpers.tiny_models import tiny_model

    strategy = DeepspeedStrategy(ds=DeepspeedConfig(zero_stage=0, param_dtype="bf16"))
    strategy.setup_distributed()
    actor = Actor(tiny_model("llama", dtype=torch.bfloat16))
    optimizer = strategy.create_optimizer(actor)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    updates = []
    optimizer.register_step_post_hook(lambda *words: updates.append(words))
    with without_patches():
        strategy.prepare((actor, optimizer, schedule))
    actor.engine.destroy()
    return len(updates)


def step_with_an_infinite_gradient() -> tuple[bool, bool]:
    """Whether weights are finite after a step in fp32 without ZeRO, and whether the outcome says it was applied."""
    from openrlhf.config import DeepspeedConfig
    from openrlhf.models import Actor
    from openrlhf.strategy import DeepspeedStrategy
    from tests.helpers.tiny_models import tiny_model

    strategy = DeepspeedStrategy(ds=DeepspeedConfig(zero_stage=0, param_dtype="fp32"))
    strategy.setup_distributed()
    actor = Actor(tiny_model("llama"))
    optimizer = strategy.create_optimizer(actor, lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    strategy.prepare((actor, optimizer, schedule))
    with without_patches():
        log_probs = actor(torch.tensor([[3, 4, 5]]))
        with actor.trained.micro_batch(is_last=True):
            actor.trained.backward_share(log_probs.sum() * math.inf)
        outcome = actor.trained.step()
    weights = list(actor.model.parameters())
    actor.engine.destroy()
    return all(bool(w.isfinite().all()) for w in weights), outcome.is_applied


def first_pass_sends_inputs_as_objects() -> tuple[bool, bool]:
    """Whether an engine with tensor parallelism pickles its first inputs, and whether a process group can be."""
    from tests.equivalence.cells import Layout, prepare_run
    from tests.equivalence.reference import Recipe

    with without_patches():
        run = prepare_run(Recipe("llama"), Layout(zero_stage=1, micro_batch_size=4, tensor_parallel=2))
    # On every rank alike: where one rank fails to pickle its inputs, the other waits for ever.
    with patch("deepspeed.comm.broadcast_object_list", side_effect=_SentAsObject):
        try:
            run.train(0, 1)
            is_sent = False
        except _SentAsObject:
            is_sent = True
    run.actor.engine.destroy()
    return is_sent, _can_be_pickled(torch.distributed.group.WORLD)


def untrue_ties_are_made(folder: str) -> bool:
    """Whether ZeRO-3 ties embeddings that the folder holds apart."""
    from tests.models.zero3_cases import has_tied_embeddings

    with without_patches():
        return has_tied_embeddings(folder)


class _SentAsObject(Exception):
    pass


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except TypeError:
        return False
    return True
