"""Scripts in OpenRLHF's style and our own command line on the same rows; runs inside a rank."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from tests.helpers.workbench import save_model, save_rows

NUM_ROWS, BATCH_SIZE, EPOCHS = 22, 8, 2


def make_bench(folder: Path, kind: str = "qwen3", num_rows: int = NUM_ROWS) -> None:
    """A model, and rows of which one is longer than `max_len`."""
    save_model(folder / "model", kind)
    rows = save_rows(folder / "rows.jsonl", num_rows)
    with rows.open("a") as file:
        file.write('{"question": "long", "answer": "' + "coffee " * 200 + '"}\n')


def script(generation: str, folder: str, out: str, *more: str, **choices: Any) -> str:
    """Runs a script; what it printed."""
    os.environ |= {"OPENRLHF_CACHE": f"{folder}/cache", "WANDB_MODE": "offline"}
    paths = [f"{folder}/model", f"{folder}/rows.jsonl", f"{folder}/{out}", f"{folder}/{out}/ck"]
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        if generation == "0.9":
            from tests.clients import script_09

            names = ["--pretrain", "--dataset", "--save_path", "--ckpt_path"]
            settings = (
                "--train_batch_size 8 --micro_train_batch_size 2 --max_epochs 2 --learning_rate 1e-3 --max_len 128"
            )
            common = f"{settings} --param_dtype fp32 --input_key question --output_key answer --zero_stage 2".split()
            trainer = choices.pop("trainer", None)
            kind = {"trainer_class": getattr(script_09, trainer)} if trainer else {}
            script_09.main([*_pairs(names, paths), *common, *more], **kind)
        else:
            from tests.clients import script_11

            names = ["--model.model_name_or_path", "--data.dataset", "--ckpt.output_dir", "--ckpt.path"]
            settings = (
                "--train.batch_size 8 --train.micro_batch_size 2 --train.max_epochs 2 --adam.lr 1e-3 --data.max_len 128"
            )
            common = f"{settings} --ds.param_dtype fp32 --data.input_key question --data.output_key answer".split()
            script_11.main([*_pairs(names, paths), *common, *more])
    return heard.getvalue()


def command_line(folder: str, out: str, *more: str) -> None:
    """The same by our own command line."""
    from openrlhf.cli.train_sft import main

    paths = [f"{folder}/model", f"{folder}/rows.jsonl", f"{folder}/{out}", f"{folder}/{out}/ck"]
    names = ["--model.model_name_or_path", "--data.dataset", "--ckpt.output_dir", "--ckpt.path"]
    common = (
        "--train.batch_size 8 --train.micro_batch_size 2 --train.max_epochs 2 --adam.lr 1e-3 --data.max_len 128 "
        f"--ds.param_dtype fp32 --data.input_key question --data.output_key answer --data.cache_dir {folder}/cache"
    )
    main([*_pairs(names, paths), *common.split(), *more])


def _pairs(names: list[str], values: list[str]) -> list[str]:
    return [word for pair in zip(names, values, strict=True) for word in pair]


def prepare_with(cfg: dict[str, Any]) -> dict[str, Any]:
    """What `strategy.prepare((model, cfg))` makes of a cfg: the numbers, or what it says against it."""
    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.utils import get_strategy
    from tests.helpers.tiny_models import tiny_model

    strategy = get_strategy(argparse.Namespace(param_dtype="fp32"))
    strategy.setup_distributed()
    try:
        actor, _, scheduler = strategy.prepare((Actor(tiny_model("qwen3")), cfg))
    except UserError as error:
        return {"problem": str(error)}
    groups = scheduler.optimizer.param_groups
    return {
        "optimizer": type(scheduler.optimizer).__name__,
        "lr": max(group["initial_lr"] for group in groups),
        "decay": max(group["weight_decay"] for group in groups),
        "max_norm": (strategy.max_norm, actor.engine.gradient_clipping()),
        "steps": scheduler.lr_lambdas[0].keywords["num_training_steps"],
    }


def rows_of_a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), each (3, 9), padded on the right."""
    ids = torch.randint(3, 500, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 2:] = 0
    return ids, mask


