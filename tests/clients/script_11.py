"""A training script in the style of OpenRLHF 0.11: dotted flags, the strategy builds optimizer and schedule."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

from openrlhf.datasets import SFTDataset
from openrlhf.datasets.utils import blending_datasets
from openrlhf.models import Actor
from openrlhf.trainer.sft_trainer import SFTTrainer
from openrlhf.utils import get_strategy, get_tokenizer
from openrlhf.utils.config import hierarchize


def main(argv: Sequence[str]) -> SFTTrainer:
    args = hierarchize(parser().parse_args(argv))
    strategy = get_strategy(args)
    strategy.setup_distributed()
    ds, train = args.ds, args.train
    model = Actor(
        args.model.model_name_or_path,
        attn_implementation=ds.attn_implementation,
        experts_implementation=ds.experts_implementation,
        param_dtype=ds.param_dtype,
        load_in_4bit=ds.load_in_4bit,
        lora_rank=ds.lora.rank,
        lora_alpha=ds.lora.alpha,
        target_modules=ds.lora.target_modules,
        lora_dropout=ds.lora.dropout,
        ds_config=strategy.get_ds_train_config(is_actor=True),
        packing_samples=ds.packing_samples,
        use_liger_kernel=ds.use_liger_kernel,
    )
    tokenizer = get_tokenizer(args.model.model_name_or_path, model.model, "right", strategy)
    rows = blending_datasets(
        args.data.dataset,
        args.data.dataset_probs,
        strategy,
        train.seed,
        max_count=args.data.max_samples,
        dataset_split=args.data.dataset_split,
    )
    dataset = SFTDataset(
        rows,
        tokenizer,
        args.data.max_len,
        strategy,
        pretrain_mode=args.model.pretrain_mode_enable,
        input_template=args.data.input_template,
        multiturn=args.data.multiturn,
    )
    loader = strategy.setup_dataloader(
        dataset,
        train.micro_batch_size,
        True,
        True,
        dataset.collate_fn,
        num_workers=args.data.dataloader_num_workers,
    )
    num_update_steps_per_epoch = len(dataset) // train.batch_size
    cfg = {
        "optim": args.optim,
        "adam": vars(args.adam),
        "muon": vars(args.muon),
        "lr_scheduler": args.lr_scheduler,
        "lr_warmup_ratio": args.lr_warmup_ratio,
        "min_lr_ratio": args.min_lr_ratio,
        "max_norm": args.max_norm,
        "scheduler_steps": math.ceil(train.max_epochs * num_update_steps_per_epoch),
    }
    model, optim, scheduler = strategy.prepare((model, cfg))
    consumed_samples = 0
    if args.ckpt.load_enable and os.path.exists(args.ckpt.path):
        _, states = strategy.load_ckpt(model.model, args.ckpt.path)
        consumed_samples = states["consumed_samples"]
    trainer = SFTTrainer(
        model=model,
        strategy=strategy,
        optim=optim,
        train_dataloader=loader,
        eval_dataloader=None,
        scheduler=scheduler,
        max_norm=args.max_norm,
        batch_size=train.batch_size,
        max_epochs=train.max_epochs,
        tokenizer=tokenizer,
        save_hf_ckpt=args.ckpt.save_hf,
        disable_ds_ckpt=args.ckpt.disable_ds,
    )
    trainer.fit(args, consumed_samples, num_update_steps_per_epoch)
    strategy.save_model(model, tokenizer, args.ckpt.output_dir)
    return trainer


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()

    def values(kind: type, **defaults) -> None:
        for name, default in defaults.items():
            made.add_argument("--" + name.replace("__", "."), type=kind, default=default)

    values(
        str, model__model_name_or_path=None, data__dataset=None, data__dataset_probs=None, data__dataset_split="train"
    )
    values(str, data__input_key="input", data__output_key=None, data__input_template=None, optim="adam")
    values(str, data__tokenizer_chat_template=None, ds__attn_implementation="flash_attention_2", ds__param_dtype="bf16")
    values(str, ds__experts_implementation=None, ds__grad_accum_dtype=None, lr_scheduler="cosine_with_min_lr")
    values(str, ckpt__output_dir="./ckpt", ckpt__path="./ckpt/checkpoints_sft", logger__wandb__key=None)
    values(str, logger__tensorboard_dir=None, logger__wandb__project="sft", logger__wandb__run_name="run", compat=None)
    values(int, data__max_samples=1000000, data__max_len=2048, data__dataloader_num_workers=0, train__batch_size=128)
    values(int, train__micro_batch_size=8, train__max_epochs=2, train__seed=42, ds__zero_stage=2, ds__zpg=1)
    values(int, ds__ring_attn_size=1, ds__ring_attn_head_stride=1, ds__tensor_parallel_size=1, ds__lora__rank=0)
    values(int, ds__lora__alpha=16, muon__ns_steps=5, ckpt__save_steps=-1, ckpt__max_num=3, logger__logging_steps=1)
    values(int, eval__steps=-1, local_rank=-1)
    values(float, model__aux_loss_coef=0, ds__lora__dropout=0, adam__lr=5e-6, adam__eps=1e-8, adam__weight_decay=0)
    values(float, muon__lr=0.02, muon__momentum=0.95, lr_warmup_ratio=0.03, min_lr_ratio=0.1, max_norm=1.0)
    values(float, ckpt__max_mem=1e8)
    for name in ("model.pretrain_mode_enable", "data.apply_chat_template", "data.multiturn", "ds.packing_samples"):
        made.add_argument(f"--{name}", action="store_true")
    for name in ("ds.load_in_4bit", "ds.use_liger_kernel", "ckpt.save_hf", "ckpt.disable_ds", "ckpt.load_enable"):
        made.add_argument(f"--{name}", action="store_true")
    made.add_argument("--muon.nesterov", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--adam.betas", type=float, nargs=2, default=(0.9, 0.95))
    made.add_argument("--ds.lora.target_modules", type=str, nargs="*", default="all-linear")
    return made


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
