"""The public Python interface, used as a script would use it; runs inside a rank."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from tests.helpers.tiny_models import tiny_model

NUM_ROWS, BATCH_SIZE = 22, 8


def rows() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`(input_ids, attention_mask, loss_mask)` of the contract, each (1, L)."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for _ in range(NUM_ROWS):
        ids = torch.randint(3, 500, (1, int(torch.randint(4, 30, (1,), generator=draw))), generator=draw)
        mask = torch.ones_like(ids)
        mask[:, : ids.shape[1] // 3] = 0
        mask[:, -1] = 0
        made.append((ids, torch.ones_like(ids), mask))
    return made


def collate(items: list[Any]) -> tuple[torch.Tensor, ...]:
    """Rows → (B, 1, S), padded on the right."""
    longest = max(ids.shape[1] for ids, _, _ in items)
    pad = torch.nn.functional.pad
    return tuple(torch.stack([pad(row[k], (0, longest - row[k].shape[1])) for row in items]) for k in range(3))


def arguments(folder: str, **changes: Any) -> SimpleNamespace:
    """Flat names, as scripts for OpenRLHF have them."""
    values = dict(
        train_batch_size=BATCH_SIZE, micro_train_batch_size=2, zero_stage=2, param_dtype="fp32", learning_rate=1e-3,
        max_epochs=2, save_path=folder, ckpt_path=f"{folder}/ck", seed=1, max_norm=1.0,
    )  # fmt: skip
    return SimpleNamespace(**(values | changes))


def prepared(
    args: SimpleNamespace,
    kind: str = "qwen3",
    dtype: torch.dtype = torch.float32,
    own_optimizer: type[torch.optim.Optimizer] | None = None,
    **actor: Any,
) -> Any:
    """(strategy, actor, optimizer, scheduler) by way of `(model, cfg)`, or of `(model, optimizer, None)`."""
    from openrlhf.models import Actor
    from openrlhf.utils import get_strategy

    strategy = get_strategy(args)
    strategy.setup_distributed()
    model = Actor(tiny_model(kind, dtype=dtype), **actor)
    if own_optimizer is not None:
        return (strategy, *strategy.prepare((model, own_optimizer(model.parameters(), lr=args.learning_rate), None)))
    steps = math.ceil(NUM_ROWS / BATCH_SIZE) * args.max_epochs
    cfg = SimpleNamespace(lr=args.learning_rate, lr_scheduler="constant", num_training_steps=steps)
    return (strategy, *strategy.prepare((model, cfg)))


def fit_with_a_loader_of_ones_own(folder: str) -> dict[str, Any]:
    """`SFTTrainer.fit` over torch's DataLoader and DistributedSampler, with the third argument left out."""
    from torch.utils.data import DataLoader, DistributedSampler

    from openrlhf.trainer import SFTTrainer

    args = arguments(folder)
    strategy, actor, optimizer, scheduler = prepared(args)
    ranks = dict(num_replicas=strategy.world_size, rank=strategy.get_rank(), shuffle=False)
    loader = DataLoader(rows(), batch_size=2, collate_fn=collate, sampler=DistributedSampler(rows(), **ranks))
    trainer = SFTTrainer(
        actor, strategy, optimizer, loader, loader, scheduler, batch_size=BATCH_SIZE, max_epochs=2, disable_ds_ckpt=True
    )
    trainer.fit(args)
    return {"steps": trainer.progress.optimizer_step, "samples": trainer.progress.consumed_samples}


def fit_from_the_newest(folder: str, max_epochs: int, batch_size: int) -> str:
    """A fit over torch's DataLoader that goes on from the newest checkpoint, where there is one; what is printed."""
    import contextlib
    import io
    import os

    from torch.utils.data import DataLoader

    from openrlhf.trainer import SFTTrainer

    args = arguments(folder, save_steps=1)
    os.makedirs(args.ckpt_path, exist_ok=True)
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        strategy, actor, optimizer, scheduler = prepared(args)
        _, states = strategy.load_ckpt(actor.model, args.ckpt_path)
        loader = DataLoader(rows(), batch_size=2, collate_fn=collate)
        trainer = SFTTrainer(
            actor, strategy, optimizer, loader, None, scheduler, batch_size=batch_size, max_epochs=max_epochs
        )
        trainer.fit(args, states["consumed_samples"])
    return heard.getvalue()


