"""A training script in the style of OpenRLHF 0.9: flat flags, the script builds optimizer and schedule itself."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from transformers.trainer import get_scheduler

from openrlhf.datasets import SFTDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.models import Actor
from openrlhf.trainer.sft_trainer import SFTTrainer
from openrlhf.utils import get_strategy, get_tokenizer


class LoggingTrainer(SFTTrainer):
    """Overrides the hook, as users do to log something of their own."""

    def save_logs_and_checkpoints(self, args, global_step, step_bar, logs_dict={}, client_states={}):  # noqa: B006
        logs_dict["twice_the_loss"] = 2 * logs_dict["gpt_loss"]
        step_bar.set_postfix(logs_dict)
        assert client_states["consumed_samples"] <= global_step * args.train_batch_size
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs_dict, client_states)


def main(argv: Sequence[str], trainer_class: type[SFTTrainer] = SFTTrainer) -> SFTTrainer:
    args = parser().parse_args(argv)
    strategy = get_strategy(args)
    strategy.setup_distributed()
    model = Actor(
        args.pretrain,
        attn_implementation=args.attn_implementation,
        param_dtype=args.param_dtype,
        load_in_4bit=args.load_in_4bit,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=args.target_modules,
        lora_dropout=args.lora_dropout,
        ds_config=strategy.get_ds_train_config(is_actor=True),
        packing_samples=args.packing_samples,
        use_liger_kernel=args.use_liger_kernel,
    )
    tokenizer = get_tokenizer(args.pretrain, model.model, "right", strategy, use_fast=not args.disable_fast_tokenizer)
    strategy.print(model)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": args.gradient_checkpointing_use_reentrant}
        )
    optim = strategy.create_optimizer(model, lr=args.learning_rate, betas=args.adam_betas, weight_decay=args.l2)
    train_dataset = dataset_of(args, strategy, tokenizer, args.dataset, args.dataset_split, args.dataset_probs)
    train_dataloader = strategy.setup_dataloader(
        train_dataset, args.micro_train_batch_size, True, True, train_dataset.collate_fn
    )
    eval_dataloader = None
    if args.eval_dataset:
        eval_dataset = dataset_of(args, strategy, tokenizer, args.eval_dataset, args.eval_split)
        eval_dataloader = strategy.setup_dataloader(
            eval_dataset, args.micro_train_batch_size, True, False, eval_dataset.collate_fn
        )
    num_update_steps_per_epoch = len(train_dataset) // args.train_batch_size
    max_steps = math.ceil(args.max_epochs * num_update_steps_per_epoch)
    scheduler = get_scheduler(
        args.lr_scheduler,
        optim,
        num_warmup_steps=math.ceil(max_steps * args.lr_warmup_ratio),
        num_training_steps=max_steps,
        scheduler_specific_kwargs={"min_lr": args.learning_rate * 0.1},
    )
    model, optim, scheduler = strategy.prepare((model, optim, scheduler))
    consumed_samples = 0
    if args.load_checkpoint and os.path.exists(args.ckpt_path):
        _, states = strategy.load_ckpt(model.model, args.ckpt_path)
        consumed_samples = states["consumed_samples"]
        strategy.print(f"Loaded the checkpoint: {args.ckpt_path}, consumed_samples: {consumed_samples}")
    os.makedirs(args.save_path, exist_ok=True)
    trainer = trainer_class(
        model=model,
        strategy=strategy,
        optim=optim,
        train_dataloader=train_dataloader,
        eval_dataloader=eval_dataloader,
        scheduler=scheduler,
        max_norm=args.max_norm,
        pretrain_mode=args.pretrain_mode,
        batch_size=args.train_batch_size,
        max_epochs=args.max_epochs,
        tokenizer=tokenizer,
        save_hf_ckpt=args.save_hf_ckpt,
        disable_ds_ckpt=args.disable_ds_ckpt,
    )
    trainer.fit(args, consumed_samples, num_update_steps_per_epoch)
    if eval_dataloader is not None:
        strategy.print(f"evaluated again: {trainer.evaluate(eval_dataloader, steps=0)['eval_loss']}")
    strategy.save_model(model, tokenizer, args.save_path)
    return trainer


def dataset_of(args, strategy, tokenizer, names, split, probs=None) -> SFTDataset:
    rows = blending_datasets(names, probs, strategy, args.seed, max_count=args.max_samples, dataset_split=split)
    rows = rows.select(range(min(args.max_samples, len(rows))))
    return SFTDataset(
        rows,
        tokenizer,
        args.max_len,
        strategy,
        pretrain_mode=args.pretrain_mode,
        input_template=args.input_template,
        multiturn=args.multiturn,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()

    def switches(*names: str) -> None:
        for name in names:
            made.add_argument(f"--{name}", action="store_true", default=False)

    def values(kind: type, **defaults) -> None:
        for name, default in defaults.items():
            made.add_argument(f"--{name}", type=kind, default=default)

    values(str, save_path="./ckpt", ckpt_path="./ckpt/checkpoints_sft", pretrain=None, param_dtype="bf16")
    values(int, save_steps=-1, logging_steps=1, eval_steps=-1, max_ckpt_num=3, max_ckpt_mem=1e8, local_rank=-1)
    values(int, micro_train_batch_size=8, train_batch_size=128, seed=42, zero_stage=2, zpg=1, max_epochs=2)
    values(int, ds_tensor_parallel_size=1, ring_attn_size=1, ring_head_stride=1, lora_rank=0, lora_alpha=16)
    values(int, max_samples=1000000, max_len=2048)
    values(float, max_norm=1.0, aux_loss_coef=0, learning_rate=5e-6, lr_warmup_ratio=0.03, l2=0, lora_dropout=0)
    values(str, attn_implementation="flash_attention_2", grad_accum_dtype=None, lr_scheduler="cosine_with_min_lr")
    values(str, dataset=None, dataset_probs=None, eval_dataset=None, dataset_split="train", eval_split="train")
    values(str, input_key="input", output_key=None, input_template="User: {}\nAssistant: ")
    values(str, tokenizer_chat_template=None, use_tensorboard=None)
    values(str, use_wandb=None, wandb_org=None, wandb_group=None, wandb_project="openrlhf_train_sft")
    values(str, wandb_run_name="sft_0101T0101", compat=None)
    switches("save_hf_ckpt", "disable_ds_ckpt", "load_checkpoint", "use_ds_universal_ckpt", "gradient_checkpointing")
    switches("full_determinism", "disable_fast_tokenizer", "adam_offload", "use_liger_kernel", "overlap_comm")
    switches("gradient_checkpointing_use_reentrant", "pretrain_mode", "load_in_4bit", "packing_samples", "multiturn")
    switches("apply_chat_template", "use_ms", "deepcompile")
    made.add_argument("--target_modules", type=str, nargs="*", default="all-linear")
    made.add_argument("--adam_betas", type=float, nargs=2, default=(0.9, 0.95))
    return made


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
