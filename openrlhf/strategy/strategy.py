"""DeepspeedStrategy: ranks, loaders, engine, checkpoints, behind OpenRLHF's method names."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.data import DataLoader

from openrlhf.batching import MicroBatchFormat, StepSchedule, StepWindowLoader, layout_of
from openrlhf.checkpoint.export import export_model
from openrlhf.checkpoint.identity import RunIdentity, model_shape
from openrlhf.config import AdamConfig, DeepspeedConfig, MuonConfig, TrainConfig, TrainingConfig, as_namespace
from openrlhf.config.kinds import size_bytes
from openrlhf.config.schema import without_auto
from openrlhf.engine.engine_config import engine_config
from openrlhf.engine.launch import join_ranks
from openrlhf.engine.optimizers import build_adamw, build_muon, build_schedule
from openrlhf.engine.step_guard import StepGuard
from openrlhf.engine.trained_model import Trainable, TrainedModel, prepare_evaluation, prepare_training
from openrlhf.errors import UserError
from openrlhf.models.attention.choice import join_ring
from openrlhf.models.loading import weights_of
from openrlhf.models.quantized import check_trainable
from openrlhf.parallel.collectives import gather_objects
from openrlhf.parallel.groups import ProcessGroups, alone, make_process_groups
from openrlhf.parallel.random_streams import compute_deterministically, seed_everything
from openrlhf.strategy import rank_facts
from openrlhf.strategy.checkpoints import Checkpointers, load_found, newest, save_by_name, starts_anew
from openrlhf.strategy.own_loop import OwnLoop
from openrlhf.strategy.training_cfg import TrainingCfg, read_cfg
from openrlhf.watchdog.connections import joining_ranks
from openrlhf.watchdog.watchdog import Watchdog


class DeepspeedStrategy(OwnLoop):
    """The engine room as a script sees it. `DeepspeedStrategy.of(config)` takes all of it from a configuration.

    Args:
        seed, full_determinism, micro_train_batch_size, train_batch_size: shorthands for settings of `train`.
        zero_stage, param_dtype: shorthands for settings of `ds`.
        max_norm: gradients are clipped at that global norm; 0: they are not.
        args: kept as `strategy.args` for scripts; nothing here reads it.
        train, ds, adam, muon: the groups of settings; muon None: AdamW alone.
    """

    def __init__(
        self,
        seed: int | None = None,
        full_determinism: bool | None = None,
        max_norm: float = 1.0,
        micro_train_batch_size: int | None = None,
        train_batch_size: int | None = None,
        zero_stage: int | None = None,
        param_dtype: str | None = None,
        args: Any = None,
        *,
        train: TrainConfig | None = None,
        ds: DeepspeedConfig | None = None,
        adam: AdamConfig | None = None,
        muon: MuonConfig | None = None,
    ):
        self.args = args
        self.max_norm = max_norm
        self.train = _with(
            train or TrainConfig(batch_size=1, micro_batch_size=1),
            seed=seed,
            full_determinism_enable=full_determinism,
            micro_batch_size=micro_train_batch_size,
            batch_size=train_batch_size,
        )
        self.ds = _with(ds or DeepspeedConfig(), zero_stage=zero_stage, param_dtype=param_dtype)
        self.adam, self.muon = adam or AdamConfig(), muon
        self.device = torch.device("cpu")
        self.groups: ProcessGroups = alone()
        self.watchdog = Watchdog()
        self._by_module: WeakKeyDictionary[nn.Module, TrainedModel] = WeakKeyDictionary()

    @classmethod
    def of(cls, config: TrainingConfig, args: Any = None) -> DeepspeedStrategy:
        """The strategy of a configuration, plain where it is `auto`; `strategy.args` is `args` where there are any."""
        strategy = cls(max_norm=config.max_norm, adam=config.adam, muon=config.muon if config.optim == "muon" else None)
        strategy.use(without_auto(config), args)
        return strategy

    def use(self, config: TrainingConfig, args: Any = None) -> None:
        """Takes the layout of a configuration. Call it before a loader or an engine is made."""
        self.args = as_namespace(config) if args is None else args
        self.train, self.ds = config.train, config.ds

    # --- ranks ---------------------------------------------------------------------------------------------------

    def setup_distributed(self, timeout: timedelta | None = None) -> None:
        """Joins the ranks, makes the process groups, seeds every generator. Call it first."""
        timeout = timeout or timedelta(minutes=self.train.comm_timeout_minutes)
        self.device = device = join_ranks(timeout)
        with joining_ranks(torch.distributed.get_world_size()):
            self.groups = make_process_groups(self.ds.ring_attn_size, self.ds.tensor_parallel_size, timeout, device)
            rank_facts.check_strategy(self)
        seed_everything(self.seed)
        if self.train.full_determinism_enable:
            compute_deterministically()
        hang_seconds = 60 * self.train.hang_timeout_minutes
        self.watchdog = Watchdog(self.groups.rank, self.groups.world_size, self.groups.control, hang_seconds)
        self.checkpointers = Checkpointers(self.groups, timeout.total_seconds())

    # --- data ----------------------------------------------------------------------------------------------------

    def setup_dataloader(
        self,
        dataset: Any,
        batch_size: int,
        pin_memory: bool = False,
        shuffle: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        sampler: Any = None,
        consumed_samples: int = 0,
        num_workers: int = 0,
        *,
        shares_prompts: bool = False,
    ) -> Any:
        """Step windows of `train_batch_size` samples in micro-batches of `batch_size` samples (or by token budget).

        `pin_memory`, `num_workers` and `drop_last` are part of OpenRLHF's interface: windows are made in a thread
        beside the training, and nothing is dropped, ever.

        Args:
            collate_fn: rows → a batch; one that does more than pad makes the rows of a training too, one by one.
            sampler: this rank's rows in the user's own order; torch's DataLoader comes back, by the other arguments.
            consumed_samples: trained already; a loop of the user's own over the loader begins behind them.
            shares_prompts: in a pack, what the sequences of a unit begin with is computed once (attention `ring`).
        """
        if sampler is not None:
            return DataLoader(
                dataset,
                batch_size,
                sampler=sampler,
                collate_fn=collate_fn,
                num_workers=num_workers,
                pin_memory=pin_memory,
                drop_last=drop_last,
            )
        loader = StepWindowLoader(
            dataset,
            StepSchedule(len(dataset), self.train.batch_size, self.seed, shuffle),
            layout_of(
                batch_size, self.train.max_tokens_per_micro_batch, self.ds.ring_attn_size, self.ds.packing_samples
            ),
            replace(self.micro_batch_format(), shares_prompts=shares_prompts),
            self.groups,
            collate_fn,
        )
        loader.sampler.set_epoch(*divmod(consumed_samples, len(dataset)))
        return loader

    def micro_batch_format(self) -> MicroBatchFormat:
        return MicroBatchFormat(self.ds.packing_samples, self.train.loss_reduction)

    # --- engine --------------------------------------------------------------------------------------------------

    def get_ds_train_config(self, is_actor: bool = True) -> dict[str, Any]:
        """DeepSpeed's configuration for training."""
        return self._engine_config(is_training=True)

    def get_ds_eval_config(self, offload: bool = False) -> dict[str, Any]:
        """DeepSpeed's configuration for a model that is only evaluated; `offload`: its weights lie on the host."""
        return self._engine_config(is_training=False, offload=offload)

    def _engine_config(self, is_training: bool, offload: bool = False) -> dict[str, Any]:
        config = engine_config(self.ds, self.max_norm, torch.cuda.is_available(), is_training, offload)
        return config | {"train_batch_size": self.world_size}

    def create_optimizer(
        self,
        model: Trainable | nn.Module,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
        weight_decay: float | None = None,
        eps: float | None = None,
    ) -> torch.optim.Optimizer:
        """DeepSpeed's fused AdamW, its CPU Adam when offloaded, or Muon where the strategy was built for it."""
        return self._optimizer(
            model, _with(self.adam, lr=lr, betas=betas, weight_decay=weight_decay, eps=eps), self.muon
        )

    def _optimizer(self, model: Any, adam: AdamConfig, muon: MuonConfig | None) -> torch.optim.Optimizer:
        module = getattr(model, "trainable_module", model)
        return build_muon(module, muon, adam) if muon else build_adamw(module, adam, offload=self.ds.adam_offload)

    def prepare(self, *models: Any) -> Any:
        """Puts DeepSpeed's engine under each model; one result for one argument, else a tuple.

        Each argument is `(model, optim, scheduler)`, scheduler None being a constant rate; or `(model, cfg)`, where
        `read_cfg` says what cfg may hold, and a triple comes back; or a bare model, for evaluation; one of
        `get_ds_eval_config(offload=True)`, or with `_offload` set, keeps its weights in the host's memory. `max_norm`
        of a cfg is the strategy's from then on.

        Raises UserError for a cfg with a name that is not known.
        """
        prepared = [self._prepare(model) for model in models]
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def _prepare(self, argument: Any) -> Any:
        model, *rest = argument if isinstance(argument, tuple) else (argument,)
        if note := join_ring(model, self.ds.ring_attn_size, self.ds.packing_samples):
            self.print(f"note: {note}")
        if not rest:
            rank_facts.check_model(self, argument.trainable_module)
            prepare_evaluation(argument, self.get_ds_eval_config(getattr(argument, "_offload", False)), self.device)
            return argument
        check_trainable(model.config)
        optimizer, scheduler = rest if len(rest) == 2 else self._optimizer_and_schedule(model, *rest)
        if scheduler is None:
            scheduler = build_schedule(optimizer, "constant")
            self.print("note: prepare was given no schedule: the learning rate stays as it is.")
        rank_facts.check_training(self, model.trainable_module, optimizer, scheduler)
        trained = prepare_training(
            model,
            optimizer,
            scheduler,
            self.get_ds_train_config(),
            self.device,
            StepGuard(self.train.max_grad_norm_spike),
            num_ranks_averaged=self.groups.world_size // self.groups.tensor_size,
            tensor_group=self.groups.tensor,
            say=self.print,
        )
        trained.run_id = gather_objects(secrets.token_hex(8), self.groups.control)[0]
        self._by_module[model.model] = self._by_module[trained.engine] = trained
        return model, trained.optimizer, scheduler

    def _optimizer_and_schedule(self, model: Any, cfg: Any) -> tuple[Any, Any]:
        found = read_cfg(cfg, TrainingCfg(self.adam, self.muon, self.max_norm, {}))
        self.max_norm = found.max_norm
        optimizer = self._optimizer(model, found.adam, found.muon)
        return optimizer, build_schedule(optimizer, **found.schedule)

    def trained_of(self, model: Any) -> TrainedModel:
        """What `prepare` has put under a model; a script may hand the Actor, its `model`, or the engine."""
        trained = getattr(model, "trained", None) or self._by_module.get(model)
        assert trained is not None, "strategy.prepare comes before training"
        return trained

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

        The first save moves checkpoints of other runs to `earlier_run_<n>`, unless one was loaded from `save_dir`.

        Args:
            max_num, max_mem: how many are kept, and the GiB that they may take; the limits of the latest call hold.
            client_state: JSON values, `consumed_samples` among them; `load_ckpt` gives it back.
        """
        trained = self.trained_of(model)
        checkpointer = self.checkpointers.of(save_dir, max_num, max_mem, in_background=False)
        # A script says nothing of its settings.
        identity = RunIdentity(model_shape=model_shape(trained.engine.module), run_id=trained.run_id)
        tag = tag or f"global_step{trained.engine.global_steps}"
        with self.watchdog.long_phase(f"saving {tag}"):
            save_by_name(checkpointer, trained, identity, tag, client_state or {}, self.print)

    def load_ckpt(
        self,
        model: Trainable,
        load_dir: str,
        tag: str | None = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        *,
        identity: RunIdentity | None = None,
        allow_mismatch: bool = False,
    ) -> tuple[str | None, dict[str, Any]]:
        """Goes on from the newest whole checkpoint below `load_dir`, whatever layout wrote it.

        Args:
            tag: the checkpoint's name, such as global_step20; None: the newest.
            load_module_strict: part of OpenRLHF's interface; a checkpoint must always fit the model.
            load_optimizer_states, load_lr_scheduler_states, load_module_only: with another value, refused.
            identity: of the run that goes on, to be compared with the checkpoint's; None: nothing is compared.

        Returns: its path and the client states, with `consumed_samples`; None and 0 where there is none, which is told.
        Raises UserError where there are checkpoints but none is whole, or where it is of another run and
            `allow_mismatch` does not say to go on, or where a part of it is asked for.
        """
        if load_module_only or not (load_optimizer_states and load_lr_scheduler_states):
            raise UserError(
                "strategy.load_ckpt reads the whole of a checkpoint, so that the run goes on: leave load_module_only, "
                "load_optimizer_states and load_lr_scheduler_states out. strategy.load_model(model, FOLDER), before "
                "strategy.prepare, reads the weights of an exported model alone."
            )
        checkpointer = self.checkpointers.of(load_dir)
        found = newest(checkpointer, self.print, tag)
        if found is None:
            self.print(starts_anew(load_dir, getattr(getattr(model, "config", None), "name_or_path", None)))
            return None, {"consumed_samples": 0}
        states = load_found(checkpointer, self.trained_of(model), found, identity, allow_mismatch, self.print)
        return str(found.path), states

    def save_model(
        self, model: Any, tokenizer: Any, output_dir: str, max_shard_size: int | str = "5GB", **kwargs: Any
    ) -> None:
        """Exports the model in Hugging Face form; every rank calls. Raises UserError where it cannot be written."""
        # bytes, or a size with its unit, as `--ckpt.export_shard_size` takes it
        max_shard_bytes = max_shard_size if isinstance(max_shard_size, int) else size_bytes(max_shard_size)
        module = model.model if hasattr(model, "trainable_module") else model  # an Actor, or its model
        with self.watchdog.long_phase("exporting the model"):
            export_model(module, tokenizer, output_dir, self.groups.control, max_shard_bytes, kwargs.get("identity"))

    def load_model(self, model: Any, path: str, map_location: Any = "cpu", strict: bool = True) -> None:
        """Loads the weights of an exported model into a model that no engine holds yet.

        Args:
            map_location: part of OpenRLHF's interface; the weights go to where the model is.
            strict: False: weights that the folder lacks stay the model's own, and are told.

        Raises UserError where the weights do not fit, and where `prepare` has put an engine under the model.
        """
        if model.trained is not None:
            raise UserError(
                f"strategy.load_model({path}) comes after strategy.prepare, which has copied the weights that the "
                "optimizer updates: the first step would undo it. Call load_model before prepare."
            )
        weights = weights_of(path, type(model.scorer.base_model), model.model.dtype, None if strict else self.print)
        model.model.load_state_dict(weights, strict=strict)


def _with(settings: Any, **changes: Any) -> Any:
    """A copy of frozen `settings` with the changes that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})
