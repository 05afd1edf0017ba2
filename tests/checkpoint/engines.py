"""A small DeepSpeed engine and its training, for the ranks of a RankPool to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

GLOBAL_BATCH = 8
_WIDTH = 5  # odd sizes, so that stretches of ranks cut through parameters


class Model(nn.Module):
    """Odd shapes, a tied weight, dropout, a buffer, a frozen parameter."""

    def __init__(self, hidden: int = 7) -> None:
        super().__init__()
        self.first = nn.Linear(_WIDTH, hidden)
        self.second = nn.Linear(hidden, 3, bias=False)
        self.tied = nn.Linear(hidden, 3, bias=False)
        self.tied.weight = self.second.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))

    def forward(self, rows: Tensor) -> Tensor:
        self.num_calls += 1
        hidden = self.dropout(torch.tanh(self.first(rows)))
        return (self.second(hidden) + 0.5 * self.tied(hidden) * self.frozen).square().sum()


def new_engine(stage: int, dtype: str = "fp32", optimizer: str = "adamw", hidden: int = 7) -> Any:
    """The same weights at every call, whatever the layout."""
    import deepspeed

    torch.manual_seed(7)
    model = Model(hidden)
    if dtype != "fp32":
        model = model.to(torch.bfloat16)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    base = _optimizer(optimizer, groups, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1.0 / (1 + step))
    zero = {"stage": stage, "stage3_param_persistence_threshold": 10, "reduce_scatter": optimizer != "muon"}
    if optimizer == "offloaded":
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype != "fp32"},
    }
    if dtype == "bf16_fp32_gradients":
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, *_ = deepspeed.initialize(model=model, optimizer=base, lr_scheduler=scheduler, config=config)
    return engine


def _optimizer(name: str, groups: list[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1e-2)
    if name == "fused":
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, lr=1e-2)
    if name == "muon":
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

        torch.compiler.set_stance("force_eager")  # Muon compiles its update, for minutes
        for parameter in model.parameters():
            parameter.use_muon = parameter.ndim > 1
        muon = dict(use_muon=True, lr=1e-2, momentum=0.95, weight_decay=0.0)
        adam = dict(use_muon=False, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        return MuonWithAuxAdam([dict(params=groups[0]["params"], **muon), dict(params=groups[1]["params"], **adam)])
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(groups, lr=1e-2)


def train(engine: Any, first_step: int, last_step: int, with_dropout: bool = False) -> list[float]:
    """Steps `[first_step, last_step)`, on rows that depend on the step alone; losses of this rank."""
    engine.train() if with_dropout else engine.eval()
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    dtype = next(engine.module.parameters()).dtype
    losses = []
    for step in range(first_step, last_step):
        rows = torch.randn(GLOBAL_BATCH, _WIDTH, generator=torch.Generator().manual_seed(step))
        loss = engine(rows[rank::num_ranks].to(dtype)) * num_ranks / GLOBAL_BATCH
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def whole_state(engine: Any) -> dict[str, Tensor]:
    """Master weights, moments and step counts, whole, gathered from all ranks; the model's weights and buffers."""
    import deepspeed

    from openrlhf.checkpoint.host_buffer import HostBuffer
    from openrlhf.checkpoint.optimizer_states import copy_optimizer_states

    mine = copy_optimizer_states(engine, HostBuffer())
    parts = {key: part.clone() for key, part in mine.tensors.items()}  # to send a view sends all the memory behind it
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, (parts, mine.starts, mine.shapes, mine.num_steps))
    whole: dict[str, Tensor] = {}
    for tensors, starts, shapes, num_steps in by_rank:
        for key, part in tensors.items():
            name = key.partition("|")[2]
            flat = whole.setdefault(key, torch.full((torch.Size(shapes[name]).numel(),), float("nan")))
            flat[starts[key] : starts[key] + part.numel()] = part.float()
        for name, count in num_steps.items():
            whole[f"step|{name}"] = torch.tensor(count)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        for name, parameter in engine.module.named_parameters():
            whole[f"weights|{name}"] = parameter.detach().float().flatten().clone()
    whole |= {f"buffer|{name}": buffer.clone() for name, buffer in engine.module.named_buffers()}
    whole["lr"] = torch.tensor([group["lr"] for group in engine.optimizer.param_groups])
    return whole


def save_by_hand(engine: Any, folder: str) -> None:
    """All ranks write a training state, without a store."""
    from openrlhf.checkpoint.host_buffer import HostBuffer
    from openrlhf.checkpoint.manifest import write_manifest
    from openrlhf.checkpoint.progress import TrainingProgress
    from openrlhf.checkpoint.training_state import copy_training_state, write_training_state

    rank = dist.get_rank()
    if rank == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
    dist.barrier()
    progress, num_ranks = TrainingProgress(optimizer_step=3), dist.get_world_size()
    state = copy_training_state(engine, progress, rank, num_ranks, HostBuffer(), {"a": [1]})
    write_training_state(state, Path(folder), rank)
    dist.barrier()
    if rank == 0:
        write_manifest(Path(folder))
    dist.barrier()


def load_by_hand(engine: Any, folder: str, is_same_optimizer: bool = True) -> Any:
    """Inverse of `save_by_hand`; returns the LoadedState."""
    from openrlhf.checkpoint.training_state import load_training_state

    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    return load_training_state(engine, Path(folder), rank, num_ranks, is_same_optimizer=is_same_optimizer)


def train_and_save(stage: int, dtype: str, folder: str, optimizer: str = "adamw") -> dict[str, Tensor]:
    """Three steps, saved; the whole state."""
    engine = new_engine(stage, dtype, optimizer)
    train(engine, 0, 3)
    save_by_hand(engine, folder)
    return whole_state(engine)


def load_in_new_engine(stage: int, dtype: str, folder: str, optimizer: str = "adamw") -> dict[str, Tensor]:
    """The whole state of a fresh engine after loading."""
    engine = new_engine(stage, dtype, optimizer)
    load_by_hand(engine, folder)
    return whole_state(engine)


def train_on_with_another_optimizer(stage: int, folder: str) -> tuple[dict[str, Tensor], list[float]]:
    """The state of a fresh AdamW after loading what another optimizer saved, and losses of two more steps."""
    engine = new_engine(stage)
    load_by_hand(engine, folder, is_same_optimizer=False)
    return whole_state(engine), train(engine, 3, 5)


def load_and_train_on(stage: int, dtype: str, folder: str, with_dropout: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of two more steps, and the state after them."""
    engine = new_engine(stage, dtype)
    load_by_hand(engine, folder)
    return train(engine, 3, 5, with_dropout), whole_state(engine)


def train_on_unbroken(stage: int, dtype: str, folder: str, with_dropout: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Five steps, saving after the third on the way."""
    engine = new_engine(stage, dtype)
    train(engine, 0, 3, with_dropout)
    save_by_hand(engine, folder)
    return train(engine, 3, 5, with_dropout), whole_state(engine)


def error_of_loading_a_wider_model(stage: int, folder: str) -> str:
    """The message of loading into a model of another shape."""
    from openrlhf.errors import UserError

    try:
        load_by_hand(new_engine(stage, hidden=9), folder)
    except UserError as error:
        return str(error)
    return "nothing was raised"
