"""Training from Python: the parts that the command line puts together, in one's own hands.

    python examples/python_use.py MODEL ROWS OUTPUT
    torchrun --nproc_per_node 2 examples/python_use.py MODEL ROWS OUTPUT

ROWS is a JSONL file of chats, {"messages": [...]}. The names in `args` are those of the command line: the old flat
ones, as here, or nested (`args.train.batch_size`); what is left out has the command line's default.
"""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

from datasets import Dataset

from openrlhf.datasets import SFTDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.models import Actor
from openrlhf.trainer import SFTTrainer
from openrlhf.utils import get_strategy, get_tokenizer


def run_settings(model: str, output: str) -> SimpleNamespace:
    """What the run should do."""
    return SimpleNamespace(
        pretrain=model,
        save_path=output,
        input_key="messages",
        apply_chat_template=True,
        max_len=512,
        train_batch_size=32,  # samples an optimizer step, over all ranks
        micro_train_batch_size=8,  # samples a rank computes at once
        max_epochs=1,
        learning_rate=1e-3,
        zero_stage=2,
        param_dtype="fp32",
        disable_ds_ckpt=True,
    )


def train(rows: Dataset, args: SimpleNamespace) -> None:
    """Trains `args.pretrain` on the rows; the model goes to `args.save_path`, metrics.jsonl too."""
    strategy = get_strategy(args)
    tokenizer = get_tokenizer(args.pretrain, None, "right", strategy)
    dataset = SFTDataset(rows, tokenizer, args.max_len, strategy)

    strategy.setup_distributed()
    actor = Actor(args.pretrain, param_dtype=args.param_dtype, ds_config=strategy.get_ds_train_config())
    num_steps = math.ceil(len(dataset) / args.train_batch_size) * args.max_epochs
    schedule = {"lr_scheduler": "cosine_with_min_lr", "num_training_steps": num_steps, "lr_warmup_ratio": 0.03}
    actor, optimizer, scheduler = strategy.prepare((actor, {"lr": args.learning_rate, **schedule}))

    trainer = SFTTrainer(
        actor,
        strategy,
        optimizer,
        strategy.setup_dataloader(dataset, args.micro_train_batch_size, collate_fn=dataset.collate_fn),
        None,  # rows to evaluate on
        scheduler,
        batch_size=args.train_batch_size,
        max_epochs=args.max_epochs,
        tokenizer=tokenizer,
        disable_ds_ckpt=args.disable_ds_ckpt,
    )
    trainer.fit(args)
    strategy.save_model(actor, tokenizer, args.save_path)


if __name__ == "__main__":
    model, rows, output = sys.argv[1:]
    train(blending_datasets(rows), run_settings(model, output))
