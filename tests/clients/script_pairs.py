"""Training scripts in OpenRLHF's style over pairs of answers, a reward model's and DPO's; and our command lines beside
them. Runs inside a rank."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from transformers.trainer import get_scheduler

from openrlhf.datasets import RewardDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.models import Actor, get_llm_for_sequence_regression
from openrlhf.trainer.dpo_trainer import DPOTrainer
from openrlhf.trainer.rm_trainer import RewardModelTrainer
from openrlhf.utils import get_strategy, get_tokenizer


def train_rm(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    strategy = get_strategy(args)
    strategy.setup_distributed()
    model = get_llm_for_sequence_regression(
        args.pretrain,
        "reward",
        param_dtype=args.param_dtype,
        attn_implementation=args.attn_implementation,
        load_in_4bit=args.load_in_4bit,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=args.target_modules,
        lora_dropout=args.lora_dropout,
        ds_config=strategy.get_ds_train_config(is_actor=False),
        init_value_head=True,
        value_head_prefix=args.value_head_prefix,
        packing_samples=args.packing_samples,
    )
    tokenizer = get_tokenizer(args.pretrain, model, "left", strategy, use_fast=True)
    strategy.print(model)
    optim = strategy.create_optimizer(model, lr=args.learning_rate, betas=args.adam_betas, weight_decay=args.l2)
    loader, num_update_steps_per_epoch = loader_of(args, strategy, tokenizer)
    scheduler = schedule_of(args, optim, num_update_steps_per_epoch)
    model, optim, scheduler = strategy.prepare((model, optim, scheduler))
    trainer = RewardModelTrainer(
        model=model,
        strategy=strategy,
        optim=optim,
        train_dataloader=loader,
        eval_dataloader=loader,
        scheduler=scheduler,
        tokenizer=tokenizer,
        max_norm=args.max_norm,
        max_epochs=args.max_epochs,
        loss=args.loss,
        save_hf_ckpt=args.save_hf_ckpt,
        disable_ds_ckpt=args.disable_ds_ckpt,
    )
    trainer.fit(args, 0, num_update_steps_per_epoch)
    strategy._unwrap_model(model).config.value_head_prefix = args.value_head_prefix
    assert strategy._unwrap_model(model.engine).config is model.config
    strategy.save_model(model, tokenizer, args.save_path)


def train_dpo(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    strategy = get_strategy(args)
    strategy.setup_distributed()
    common = dict(attn_implementation=args.attn_implementation, param_dtype=args.param_dtype)
    common |= dict(load_in_4bit=args.load_in_4bit, packing_samples=args.packing_samples)
    model = Actor(
        args.pretrain,
        **common,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.target_modules,
        ds_config=strategy.get_ds_train_config(is_actor=True),
    )
    tokenizer = get_tokenizer(args.pretrain, model.model, "right", strategy, use_fast=True)
    ref_model = Actor(args.ref_pretrain, **common, ds_config=strategy.get_ds_eval_config(offload=args.ref_offload))
    ref_model._offload = args.ref_offload
    optim = strategy.create_optimizer(model, lr=args.learning_rate, betas=args.adam_betas, weight_decay=args.l2)
    loader, num_update_steps_per_epoch = loader_of(args, strategy, tokenizer, is_dpo=True)
    scheduler = schedule_of(args, optim, num_update_steps_per_epoch)
    (model, optim, scheduler), ref_model = strategy.prepare((model, optim, scheduler), ref_model)
    trainer = DPOTrainer(
        model=model,
        ref_model=ref_model,
        tokenizer=tokenizer,
        strategy=strategy,
        optim=optim,
        train_dataloader=loader,
        eval_dataloader=loader,
        scheduler=scheduler,
        max_norm=args.max_norm,
        beta=args.beta,
        max_epochs=args.max_epochs,
        save_hf_ckpt=args.save_hf_ckpt,
        disable_ds_ckpt=args.disable_ds_ckpt,
    )
    trainer.fit(args, 0, num_update_steps_per_epoch)
    strategy.save_model(model, tokenizer, args.save_path)


def loader_of(args: Any, strategy: Any, tokenizer: Any, is_dpo: bool = False) -> tuple[Any, int]:
    rows = blending_datasets(args.dataset, None, strategy, args.seed, max_count=args.max_samples)
    dataset = RewardDataset(rows, tokenizer, args.max_len, strategy, input_template=args.input_template, is_dpo=is_dpo)
    loader = strategy.setup_dataloader(dataset, args.micro_train_batch_size, True, True, dataset.collate_fn)
    return loader, len(dataset) // args.train_batch_size


def schedule_of(args: Any, optim: Any, num_update_steps_per_epoch: int) -> Any:
    max_steps = math.ceil(args.max_epochs * num_update_steps_per_epoch)
    return get_scheduler(
        "cosine_with_min_lr",
        optim,
        num_warmup_steps=math.ceil(max_steps * args.lr_warmup_ratio),
        num_training_steps=max_steps,
        scheduler_specific_kwargs={"min_lr": args.learning_rate * 0.1},
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()

    def values(kind: type, **defaults) -> None:
        for name, default in defaults.items():
            made.add_argument(f"--{name}", type=kind, default=default)

    values(str, pretrain=None, ref_pretrain=None, dataset=None, save_path="./ckpt", ckpt_path="./ckpt/checkpoints")
    values(str, attn_implementation="flash_attention_2", param_dtype="bf16", loss="sigmoid", value_head_prefix="score")
    values(str, prompt_key=None, chosen_key="chosen", rejected_key="rejected", input_template=None)
    values(str, tokenizer_chat_template=None, use_tensorboard=None, use_wandb=None)
    values(int, micro_train_batch_size=1, train_batch_size=128, seed=42, zero_stage=2, max_epochs=1, max_len=512)
    values(int, max_samples=1000000, lora_rank=0, lora_alpha=16, save_steps=-1, logging_steps=1, eval_steps=-1)
    values(float, max_norm=1.0, learning_rate=1e-5, lr_warmup_ratio=0.03, l2=0.0, lora_dropout=0, beta=0.1)
    values(float, aux_loss_coef=0, nll_loss_coef=0, label_smoothing=0.0)
    for name in ("load_in_4bit", "packing_samples", "apply_chat_template", "save_hf_ckpt", "disable_ds_ckpt"):
        made.add_argument(f"--{name}", action="store_true", default=False)
    for name in ("ref_offload", "ipo", "margin_loss"):
        made.add_argument(f"--{name}", action="store_true", default=False)
    made.add_argument("--target_modules", type=str, nargs="*", default="all-linear")
    made.add_argument("--adam_betas", type=float, nargs=2, default=(0.9, 0.95))
    return made


def script(command: str, folder: str, out: str, *more: str) -> None:
    """Trains the model in `folder` by a script."""
    os.environ |= {"OPENRLHF_CACHE": f"{folder}/cache", "WANDB_MODE": "offline"}
    words = f"--pretrain {folder}/model --dataset {folder}/pairs.jsonl --save_path {folder}/{out} --prompt_key prompt"
    words += f" --ckpt_path {folder}/{out}/ck --train_batch_size 4 --max_epochs 2 --learning_rate 1e-3"
    {"rm": train_rm, "dpo": train_dpo}[command]([*words.split(), "--param_dtype", "fp32", *more])


def command_line(command: str, folder: str, out: str, *more: str) -> None:
    """The same by our own command line."""
    from openrlhf.cli import train_dpo as our_dpo
    from openrlhf.cli import train_rm as our_rm

    words = f"--model.model_name_or_path {folder}/model --data.dataset {folder}/pairs.jsonl --data.max_len 512"
    words += f" --ckpt.output_dir {folder}/{out} --ckpt.path {folder}/{out}/ck --data.cache_dir {folder}/cache"
    words += " --train.batch_size 4 --train.micro_batch_size 1 --train.max_epochs 2 --adam.lr 1e-3"
    ours = {"rm": our_rm, "dpo": our_dpo}[command]
    ours.main([*words.split(), "--ds.param_dtype", "fp32", "--data.prompt_key", "prompt", *more])