def calls_by_position(folder: str) -> dict[str, Any]:
    """What a strategy gives back to a script that hands it everything by its place."""
    from torch.utils.data import SequentialSampler

    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.utils import get_strategy, get_tokenizer
    from tests.strategy.cases import rows

    strategy = get_strategy({"zero_stage": 1, "ds": {"param_dtype": "fp32"}})
    strategy.setup_distributed()
    rank, data = strategy.get_rank(), rows()
    loader = strategy.setup_dataloader(data, 3, False, False, list, False, SequentialSampler(data), 0, 0)
    tokenizer = get_tokenizer(f"{folder}/model", None, "right", strategy, True)
    (actor, _, scheduler), frozen = strategy.prepare(
        (Actor(f"{folder}/model", "sdpa", "fp32"), {"lr": 1e-3, "num_training_steps": 4}),
        Actor(f"{folder}/model", "sdpa", "fp32"),
    )
    for step in (1, 2, 3):
        state = {"consumed_samples": 8 * step, "mine": [step]}
        strategy.save_ckpt(actor.model, f"{folder}/ck", f"global_step{step}", 2, 1000, state)
    path, states = strategy.load_ckpt(actor.model, f"{folder}/ck", None, True, True, True, False)
    try:
        problem = str(strategy.load_ckpt(actor.model, f"{folder}/ck", load_module_only=True))
    except UserError as error:
        problem = str(error)
    strategy.save_model(actor, tokenizer, f"{folder}/exported")
    strategy.load_model(Actor(f"{folder}/model", "sdpa", "fp32"), f"{folder}/exported", "cpu", False)
    try:
        late = str(strategy.load_model(actor, f"{folder}/exported"))
    except UserError as error:
        late = str(error)
    return {
        "stage": (strategy.stage, strategy.ds.param_dtype),
        "rows of a batch": len(next(iter(loader))),
        "reduced": (strategy.all_reduce({"a": rank}, "sum")["a"], strategy.all_reduce(torch.tensor([rank]), "max")),
        "gathered": strategy.all_gather(torch.tensor([[rank, 7]])).tolist(),
        "is rank 0": strategy.is_rank_0(),
        "kept": sorted(one.name for one in Path(folder, "ck").glob("global_step*")),
        "loaded": (Path(path).name, states["consumed_samples"], states["mine"]),
        "problem": problem,
        "problem of load_model": late,
        "frozen": frozen(torch.arange(3, 9)[None]).shape,
        "steps": scheduler.lr_lambdas[0].keywords.get("num_training_steps", 4),
    }