def fit_with_batches(folder: str, loader_batch: int, trainer_batch: int, num_rows: int = NUM_ROWS, **sizes: int) -> str:
    """What a fit over torch's DataLoader says to a batch size, in an error or in what it prints."""
    import contextlib
    import io

    from torch.utils.data import DataLoader

    from openrlhf.errors import UserError
    from openrlhf.trainer import SFTTrainer

    args = arguments(folder, max_epochs=1, disable_ds_ckpt=True, **sizes)
    strategy, actor, optimizer, scheduler = prepared(args)
    loader = DataLoader(rows()[:num_rows], batch_size=loader_batch, collate_fn=collate)
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard):
            SFTTrainer(actor, strategy, optimizer, loader, None, scheduler, batch_size=trainer_batch, max_epochs=1).fit(
                args
            )
    except UserError as error:
        return str(error)
    return "\n".join(line for line in heard.getvalue().splitlines() if "train_batch_size" in line)


def loop_of_ones_own(folder: str) -> list[float]:
    """OpenRLHF's way without a trainer: forward, SFTLoss, backward, optimizer_step; the losses."""
    from openrlhf.models import SFTLoss

    args = arguments(folder, train_batch_size=4)
    strategy, actor, optimizer, scheduler = prepared(args)
    assert strategy.accumulated_gradient == 4 // (2 * strategy.world_size)
    loss_of = SFTLoss()
    losses = []
    for _ in range(10):
        ids, attention, mask = (part.squeeze(1) for part in collate(rows()[:2]))
        log_probs = actor(ids, attention)
        assert log_probs.dtype == torch.float32
        assert log_probs.shape == (ids.shape[0], ids.shape[1] - 1)
        loss = loss_of(log_probs, mask[:, :-1])
        strategy.backward(loss, actor, optimizer)
        strategy.optimizer_step(optimizer, actor, scheduler)
        losses.append(float(loss.detach()))
    return losses


def two_models_in_turn(folder: str) -> list[int]:
    """The updates of an actor and a critic after four rounds of one micro-batch each, of which two make a step."""
    from openrlhf.models import Actor

    args = arguments(folder, train_batch_size=4, micro_train_batch_size=2)
    strategy, actor, optimizer, scheduler = prepared(args)
    critic = strategy.prepare((Actor(tiny_model("qwen3")), {"lr": 1e-3}))
    ids, attention, _ = (part.squeeze(1) for part in collate(rows()[:2]))
    trained = [(actor, optimizer, scheduler), critic]
    for _ in range(4):
        for model, optim, schedule in trained:
            strategy.backward(-model(ids, attention).mean(), model, optim)
            strategy.optimizer_step(optim, model, schedule)
    return [model.engine.global_steps for model, _, _ in trained]


