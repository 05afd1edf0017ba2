"""What scripts ask a strategy for beside its work: its settings under OpenRLHF's names, numbers of all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from openrlhf.config import DeepspeedConfig, TrainConfig
from openrlhf.engine.trained_model import TrainedModel
from openrlhf.errors import UserError
from openrlhf.models.prepared_model import PreparedModel, TransformerScorer
from openrlhf.parallel.collectives import gather_objects, on_host
from openrlhf.parallel.groups import ProcessGroups


class ScriptNames:
    """The part of `DeepspeedStrategy` that only reads it, or talks between ranks."""

    train: TrainConfig
    ds: DeepspeedConfig
    groups: ProcessGroups

    def trained_of(self, model: Any) -> TrainedModel:
        """The engine, schedule and guard of a prepared model; see `DeepspeedStrategy`."""
        raise NotImplementedError

    # --- settings

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return self.ds.zero_stage

    @property
    def train_batch_size(self) -> int:
        """Samples an optimizer step, over all ranks."""
        return self.train.batch_size

    @property
    def micro_train_batch_size(self) -> int:
        """Samples that a rank computes at once."""
        return self.train.micro_batch_size

    @property
    def accumulated_gradient(self) -> int:
        """Micro-batches a rank computes for one step, where each holds `micro_train_batch_size` samples."""
        return max(1, self.train.batch_size // (self.train.micro_batch_size * self.groups.data_size))

    @property
    def micro_batches_a_step(self) -> int:
        """`accumulated_gradient`, where the user makes the micro-batches.

        Raises UserError where they do not make a step of `train_batch_size` samples; 1: nobody has said how many.
        """
        size, at_once, ranks = self.train.batch_size, self.train.micro_batch_size, self.groups.data_size
        if size > at_once * ranks and size % (at_once * ranks):
            raise UserError(
                f"train_batch_size {size} cannot be made of batches of {at_once} samples (micro_train_batch_size) on "
                f"each of {ranks} ranks: give a multiple of {at_once * ranks}, or another "
                "micro_train_batch_size."
            )
        return self.accumulated_gradient

    def _unwrap_model(self, model: Any) -> Any:
        """The model of transformers in an Actor, a RewardModel or an engine."""
        inner = getattr(model, "module", model)  # of an engine
        return inner.model if isinstance(inner, PreparedModel | TransformerScorer) else inner

    # --- ranks

    def get_rank(self) -> int:
        return self.groups.rank

    @property
    def world_size(self) -> int:
        return self.groups.world_size

    def is_rank_0(self) -> bool:
        return self.groups.rank == 0

    @property
    def ring_attn_size(self) -> int:
        return self.groups.sequence_size

    @property
    def ring_attn_rank(self) -> int:
        return self.groups.sequence_rank

    @property
    def ring_attn_group(self) -> ProcessGroup | None:
        """The ranks that share a sequence with this one; None: there is no ring."""
        return self.groups.sequence

    def print(self, *message: Any) -> None:
        """Prints on rank 0 alone."""
        if self.is_rank_0():
            print(*message, flush=True)

    # --- numbers

    def get_grad_norm(self, model: Any) -> float:
        """The global norm of the gradients of the last step, before clipping; 0.0 before the first one."""
        outcome = self.trained_of(model).last_outcome
        return 0.0 if outcome is None else outcome.grad_norm

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        """A number, tensor or dict of them, reduced over all ranks: op is mean, sum or max."""
        if isinstance(data, dict):
            return {name: self.all_reduce(value, op) for name, value in data.items()}
        assert op in ("mean", "sum", "max"), op
        gathered = torch.stack(gather_objects(on_host(data), self.groups.control))
        result = gathered.amax(0) if op == "max" else gathered.sum(0)
        result = result / self.world_size if op == "mean" else result
        return result.to(data.device) if isinstance(data, Tensor) else result.item()

    def all_gather(self, data: Any) -> Any:
        """Every rank's number or tensor, joined along the first dimension in the order of ranks; dicts likewise."""
        if isinstance(data, dict):
            return {name: self.all_gather(value) for name, value in data.items()}
        gathered = torch.cat(
            [part.reshape(-1, *part.shape[1:]) for part in gather_objects(on_host(data), self.groups.control)]
        )
        return gathered.to(data.device) if isinstance(data, Tensor) else gathered
