"""What a script of OpenRLHF does with pairs; runs inside a rank."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _parts(
    folder: Path, model_class: Any, name: str = "model", shuffles: bool = True
) -> tuple[Any, Any, Any, Any, Any, Any]:
    """(strategy, model, optimizer, scheduler, loader, tokenizer) of a model and of the pairs in `folder`."""
    from openrlhf.config import DPOConfig, as_namespace
    from openrlhf.config.schema import build
    from openrlhf.datasets import RewardDataset
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.utils import get_tokenizer

    config = build(
        DPOConfig,
        {
            "ds.param_dtype": "fp32",
            "train.batch_size": 4,
            "train.micro_batch_size": 1,
            "data.cache_dir": str(folder / "cache"),
            "ckpt.output_dir": str(folder / "out"),
            "ckpt.disable_ds": True,
            "logger.logging_steps": 100,
        },
    )
    strategy = DeepspeedStrategy.of(config, as_namespace(config))
    strategy.setup_distributed()
    model = model_class(str(folder / name), param_dtype="fp32")
    tokenizer = get_tokenizer(str(folder / name), model.model)
    optimizer = strategy.create_optimizer(model, lr=1e-3)
    model, optimizer, scheduler = strategy.prepare((model, optimizer, build_schedule(optimizer, "constant")))
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    dataset = RewardDataset(rows, tokenizer, 128, strategy, num_processors=1)
    loader = strategy.setup_dataloader(dataset, 1, True, shuffles, dataset.collate_fn)
    return strategy, model, optimizer, scheduler, loader, tokenizer


def train_dpo(folder: Path, beta: float) -> float:
    """The last step's reward margin, against a second model."""
    from openrlhf.models import Actor
    from openrlhf.trainer import DPOTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, Actor)
    reference = strategy.prepare(Actor(str(folder / "model"), param_dtype="fp32"))
    trainer = DPOTrainer(
        model=model, ref_model=reference, tokenizer=tokenizer, strategy=strategy, optim=optimizer,
        train_dataloader=loader, eval_dataloader=None, scheduler=scheduler, beta=beta, max_epochs=1,
    )  # fmt: skip
    trainer.fit(strategy.args)
    model.engine.destroy()
    return trainer.last_step.metrics["rewards/margins"]


def train_reward_model(folder: Path) -> dict[str, float]:
    """The last step's metrics."""
    from openrlhf.models import RewardModel
    from openrlhf.trainer import RewardModelTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, RewardModel)
    trainer = RewardModelTrainer(
        model=model, strategy=strategy, optim=optimizer, tokenizer=tokenizer, train_dataloader=loader,
        eval_dataloader=None, scheduler=scheduler, max_epochs=1, loss="logexp",
    )  # fmt: skip
    trainer.fit(strategy.args)
    model.engine.destroy()
    return trainer.last_step.metrics


def told_of_foreign_loaders(folder: Path) -> list[str]:
    """What the trainers say of loaders that are not ours: before a training, and at an evaluation."""
    from torch.utils.data import DataLoader, SequentialSampler

    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.trainer import DPOTrainer, RewardModelTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, Actor)
    data, batches = loader.dataset, loader.dataset.collate_fn
    of_torch = DataLoader(data, 1, collate_fn=batches)
    sampled = strategy.setup_dataloader(data, 1, collate_fn=batches, sampler=SequentialSampler(data))
    of_rewards = (model, strategy, optimizer, sampled, None, scheduler, tokenizer)
    trainer = DPOTrainer(model, model, strategy, tokenizer, optimizer, loader, None, scheduler)
    told = []
    for attempt in (
        lambda: DPOTrainer(model, None, strategy, tokenizer, optimizer, list(loader), None, scheduler),
        lambda: DPOTrainer(model, None, strategy, tokenizer, optimizer, loader, of_torch, scheduler),
        lambda: RewardModelTrainer(*of_rewards),
        lambda: trainer.evaluate(of_torch),
    ):
        try:
            attempt()
            told.append("")
        except UserError as error:
            told.append(str(error))
    model.engine.destroy()
    return told


def told_of_a_start_from_an_adapter(folder: Path) -> str:
    """What DPOTrainer says without a second model; a loss that needs no reference is taken."""
    from openrlhf.config import LoraConfig
    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.trainer import DPOTrainer

    Actor(str(folder / "model"), param_dtype="fp32", lora_rank=2).model.save_pretrained(folder / "adapter")
    lora = LoraConfig(adapter_name_or_path=str(folder / "adapter"))
    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, functools.partial(Actor, lora=lora))
    words = (model, None, strategy, tokenizer, optimizer, loader, None, scheduler)
    try:
        DPOTrainer(*words)
    except UserError as error:
        strategy.args.model.loss_type = "simpo"
        assert DPOTrainer(*words).objective.reference is None
        return str(error)
    finally:
        model.engine.destroy()
    return ""


def losses_of_dpo(folder: Path, commands: list[list[str]]) -> list[tuple[float, float]]:
    """Of each command line, against the model `other`: the loss before any step, as train_dpo builds its objective, and
    as DPOTrainer does that is given the same settings."""
    from openrlhf.config import DPOConfig, as_namespace, parse_config
    from openrlhf.models import Actor
    from openrlhf.run.dpo_run import DPORun
    from openrlhf.trainer import DPOTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, Actor, shuffles=False)
    reference = strategy.prepare(Actor(str(folder / "other"), param_dtype="fp32"))

    def objectives() -> Iterator[tuple[Any, Any]]:
        for command in commands:
            config = parse_config(DPOConfig, command)
            of_command = DPORun.build_objective(config)
            if of_command.reference is not None:
                of_command.reference.use(reference)
            strategy.args = as_namespace(config)
            beta = config.model.beta
            trainer = DPOTrainer(model, reference, strategy, tokenizer, optimizer, loader, None, scheduler, beta=beta)
            yield of_command, trainer.objective

    return _losses(strategy, model, loader, objectives())


def losses_of_reward_model(folder: Path, commands: list[list[str]]) -> list[tuple[float, float]]:
    """The same of train_rm and RewardModelTrainer, with the model `reward`."""
    from openrlhf.config import RMConfig, as_namespace, parse_config
    from openrlhf.models import RewardModel
    from openrlhf.run.rm_run import RMRun
    from openrlhf.trainer import RewardModelTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, RewardModel, "reward", shuffles=False)

    def objectives() -> Iterator[tuple[Any, Any]]:
        for command in commands:
            config = parse_config(RMConfig, command)
            strategy.args = as_namespace(config)
            loss = config.model.loss_type
            trainer = RewardModelTrainer(model, strategy, optimizer, loader, None, scheduler, tokenizer, loss=loss)
            yield RMRun.build_objective(config), trainer.objective

    return _losses(strategy, model, loader, objectives())


def _losses(strategy: Any, model: Any, loader: Any, objectives: Iterator[tuple[Any, Any]]) -> list[tuple[float, float]]:
    from openrlhf.trainer.evaluation import evaluate

    def loss(objective: Any) -> float:
        return evaluate(model, loader.windows(max_epochs=1), strategy, objective)["eval_loss"]

    found = [(loss(one), loss(other)) for one, other in objectives]
    model.engine.destroy()
    return found