class KeepsANumber(torch.optim.SGD):
    """Its state is not shaped like the weights, as that of Adafactor."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["rms"] = 0.5


def train_with_an_optimizer_that_no_checkpoint_holds(folder: str, save_steps: int) -> tuple[int, float, str]:
    """The steps of a fit, the learning rate at its end, and what it says of training checkpoints."""
    import contextlib
    import io

    from openrlhf.errors import UserError
    from openrlhf.trainer import SFTTrainer

    args = arguments(folder, max_epochs=1, save_steps=save_steps)
    strategy, actor, optimizer, scheduler = prepared(args, own_optimizer=KeepsANumber)
    loader = strategy.setup_dataloader(rows(), 2)
    trainer = SFTTrainer(actor, strategy, optimizer, loader, None, scheduler, max_epochs=1)
    heard = io.StringIO()
    try:
        with contextlib.redirect_stdout(heard):
            trainer.fit(args)
    except UserError as error:
        heard.write(f"refused: {error}")
    said = next(line for line in heard.getvalue().splitlines() if "no checkpoint can hold" in line)
    return trainer.progress.optimizer_step, scheduler.get_last_lr()[0], said


def loop_with_an_optimizer_that_no_checkpoint_holds(folder: str) -> tuple[int, str]:
    """How often a loop warns in two steps, and what its save says."""
    import contextlib
    import io

    from openrlhf.errors import UserError

    args = arguments(folder, train_batch_size=2)
    strategy, actor, optimizer, scheduler = prepared(args, own_optimizer=KeepsANumber)
    ids, attention, _ = (part.squeeze(1) for part in collate(rows()[:2]))
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        for _ in range(2):
            strategy.backward(-actor(ids, attention).mean(), actor, optimizer)
            strategy.optimizer_step(optimizer, actor, scheduler)
    try:
        strategy.save_ckpt(actor, args.ckpt_path)
    except UserError as error:
        return heard.getvalue().count("warning: no checkpoint can hold"), str(error)
    return heard.getvalue().count("warning: no checkpoint can hold"), ""


def save_and_load_by_name(folder: str) -> dict[str, Any]:
    """`save_ckpt` and `load_ckpt` as scripts call them, with a change of the weights between."""
    args = arguments(folder)
    strategy, actor, _, _ = prepared(args)
    first = next(actor.parameters())
    saved = first.detach().clone()
    strategy.save_ckpt(actor, args.ckpt_path, "global_step1", client_state={"consumed_samples": 8})
    states = {"consumed_samples": 16, "note": "mine"}
    strategy.save_ckpt(actor, args.ckpt_path, "global_step2", max_num=3, max_mem=10, client_state=states)
    _, other, _, _ = fresh = prepared(args, kind="qwen3")
    with torch.no_grad():
        next(other.parameters()).zero_()
    path, client_states = fresh[0].load_ckpt(other, args.ckpt_path)
    same = bool(torch.equal(next(other.parameters()).detach(), saved))
    _, older = fresh[0].load_ckpt(other, args.ckpt_path, tag="global_step1")
    return {
        "path": path,
        "older": older["consumed_samples"],
        "states": {name: client_states[name] for name in states},
        "same": same,
    }


def save_with_other_limits(folder: str) -> list[list[str]]:
    """The checkpoints that are there after each of three saves, of which the last asks for fewer."""
    import os

    args = arguments(folder)
    strategy, actor, _, _ = prepared(args)
    seen = []
    for step, max_num in ((1, 3), (2, 3), (3, 1)):
        strategy.save_ckpt(actor, args.ckpt_path, f"global_step{step}", max_num=max_num, client_state={})
        torch.distributed.barrier()  # rank 0 rotates
        seen.append(sorted(name for name in os.listdir(args.ckpt_path) if name.startswith("global_step")))
        torch.distributed.barrier()
    return seen


def sft_trainer_with(folder: str, **choices: Any) -> str:
    """The message of an SFTTrainer that contradicts its strategy (`max_norm=0.5`) or its data set; else empty."""
    from openrlhf.errors import UserError
    from openrlhf.trainer import SFTTrainer

    strategy, actor, optimizer, scheduler = prepared(arguments(folder, max_norm=0.5))
    loader = strategy.setup_dataloader(PlainText(), 2)
    try:
        SFTTrainer(actor, strategy, optimizer, loader, None, scheduler, **choices)
    except UserError as error:
        return str(error)
    return ""


class PlainText(list):
    """Rows that were made for continued pre-training."""

    pretrain_mode = True

    def __init__(self) -> None:
        super().__init__(rows())


def all_tokens_are_targets(folder: str) -> int:
    """Target tokens of a step over a loader of the user's own with `pretrain_mode`."""
    from torch.utils.data import DataLoader

    from openrlhf.trainer import SFTTrainer

    args = arguments(folder, max_epochs=1)
    strategy, actor, optimizer, scheduler = prepared(args)
    mine = rows()[strategy.get_rank() :: strategy.world_size]
    loader = DataLoader(mine, batch_size=2, collate_fn=collate)
    trainer = SFTTrainer(
        actor, strategy, optimizer, loader, None, scheduler,
        pretrain_mode=True, batch_size=BATCH_SIZE, max_epochs=1, disable_ds_ckpt=True,
    )  # fmt: skip
    trainer.fit(args)
    return trainer.progress.consumed_target_tokens


