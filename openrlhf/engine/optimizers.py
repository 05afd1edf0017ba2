"""Optimizers: AdamW through DeepSpeed (on the CPU where offloaded) and Muon; decay on the right parameters.

Schedules of learning rates are those of transformers, with one horizon for the whole run.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

from openrlhf.config.settings import AdamConfig, MuonConfig
from openrlhf.engine.operators import load_adam
from openrlhf.engine.parameters import whole_shape
from openrlhf.engine.patches.cpu_adam_steps import make_steps_independent
from openrlhf.engine.patches.muon_import import import_muon
from openrlhf.engine.patches.torch_adam import TorchAdam
from openrlhf.errors import UserError

EMBEDDING_TYPES = (nn.Embedding,)


def build_adamw(module: nn.Module, adam: AdamConfig, offload: bool) -> torch.optim.Optimizer:
    """DeepSpeed's FusedAdam, or its CPU Adam where the optimizer's state is offloaded; both decouple the decay."""
    options: dict[str, Any] = dict(lr=adam.lr, betas=adam.betas, eps=adam.eps)
    groups = decay_groups(module, adam.weight_decay, adam.decay_embeddings)
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        load_adam("cpu_adam", adam.kernel)
        optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    else:
        from deepspeed.ops.adam import FusedAdam

        load_adam("fused_adam", adam.kernel)
        optimizer = FusedAdam(groups, adam_w_mode=True, **options)
    make_steps_independent(optimizer)
    return optimizer


def build_muon(module: nn.Module, muon: MuonConfig, adam: AdamConfig) -> torch.optim.Optimizer:
    """DeepSpeed's Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on the matrices of hidden layers.

    Embeddings, head, biases and norms take AdamW.
    """
    from deepspeed.ops.adam import FusedAdam

    import_muon()
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    hidden_matrices = _hidden_matrices(module)
    for parameter in module.parameters():
        parameter.use_muon = id(parameter) in hidden_matrices  # type: ignore[attr-defined]  # DeepSpeed's mark
    groups: list[dict[str, Any]] = []
    for group in decay_groups(module, adam.weight_decay, adam.decay_embeddings):
        decay = group["weight_decay"]
        matrices = [p for p in group["params"] if p.use_muon]
        others = [p for p in group["params"] if not p.use_muon]
        if matrices:
            groups.append(dict(params=matrices, use_muon=True, lr=muon.lr, momentum=muon.momentum, weight_decay=decay))
        if others:
            groups.append(
                dict(params=others, use_muon=False, lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=decay)
            )
    load_adam("fused_adam", adam.kernel)
    optimizer = MuonWithAuxAdam(groups, adam_optimizer=FusedAdam, adam_optimizer_kwargs={"adam_w_mode": True})
    if optimizer.aux_optimizer is not None:
        make_steps_independent(optimizer.aux_optimizer)
    return optimizer


def is_muon(optimizer: Optimizer) -> bool:
    return any(group.get("use_muon") for group in optimizer.param_groups)


def adam_in_words(optimizer: Any) -> str:
    """Which code updates the weights, of the optimizer that DeepSpeed's engine wraps."""
    adam = getattr(optimizer, "aux_optimizer", None) or optimizer
    muon = "" if adam is optimizer else "Muon for matrices, for the rest "
    operator = getattr(adam, "ds_opt_adam", None) or getattr(getattr(adam, "multi_tensor_adam", None), "__self__", None)
    return muon + (f"torch's fused AdamW; {operator.why}" if isinstance(operator, TorchAdam) else type(adam).__name__)


