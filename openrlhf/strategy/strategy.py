"""DeepspeedStrategy: ranks, engine, optimizer step. The trainer's one way to DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from openrlhf.batching import FixedSize, MicroBatchFormat, StepSchedule, StepWindowLoader, TokenBudget
from openrlhf.batching.micro_batch import LossReduction
from openrlhf.checkpoint.checkpointer import FoundCheckpoint
from openrlhf.checkpoint.export import export_model
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.engine.engine_config import EngineSettings, engine_config
from openrlhf.engine.engines import (
    Trainable,
    attach_evaluation_engine,
    attach_training_engine,
    engine_of,
)
from openrlhf.engine.launch import join_ranks
from openrlhf.engine.optimizers import AdamSettings, MuonSettings, build_adamw, build_muon
from openrlhf.engine.schedules import ScheduleSettings, build_schedule
from openrlhf.engine.step_guard import StepGuard, StepOutcome
from openrlhf.errors import UserError
from openrlhf.parallel.collectives import gather_objects, sum_over
from openrlhf.parallel.groups import ProcessGroups, alone, make_process_groups
from openrlhf.parallel.random_streams import seed_everything
from openrlhf.strategy.checkpoints import CheckpointDesk, states_for_script
from openrlhf.watchdog.connections import joining_ranks
from openrlhf.watchdog.watchdog import Watchdog


class DeepspeedStrategy:
    """Ranks, engine and optimizer step.

    Args:
        seed: of every random number.
        full_determinism: deterministic kernels only.
        max_norm, zero_stage, param_dtype: shorthands for fields of `engine`.
        train_batch_size: samples an optimizer step, over all ranks.
        micro_train_batch_size: samples a micro-batch, of one rank.
        engine: everything DeepSpeed is told.
        muon: None for AdamW alone.
        max_tokens_per_micro_batch: tokens a rank computes at once, in place of `micro_train_batch_size`.
        max_grad_norm_spike: see StepGuard.
        comm_timeout: how long a rank waits for the others before the run ends.
        hang_timeout: how long a rank may be silent or stuck before the watchdog ends the run.
        args: kept as `strategy.args` for scripts; nothing here reads it.
    """

    def __init__(
        self,
        seed: int = 42,
        full_determinism: bool = False,
        max_norm: float | None = None,
        micro_train_batch_size: int = 1,
        train_batch_size: int = 1,
        zero_stage: int | None = None,
        param_dtype: str | None = None,
        args: Any = None,
        *,
        engine: EngineSettings | None = None,
        adam: AdamSettings | None = None,
        muon: MuonSettings | None = None,
        ring_attn_size: int = 1,
        packing_samples: bool = False,
        max_tokens_per_micro_batch: int | None = None,
        loss_reduction: LossReduction = "token",
        max_grad_norm_spike: float | None = None,
        comm_timeout: timedelta = timedelta(minutes=30),
        hang_timeout: timedelta = timedelta(minutes=10),
    ):
        self.args = args
        self.seed = seed
        self.full_determinism = full_determinism
        self.train_batch_size = train_batch_size
        self.micro_train_batch_size = micro_train_batch_size
        self.engine_settings = _with(
            engine or EngineSettings(), max_norm=max_norm, zero_stage=zero_stage, param_dtype=param_dtype
        )
        self.adam, self.muon = adam or AdamSettings(), muon
        self.ring_attn_size = ring_attn_size
        self.packing_samples = packing_samples
        self.max_tokens_per_micro_batch = max_tokens_per_micro_batch
        self.loss_reduction: LossReduction = loss_reduction
        self.comm_timeout = comm_timeout
        self.hang_timeout = hang_timeout
        self.device = torch.device("cpu")
        self.groups: ProcessGroups = alone()
        self.watchdog = Watchdog()
        self.guard = StepGuard(max_grad_norm_spike)
        self.restored_progress: TrainingProgress | None = None
        self.restored_recipe: dict[str, Any] = {}  # see `openrlhf.run.recipe`
        self._schedulers: dict[int, Any] = {}  # by id of the model that `prepare` was given
        self._num_backwards = 0  # for loops that do not say which micro-batch is a step's last

    # --- ranks ---------------------------------------------------------------------------------------------------

    def setup_distributed(self, timeout: timedelta | None = None) -> None:
        """Joins the ranks, makes the process groups, seeds every generator. Call it first."""
        timeout = timeout or self.comm_timeout
        self.device = join_ranks(timeout)
        with joining_ranks(torch.distributed.get_world_size()):
            self.groups = make_process_groups(self.ring_attn_size, self.engine_settings.tensor_parallel_size, timeout)
        seed_everything(self.seed)
        if self.full_determinism:
            torch.use_deterministic_algorithms(True)
        self.watchdog = Watchdog(
            self.groups.rank, self.groups.world_size, self.groups.control, self.hang_timeout.total_seconds()
        )
        self.desk = CheckpointDesk(self.groups, timeout.total_seconds())

    def get_rank(self) -> int:
        return self.groups.rank

    @property
    def world_size(self) -> int:
        return self.groups.world_size

    def is_rank_0(self) -> bool:
        return self.groups.rank == 0

    def print(self, *message: Any) -> None:
        """Prints on rank 0 alone."""
        if self.is_rank_0():
            print(*message, flush=True)

    @property
    def accumulated_gradient(self) -> int:
        """Micro-batches a rank computes for one step, where each holds `micro_train_batch_size` samples."""
        return max(1, self.train_batch_size // (self.micro_train_batch_size * self.groups.data_size))

    # --- data ----------------------------------------------------------------------------------------------------

    def setup_dataloader(
        self,
        dataset: Any,
        batch_size: int,
        pin_memory: bool = False,
        shuffle: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        *,
        pad_token_id: int | None = None,
    ) -> StepWindowLoader:
        """Step windows of `train_batch_size` samples in micro-batches of `batch_size` samples (or by token budget).

        `pin_memory` and `drop_last` are part of OpenRLHF's interface: nothing is dropped here, ever.
        """
        if pad_token_id is None:
            pad_token_id = getattr(getattr(dataset, "tokenizer", None), "pad_token_id", None) or 0
        layout = (
            TokenBudget(self.max_tokens_per_micro_batch * self.ring_attn_size, self.packing_samples)
            if self.max_tokens_per_micro_batch
            else FixedSize(batch_size)
        )
        return StepWindowLoader(
            dataset,
            StepSchedule(len(dataset), self.train_batch_size, self.seed, shuffle),
            layout,
            self.micro_batch_format(pad_token_id),
            self.groups,
            collate_fn,
        )

    def micro_batch_format(self, pad_token_id: int) -> MicroBatchFormat:
        return MicroBatchFormat(pad_token_id, self.packing_samples, self.loss_reduction)

    # --- engine --------------------------------------------------------------------------------------------------

    def get_ds_train_config(self, is_actor: bool = True) -> dict[str, Any]:
        """DeepSpeed's configuration for training."""
        return engine_config(self.engine_settings) | {"train_batch_size": self.world_size}

    def get_ds_eval_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration for a model that is only evaluated."""
        return engine_config(self.engine_settings, is_training=False) | {"train_batch_size": self.world_size}

    def create_optimizer(
        self,
        model: Trainable | nn.Module,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        weight_decay: float | None = None,
        eps: float | None = None,
    ) -> torch.optim.Optimizer:
        """DeepSpeed's fused AdamW, its CPU Adam when offloaded, or Muon where the strategy was built for it."""
        adam = _with(self.adam, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)
        module = _module_of(model)
        if self.muon:
            return build_muon(module, self.muon, adam)
        return build_adamw(module, adam, offload=self.engine_settings.adam_offload)

    def prepare(self, *models: Any) -> Any:
        """Puts DeepSpeed's engine under each model; one result for one argument, else a tuple.

        Each argument is `(model, optim, scheduler)`; or `(model, cfg)`, where cfg has any of the attributes lr, betas,
        eps, weight_decay, lr_scheduler, num_training_steps, lr_warmup_ratio, min_lr_ratio, and a triple comes back; or
        a bare model, for evaluation.
        """
        prepared = [self._prepare(model) for model in models]
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def _prepare(self, argument: Any) -> Any:
        if not isinstance(argument, tuple):
            attach_evaluation_engine(argument, self.get_ds_eval_config(), self.device)
            return argument
        if len(argument) == 2:
            return self._prepare_train(*self._optimizer_and_schedule(*argument))
        return self._prepare_train(*argument)

    def _optimizer_and_schedule(self, model: Any, cfg: Any) -> tuple[Any, Any, Any]:
        given = cfg if isinstance(cfg, dict) else vars(cfg)
        optimizer = self.create_optimizer(model, **{k: given.get(k) for k in ("lr", "betas", "eps", "weight_decay")})
        schedule = _with(
            ScheduleSettings(),
            name=given.get("lr_scheduler"),
            num_training_steps=given.get("num_training_steps"),
            warmup_ratio=given.get("lr_warmup_ratio"),
            min_lr_ratio=given.get("min_lr_ratio"),
        )
        return model, optimizer, build_schedule(optimizer, schedule)

    def _prepare_train(self, model: Trainable, optimizer: Any, scheduler: Any) -> tuple[Any, Any, Any]:
        config = self.get_ds_train_config()
        engine_optimizer = attach_training_engine(model, optimizer, config, self.device, self.print)
        self._schedulers[id(model)] = scheduler
        return model, engine_optimizer, scheduler

    @property
    def _num_engine_data_ranks(self) -> int:
        """Ranks over which DeepSpeed averages gradients: all that hold the same share of the weights."""
        return self.groups.world_size // self.groups.tensor_size

    # --- a step --------------------------------------------------------------------------------------------------

    def backward_share(self, loss_share: Tensor, model: Trainable) -> None:
        """Backward of this micro-batch's share of the step's loss: its summed loss over the *window's* divisor.

        DeepSpeed averages gradients over ranks; the shares of all ranks must add up instead. This is the one place that
        undoes the averaging. Say `with strategy.micro_batch(model, is_last)` around forward and backward.
        """
        engine_of(model).backward(loss_share * self._num_engine_data_ranks)

    @contextmanager
    def micro_batch(self, model: Trainable, is_last: bool) -> Iterator[None]:
        """Around one forward and backward pass; gradients are reduced over ranks in a window's last one."""
        engine_of(model).set_gradient_accumulation_boundary(is_last)
        yield

    def apply_step(self, model: Trainable, scheduler: Any) -> StepOutcome:
        """The optimizer's update, unless it would do harm, and the schedule's next learning rate in any case."""
        outcome = self.guard.step(engine_of(model), self.groups.tensor)
        scheduler.step()
        return outcome

    def backward(self, loss: Tensor, model: Trainable, optimizer: Any = None, **kwargs: Any) -> None:
        """Backward of a mean loss, in a loop of the user's own.

        The means of `accumulated_gradient` micro-batches and of all ranks are averaged, as DeepSpeed does.
        """
        self._num_backwards += 1
        is_last = self._num_backwards % self.accumulated_gradient == 0
        engine = engine_of(model)
        engine.set_gradient_accumulation_boundary(is_last)
        engine.backward(loss / self.accumulated_gradient)

    def optimizer_step(
        self, optimizer: Any, model: Trainable, scheduler: Any, name: str = "model", **kwargs: Any
    ) -> None:
        """After each `backward` of a loop of the user's own: an update after every `accumulated_gradient`-th."""
        if self._num_backwards % self.accumulated_gradient == 0:
            self.apply_step(model, scheduler)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def save_ckpt(
        self,
        model: Trainable,
        save_dir: str,
        tag: str | None = None,
        max_num: int = 3,
        max_mem: float | None = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
    ) -> None:
        """Writes a training checkpoint `save_dir/<tag>`, tag being `global_step<N>`, and rotates older ones.

        Args:
            max_mem: GiB that the kept ones may take.
            client_state: JSON values, `consumed_samples` among them; `load_ckpt` gives it back.
        """
        engine = engine_of(model)
        self.desk.checkpointer(save_dir, max_num, max_mem, in_background=False)
        tag = tag or f"global_step{engine.global_steps}"
        self.desk.save_now(save_dir, engine, self._schedulers[id(model)], tag, client_state or {})

    def load_ckpt(
        self,
        model: Trainable,
        load_dir: str,
        tag: str | None = None,
        **kwargs: Any,
    ) -> tuple[str | None, dict[str, Any]]:
        """Goes on from the newest whole checkpoint below `load_dir`, whatever layout wrote it.

        Returns: its path and the client states, with `consumed_samples`; (None, {}) where there is none.
        Raises UserError where there are checkpoints but none is whole.
        """
        found, problems = self.desk.checkpointer(load_dir).find()
        for problem in problems:
            self.print(problem)
        if found is None and self.desk.checkpointer(load_dir).store.candidates():
            raise UserError(f"no whole checkpoint is left in {load_dir}:", *problems)
        if found is None:
            return None, {}
        return self.load_found(model, load_dir, found)

    def load_found(
        self,
        model: Trainable,
        load_dir: str,
        found: FoundCheckpoint,
        identity: RunIdentity | None = None,
        allow_mismatch: bool = False,
    ) -> tuple[str, dict[str, Any]]:
        """Goes on from a checkpoint that is known to be whole.

        Raises UserError where `identity` says that it is of another run, and `allow_mismatch` does not say to go on.
        """
        engine, scheduler = engine_of(model), self._schedulers[id(model)]
        progress, state = self.desk.load(load_dir, found, engine, scheduler, identity, allow_mismatch)
        self.restored_progress = progress
        self.restored_recipe = state.get("recipe", {})
        if "guard" in state:
            self.guard.load_state_dict(state["guard"])
        return str(found.path), states_for_script(progress, state)

    def save_model(
        self, model: Any, tokenizer: Any, output_dir: str, max_shard_size: int | str = "5GB", **kwargs: Any
    ) -> None:
        """Exports the model in Hugging Face form; every rank calls. Raises UserError where it cannot be written."""
        from transformers.utils.hub import convert_file_size_to_int

        max_shard_bytes = convert_file_size_to_int(max_shard_size)
        export_model(model.model, tokenizer, output_dir, self.groups.control, max_shard_bytes)

    def load_model(self, model: Any, path: str, strict: bool = True, **kwargs: Any) -> None:
        """Loads the weights of an exported model into a model that no engine holds yet."""
        from transformers import AutoModelForCausalLM

        weights = AutoModelForCausalLM.from_pretrained(path, dtype=model.model.dtype).state_dict()
        model.model.load_state_dict(weights, strict=strict)

    # --- collectives ---------------------------------------------------------------------------------------------

    def all_reduce(self, data: Any, op: str = "mean") -> Any:
        """A number, tensor or dict of them, reduced over all ranks: op is mean, sum or max."""
        if isinstance(data, dict):
            return {name: self.all_reduce(value, op) for name, value in data.items()}
        assert op in ("mean", "sum", "max"), op
        gathered = torch.stack(gather_objects(_on_host(data), self.groups.control))
        result = gathered.amax(0) if op == "max" else gathered.sum(0)
        result = result / self.world_size if op == "mean" else result
        return result.to(data.device) if isinstance(data, Tensor) else result.item()

    def all_gather(self, data: Any) -> Any:
        """Every rank's number or tensor, joined along the first dimension in the order of ranks; dicts likewise."""
        if isinstance(data, dict):
            return {name: self.all_gather(value) for name, value in data.items()}
        gathered = torch.cat(
            [part.reshape(-1, *part.shape[1:]) for part in gather_objects(_on_host(data), self.groups.control)]
        )
        return gathered.to(data.device) if isinstance(data, Tensor) else gathered

    def sum_over_loss_ranks(self, sums: Tensor) -> Tensor:
        """Partial sums of the step's loss, added up over the ranks that hold its parts (in place)."""
        return sum_over(sums, self.groups.loss)


def _with(settings: Any, **changes: Any) -> Any:
    """A copy of frozen `settings` with the changes that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})


def _on_host(data: Any) -> Tensor:
    return data.detach().cpu() if isinstance(data, Tensor) else torch.tensor(data, dtype=torch.float64)


def _module_of(model: Any) -> nn.Module:
    return getattr(model, "trainable_module", model)