def rates_of_two_fits(folder: str) -> tuple[list[float], str]:
    """The rates of a second `fit`, and what is printed at it."""
    from openrlhf.models import Actor
    from openrlhf.trainer import SFTTrainer
    from openrlhf.utils import get_strategy
    from tests.helpers.tiny_models import tiny_model
    from tests.strategy.cases import rows

    args = argparse.Namespace(train_batch_size=8, micro_train_batch_size=4, param_dtype="fp32")
    args.save_path, args.ckpt_path = f"{folder}/out", f"{folder}/ck"
    strategy = get_strategy(args)
    strategy.setup_distributed()
    cfg = {"lr": 1e-3, "lr_scheduler": "cosine", "scheduler_steps": len(rows()) // 8}
    model, optim, scheduler = strategy.prepare((Actor(tiny_model("qwen3")), cfg))
    loader = strategy.setup_dataloader(rows(), 4)
    trainer = SFTTrainer(model, strategy, optim, loader, None, scheduler, batch_size=8, max_epochs=1)
    heard, ends = io.StringIO(), []
    for _ in range(2):
        with contextlib.redirect_stdout(heard):
            trainer.fit(args)
        ends.append(optim.param_groups[0]["lr"])
    return ends, heard.getvalue()


def forward_like_theirs() -> dict[str, Any]:
    """Log-probs, and gradients of their sum, by a ring of both ranks and by this rank alone."""
    import torch.distributed as dist

    from openrlhf.models import Actor
    from tests.helpers.tiny_models import tiny_model

    ids, mask = rows_of_a_batch()
    alone = Actor(tiny_model("mixtral"), packing_samples=True)
    shared = Actor(tiny_model("mixtral"), packing_samples=True, ring_attn_size=2)
    whole, output = alone(ids, mask, return_output=True, return_logprobs=True, return_entropy=True)
    ring, of_ring = shared(
        ids, attention_mask=mask, return_output=True, return_entropy=True, ring_attn_group=dist.group.WORLD
    )
    (whole.sum() + output.aux_loss).backward()
    (ring.sum() + of_ring.aux_loss).backward()
    gradients = []
    for mine, theirs in zip(alone.parameters(), shared.parameters(), strict=True):
        dist.all_reduce(theirs.grad)
        gradients.append((mine.grad, theirs.grad / 2))  # each of the two ranks has used the sum
    actions = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    rows = ids[mask.bool()][None]
    pack = alone(rows, packed_seq_lens=[9, 6, 2])
    kept = [whole[0], whole.new_zeros(1), whole[1, :5], whole.new_zeros(1), whole[2, :1]]
    return {
        "log-probs": torch.equal(ring, whole) or float((ring - whole).abs().max()),
        "aux loss": float((of_ring.aux_loss - output.aux_loss).abs()),
        "entropy": float((of_ring.entropy - output.entropy).abs().max()),
        "gradients": max(float((one - other).abs().max()) for one, other in gradients),
        "actions": torch.equal(alone(ids, mask, action_mask=actions), whole[:, -3:] * actions),
        "pack": float((pack[0] - torch.cat(kept)).abs().max()),
    }


def loop_like_theirs(folder: str, epochs: int = 2, skip: int = 0) -> list[float]:
    """A loop over our loader in the manner of OpenRLHF's trainer; the losses."""
    from openrlhf.models import Actor, SFTLoss
    from openrlhf.utils import get_strategy
    from openrlhf.utils.distributed_sampler import DistributedSampler
    from tests.helpers.tiny_models import tiny_model
    from tests.strategy.cases import rows

    args = argparse.Namespace(train_batch_size=8, micro_train_batch_size=4, param_dtype="fp32", zero_stage=2)
    args.ring_attn_size, args.packing_samples = int(os.environ["WORLD_SIZE"]), True
    strategy = get_strategy(args)
    strategy.setup_distributed()
    model = Actor(tiny_model("qwen3"), packing_samples=True)
    loader = strategy.setup_dataloader(rows(), 4, True, True, num_workers=2, consumed_samples=skip)
    cfg = {"adam": {"lr": 1e-2}, "lr_scheduler": "constant", "scheduler_steps": 6}
    model, optim, scheduler = strategy.prepare((model, cfg))
    assert isinstance(loader.sampler, DistributedSampler)
    loss_fn, losses = SFTLoss(), []
    for epoch in range(epochs):
        if skip == 0:
            loader.sampler.set_epoch(epoch, consumed_samples=0)
        for inputs, attention_mask, loss_mask in loader:
            log_probs, output = model(
                inputs,
                attention_mask=attention_mask,
                return_output=True,
                return_logprobs=True,
                ring_attn_group=strategy.ring_attn_group,
            )
            loss = loss_fn(log_probs, loss_mask[:, :-1]) + 0.0 * output.aux_loss
            strategy.backward(loss, model, optim)
            strategy.optimizer_step(optim, model, scheduler)
            losses.append(float(loss.detach()))
    assert strategy.get_grad_norm(model) > 0
    assert (strategy.stage, strategy.max_norm) == (2, 1.0)
    return losses
