"""What the ranks run for tests/models/test_zero3.py."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from openrlhf.engine.parameters import gathered, is_partitioned, names_of_non_finite
from openrlhf.errors import UserError
from openrlhf.models import Actor, expert_leaf_modules
from tests.helpers.tiny_models import tiny_model
from tests.models.batches import make_samples

MAX_NORM = 1.0
LENGTHS = ((6, 3), (9,))  # of each rank's pack


def engine_config(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "gradient_clipping": MAX_NORM,
    }


def train(
    source: str,
    kind: str,
    stage: int,
    steps: int,
    checkpointing: bool = False,
    with_aux_loss: bool = False,
    only_rank_0_has_targets: bool = False,
    weighs_by_probability: bool = False,
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of some steps of plain SGD; each rank has a pack of its own.

    Args:
        source: a saved model's folder, which ZeRO-3 then loads in shards; "" for the tiny model in memory.
        weighs_by_probability: weights are a function of the log-probs, and the entropy is asked for too.
    """
    import deepspeed

    _join_deepspeed()
    config = engine_config(stage)
    actor = Actor(
        source or tiny_model(kind), param_dtype="fp32", ds_config=config if source else None, packing_samples=True
    )
    if checkpointing:
        actor.gradient_checkpointing_enable()
        actor.train()
    if stage == 3 and with_aux_loss:
        deepspeed.utils.set_z3_leaf_modules(actor.model, expert_leaf_modules(actor.model))
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.05)
    engine, *_ = deepspeed.initialize(model=actor.trainable_module, optimizer=optimizer, config=config)
    actor.attach_engine(engine)
    losses, norms = [], []
    for _ in range(steps):
        inputs = inputs_of_rank(dist.get_rank(), only_rank_0_has_targets)
        loss = loss_by_probability(actor, inputs) if weighs_by_probability else _loss(actor, inputs, with_aux_loss)
        engine.backward(loss * dist.get_world_size())
        losses.append(_sum_over_ranks(loss))
        engine.step()
        norms.append(float(engine.get_global_grad_norm() or 0.0))  # stage 0 does not tell it
    engine.destroy()
    return losses, norms


def partitioned_beside_an_actor(source: str) -> tuple[bool, bool]:
    """Whether the weights are in parts: of an actor that ZeRO-3 loads, and of a model made while it lives."""
    _join_deepspeed()
    actor = Actor(source, param_dtype="fp32", ds_config=engine_config(3))
    other = tiny_model("qwen3")
    return _is_in_parts(actor.model), _is_in_parts(other)


def save_with_untrue_ties(folder: Path) -> None:
    """A model of two embeddings, and a configuration that says they are one."""
    tiny_model("qwen3", tie_word_embeddings=False).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


def has_tied_embeddings(source: str) -> bool:
    """Of an actor that ZeRO-3 loads."""
    _join_deepspeed()
    model = Actor(source, param_dtype="fp32", ds_config=engine_config(3)).model
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def generate(source: str, max_new_tokens: list[int]) -> list[int]:
    """The tokens of an actor in ZeRO-3's engine; each rank generates its own number of them."""
    import deepspeed

    _join_deepspeed()
    actor = Actor(source, param_dtype="fp32", ds_config=engine_config(3))
    engine, *_ = deepspeed.initialize(
        model=actor.trainable_module, optimizer=torch.optim.SGD(actor.parameters(), lr=0.05), config=engine_config(3)
    )
    actor.attach_engine(engine)
    tokens = generated(actor, max_new_tokens[dist.get_rank()])
    engine.destroy()
    return tokens


def generated(actor: Actor, max_new_tokens: int) -> list[int]:
    actor.eval()
    prompt = torch.tensor([[1, 5, 9]])
    options = dict(attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=None)
    return actor.generate(prompt, max_new_tokens=max_new_tokens, **options)[0].tolist()


def _is_in_parts(model: torch.nn.Module) -> bool:
    return any(is_partitioned(parameter) for parameter in model.parameters())


def non_finite_of_sizes_that_ranks_do_not_divide() -> tuple[list[str], list[str]]:
    """What is found in a layer of 3 weights and a bias of 1, and after its last weight became a nan.

    Memory that nobody has written is full of nans, as under --train.full_determinism_enable.
    """
    import deepspeed

    _join_deepspeed()
    torch.use_deterministic_algorithms(True)
    with deepspeed.zero.Init(config_dict_or_path=engine_config(3)):
        layer = torch.nn.Linear(3, 1)
    torch.use_deterministic_algorithms(False)
    found = names_of_non_finite(layer)
    with gathered([layer.weight], writing=True), torch.no_grad():
        layer.weight[0, -1] = torch.nan
    return found, names_of_non_finite(layer)


def _join_deepspeed() -> None:
    import deepspeed

    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def plain_losses_by_probability(kind: str, steps: int, only_rank_0_has_targets: bool) -> list[float]:
    """The losses of the same steps in one process, without an engine."""
    actor = Actor(tiny_model(kind), packing_samples=True)
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        packs = (inputs_of_rank(rank, only_rank_0_has_targets) for rank in range(len(LENGTHS)))
        loss = torch.stack([loss_by_probability(actor, inputs) for inputs in packs]).sum()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(actor.parameters(), MAX_NORM)
        optimizer.step()
    return losses


def inputs_of_rank(rank: int, only_rank_0_has_targets: bool) -> dict[str, Any]:
    inputs = make_samples(LENGTHS[rank], seed=rank).packed()
    if only_rank_0_has_targets and rank > 0:
        inputs["target_index"], inputs["target_ids"] = inputs["target_index"][:0], inputs["target_ids"][:0]
    return inputs


def loss_by_probability(actor: Actor, inputs: dict[str, Any]) -> torch.Tensor:
    """Weights that are large enough for the probabilities of a model that knows nothing."""
    scores = actor.score_targets(**inputs, target_weights=lambda log_probs: 100 * log_probs.exp(), with_entropy=True)
    assert scores.is_likeliest.shape == scores.entropy.shape == inputs["target_ids"].shape
    return -scores.weighted_sum


def _loss(actor: Actor, inputs: dict[str, Any], with_aux_loss: bool) -> torch.Tensor:
    group = dist.group.WORLD if with_aux_loss else None
    scores = actor.score_targets(**inputs, with_aux_loss=with_aux_loss, router_group=group)
    loss = -0.1 * scores.log_probs.sum()
    return loss if scores.aux_loss is None else loss + 0.5 * scores.aux_loss


def _sum_over_ranks(value: torch.Tensor) -> float:
    total = value.detach().double()
    dist.all_reduce(total)
    return total.item()


def refusal(folder: str) -> str:
    """What a user is told whose model ZeRO-3 does not load."""
    try:
        Actor(folder, param_dtype="fp32", ds_config=engine_config(3))
    except UserError as error:
        return str(error)
    return ""