def decay_groups(module: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms and, unless asked for, embeddings do not."""
    undecayed = {
        id(parameter)
        for child in module.modules()
        for parameter in child.parameters(recurse=False)
        if (isinstance(child, EMBEDDING_TYPES) and not decay_embeddings) or len(whole_shape(parameter)) < 2
    }
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        dict(params=[p for p in trainable if id(p) not in undecayed], weight_decay=weight_decay),
        dict(params=[p for p in trainable if id(p) in undecayed], weight_decay=0.0),
    ]
    return [group for group in groups if group["params"]]


def _hidden_matrices(module: nn.Module) -> set[int]:
    """ids of the 2-D weights that are neither of an embedding nor of a head, be it of tokens or of values."""
    matrices = {id(parameter) for parameter in module.parameters() if len(whole_shape(parameter)) == 2}
    models = [child for child in module.modules() if isinstance(child, PreTrainedModel)]
    # By what they are: a matrix of a layer may have as many rows as an embedding.
    outer: list[nn.Module | None] = [child for child in module.modules() if isinstance(child, EMBEDDING_TYPES)]
    outer += [head for model in models for head in (model.get_output_embeddings(), getattr(model, "score", None))]
    return matrices - {id(parameter) for part in outer if part is not None for parameter in part.parameters()}


# --- learning rates -------------------------------------------------------------------------------------------------


def build_schedule(
    optimizer: Optimizer,
    name: str = "cosine_with_min_lr",
    num_training_steps: int = 1,
    warmup_ratio: float = 0.03,
    min_lr_ratio: float = 0.1,
) -> LRScheduler:
    """A schedule over the whole run, however much of it is still to do.

    Args:
        num_training_steps: optimizer steps of the whole run.
        warmup_ratio: share of the steps in which the learning rate rises from 0; above 1 the run ends on the way.
        min_lr_ratio: the lowest learning rate of the schedules that have one, as a share of the highest.

    Raises UserError for a name that transformers does not know.
    """
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    known = [one.value for one in SchedulerType]
    if name not in known:
        raise UserError(f"--lr_scheduler {name!r} is none that transformers knows: {', '.join(sorted(known))}.")
    specific = {}
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        specific = {"min_lr_rate": min_lr_ratio}
    if name == "polynomial":  # it reads the optimizer's own rate, which Muon has not, and must end below it
        rate = optimizer.defaults.setdefault("lr", optimizer.param_groups[0]["lr"])
        specific = {"lr_end": min(1e-7, rate * min_lr_ratio)}
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=_num_warmup_steps(num_training_steps, warmup_ratio),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=specific,
    )


def _num_warmup_steps(num_training_steps: int, warmup_ratio: float) -> int:
    """All steps only by a share of 1 or more: a warm-up begins at 0, so that a run of one step would train nothing."""
    num_steps = math.ceil(num_training_steps * warmup_ratio)
    return num_steps if warmup_ratio >= 1 else min(num_steps, num_training_steps - 1)


def fit_schedule(scheduler: Any, num_steps: int, first_step: int) -> str:
    """Gives a schedule of transformers the run's horizon and begin: otherwise its rate would rise again, or never fall.

    Args: first_step: steps that were done before.
    Returns: what was changed, or what is to be known of another schedule, in words; '' where nothing is.
    """
    partials = [one for one in getattr(scheduler, "lr_lambdas", ()) if isinstance(one, functools.partial)]
    shapes = [one.keywords for one in partials if "num_training_steps" in one.keywords]
    horizons = {keywords["num_training_steps"] for keywords in shapes} - {num_steps}
    stands_at = scheduler.last_epoch if shapes else 0
    if not horizons and stands_at <= first_step:
        if isinstance(scheduler, LambdaLR):  # a checkpoint's rate may be of a schedule that this run no longer has
            _take_rates(scheduler)
        return _horizon_of_torch(scheduler, num_steps)
    scheduler.last_epoch = min(scheduler.last_epoch, first_step)
    for keywords in shapes:
        keywords["num_training_steps"] = num_steps
        keywords["num_warmup_steps"] = min(keywords["num_warmup_steps"], num_steps - 1)
    _take_rates(scheduler)
    made_for = ", ".join(map(str, sorted(horizons)))
    if stands_at > first_step:
        return (
            f"note: the schedule of the learning rate stood at step {stands_at}, and this run begins at {first_step} "
            f"of {num_steps} steps: it begins there, too. After a load_ckpt, give fit its consumed_samples."
        )
    return (
        f"note: the schedule of the learning rate was made for {made_for} steps, and this run takes {num_steps}: it "
        "goes over these now."
    )


def _take_rates(scheduler: Any) -> None:
    """Of the step that it stands at."""
    rates = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, base_lr, shape in rates:
        group["lr"] = base_lr * shape(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def _horizon_of_torch(scheduler: Any, num_steps: int) -> str:
    """torch's own schedules end, or turn round, after a number of calls that only the script can have meant."""
    for name in ("total_steps", "T_max", "total_iters"):
        steps = getattr(scheduler, name, num_steps)
        if steps != num_steps:
            kind = type(scheduler).__name__
            return f"warning: {kind} has {name}={steps}, and this run takes {num_steps} steps; give it as many."
    return ""