def evaluate_a_bare_model(folder: str) -> bool:
    """`prepare(model)` gives a model that only computes, with the same numbers as before."""
    from openrlhf.models import Actor
    from openrlhf.utils import get_strategy

    strategy = get_strategy(arguments(folder, zero_stage=3))
    strategy.setup_distributed()
    model = Actor(tiny_model("qwen3")).eval()
    ids, attention, _ = (part.squeeze(1) for part in collate(rows()[:3]))
    with torch.no_grad():
        before = model(ids, attention)
        after = strategy.prepare(model)(ids, attention)
    return bool(torch.allclose(before, after, atol=1e-6))


def evaluate_from_the_hosts_memory(folder: str) -> list[bool]:
    """Models whose weights `get_ds_eval_config` keeps there, and nothing else says it, below ZeRO-3."""
    from openrlhf.models import Actor, RewardModel
    from openrlhf.utils import get_strategy

    strategy = get_strategy(arguments(folder))
    strategy.setup_distributed()
    ids, attention, _ = (part.squeeze(1) for part in collate(rows()[:3]))
    are_same = []
    for kind in (Actor, RewardModel):
        whole = kind(f"{folder}/model", param_dtype="fp32").eval()
        config = strategy.get_ds_eval_config(offload=True)
        shared_out = strategy.prepare(kind(f"{folder}/model", param_dtype="fp32", ds_config=config)).eval()
        with torch.no_grad():
            are_same.append(bool(torch.allclose(whole(ids, attention), shared_out(ids, attention), atol=1e-6)))
    return are_same


def reduce_and_gather() -> dict[str, Any]:
    from openrlhf.utils import get_strategy

    strategy = get_strategy(SimpleNamespace())
    strategy.setup_distributed()
    rank = strategy.get_rank()
    return {
        "mean": strategy.all_reduce(float(rank)),
        "sum": strategy.all_reduce({"x": torch.tensor([rank, 1.0])}, op="sum")["x"].tolist(),
        "max": strategy.all_reduce(rank, op="max"),
        "gathered": strategy.all_gather(torch.tensor([rank, rank])).tolist(),
        "rank_0": strategy.is_rank_0(),
    }


def losses_with(folder: str, dtype: str = "fp32", lora_rank: int = 0, **changes: Any) -> list[float]:
    """Ten steps on the same two rows, by the trainer's own step."""
    from openrlhf.objectives import SFTObjective
    from openrlhf.trainer.step import WindowStep

    args = arguments(folder, param_dtype=dtype, **changes)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    strategy, actor, _, _ = prepared(args, dtype=dtypes[dtype], lora_rank=lora_rank)
    loader = strategy.setup_dataloader(rows()[:BATCH_SIZE], 2, shuffle=False)
    step = WindowStep(actor, actor.trained, strategy, SFTObjective())
    actor.train()
    return [
        step.run(window, number).loss
        for number, window in zip(range(10), loader.windows(max_epochs=None), strict=False)
    ]


