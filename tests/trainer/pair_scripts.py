"""What a script of OpenRLHF does with pairs; runs inside a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _parts(folder: Path, model_class: Any, **settings: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
    """(strategy, model, optimizer, scheduler, loader, tokenizer) of the model and the pairs in `folder`."""
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
    model = model_class(str(folder / "model"), param_dtype="fp32", **settings)
    tokenizer = get_tokenizer(str(folder / "model"), model.model)
    optimizer = strategy.create_optimizer(model, lr=1e-3)
    model, optimizer, scheduler = strategy.prepare((model, optimizer, build_schedule(optimizer, "constant")))
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    dataset = RewardDataset(rows, tokenizer, 128, strategy, num_processors=1)
    loader = strategy.setup_dataloader(dataset, 1, True, True, dataset.collate_fn)
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


def told_of_a_foreign_loader(folder: Path) -> str:
    """What DPOTrainer says of a loader of the user's own."""
    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.trainer import DPOTrainer

    strategy, model, optimizer, scheduler, loader, tokenizer = _parts(folder, Actor)
    try:
        DPOTrainer(model, None, strategy, tokenizer, optimizer, list(loader), None, scheduler)
    except UserError as error:
        return str(error)
    finally:
        model.engine.destroy()
    return ""