def refused_ranks(folder: str, what: str) -> str:
    """What a script is told whose second rank differs in `what`."""
    import torch.distributed as dist

    from openrlhf.errors import UserError
    from openrlhf.models import Actor
    from openrlhf.trainer import SFTTrainer
    from openrlhf.utils import get_strategy

    is_other = dist.get_rank() == 1 and what != "nothing"
    args = arguments(folder, save_steps=-1, logging_steps=1)
    if is_other and what in vars(args):
        setattr(args, what, {"zero_stage": 1, "seed": 2, "max_norm": 0.5, "train_batch_size": 4}[what])
    try:
        strategy = get_strategy(args)
        strategy.setup_distributed()
        layers = 1 if is_other and what == "layers" else 2
        base = 5e5 if is_other and what == "rope" else 1e4
        rope = {"rope_type": "default", "rope_theta": base}
        actor = Actor(tiny_model("qwen3", num_hidden_layers=layers, rope_parameters=rope))
        cfg = SimpleNamespace(lr=2e-3 if is_other and what == "rate" else 1e-3, lr_scheduler="constant")
        cfg.num_training_steps = 6
        actor, optimizer, scheduler = strategy.prepare((actor, cfg))
        data = rows()
        if is_other and what == "row":
            data[3][0][0, 1] += 1
        shuffle = not (is_other and what == "order")
        loader = strategy.setup_dataloader(data, 2, shuffle=shuffle)
        epochs = 3 if is_other and what == "epochs" else 2
        SFTTrainer(actor, strategy, optimizer, loader, None, scheduler, max_epochs=epochs, batch_size=8).fit(args)
    except UserError as error:
        return str(error)
    return ""


def fits_in_turn(folder: str, num_fits: int = 2, **changes: Any) -> str:
    """Trainers over one model, one after another, each with a fit that saves at every step; what is printed."""
    import contextlib
    import io

    from openrlhf.trainer import SFTTrainer

    args = arguments(folder, max_epochs=1, save_steps=1, **changes)
    strategy, actor, optimizer, scheduler = prepared(args)
    loader = strategy.setup_dataloader(rows(), 2)
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        for _ in range(num_fits):
            trainer = SFTTrainer(
                actor, strategy, optimizer, loader, None, scheduler, batch_size=args.train_batch_size, max_epochs=1
            )
            trainer.fit(args)
    return heard.getvalue()


def fits_of_two_models(folder: str, **choices: Any) -> str:
    """A model after the other, each with a fit of its own into one folder; what is printed. Args: of the second."""
    import contextlib
    import io

    from openrlhf.models import Actor
    from openrlhf.trainer import SFTTrainer

    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        args = arguments(folder, max_epochs=1, save_steps=1)
        strategy, *first = prepared(args)
        cfg = SimpleNamespace(lr=args.learning_rate, lr_scheduler="constant", num_training_steps=3)
        second = strategy.prepare((Actor(tiny_model("qwen3")), cfg))
        for (actor, optimizer, scheduler), own in ((first, {}), (second, choices)):
            loader = strategy.setup_dataloader(rows(), 2)
            SFTTrainer(actor, strategy, optimizer, loader, None, scheduler, max_epochs=1, **own).fit(args)
    return heard.getvalue()


def fit_with_a_hook_that_saves(folder: str) -> str:
    """A fit whose trainer saves at every step by itself, as the fit does; what is printed."""
    import contextlib
    import io

    from openrlhf.trainer import SFTTrainer

    class SavingTrainer(SFTTrainer):
        def save_logs_and_checkpoints(self, args, global_step, step_bar, logs_dict=None, client_states=None):
            name = f"global_step{global_step}"
            self.strategy.save_ckpt(self.model.model, args.ckpt_path, name, client_state=client_states)

    args = arguments(folder, max_epochs=1, save_steps=1)
    strategy, actor, optimizer, scheduler = prepared(args)
    loader = strategy.setup_dataloader(rows(), 2)
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        trainer = SavingTrainer(
            actor, strategy, optimizer, loader, None, scheduler, batch_size=BATCH_SIZE, max_epochs=1
        )
        trainer.fit(args)
    return heard.getvalue()


def save_one(folder: str, step: int, loads: bool) -> str:
    """A script's own loop that saves once, having loaded the newest checkpoint or not; what is printed."""
    import contextlib
    import io

    args = arguments(folder)
    strategy, actor, _, _ = prepared(args)
    heard = io.StringIO()
    with contextlib.redirect_stdout(heard):
        if loads:
            strategy.load_ckpt(actor, args.ckpt_path)
        strategy.save_ckpt(actor, args.ckpt_path, f"global_step{step}", client_state={"consumed_samples": 8 * step})
    return heard.getvalue()
