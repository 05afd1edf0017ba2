"""Every type under ZeRO-3 on two ranks, by DeepSpeed itself: the first step's loss and gradient norm.

`python -m tests.zoo.zero3 [NAME ...]` writes benchmarks/results/zoo_zero3.md. Types that it shows to crash are refused
by name (`NOT_UNDER_ZERO3` in openrlhf/models/limits.py); with names, or `--unrefused`, nothing is written, and with the
latter the refusal is left out, to see whether it is still needed.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

from openrlhf.batching import FixedSize, MicroBatchFormat, StepSchedule, StepWindowLoader
from openrlhf.config import DeepspeedConfig, TrainConfig
from openrlhf.engine.optimizers import build_schedule
from openrlhf.models import Actor
from openrlhf.models.limits import NOT_UNDER_ZERO3, check_zero3
from openrlhf.models.loading import load_config
from openrlhf.objectives import SFTObjective
from openrlhf.strategy import DeepspeedStrategy
from openrlhf.trainer.step import WindowStep
from tests.helpers.ranks import RankPool
from tests.zoo import reference
from tests.zoo.__main__ import RESULTS
from tests.zoo.cells import Finding, Subject, _compare, _judged
from tests.zoo.reference import Curve
from tests.zoo.shrink import CannotBeBuilt, in_short, small_model_named


def on_a_rank(subject: Subject, is_refused: bool) -> Finding:
    def cell() -> Finding:
        if is_refused:
            check_zero3(load_config(str(subject.folder)), 3)
        return _compare(_first_step(subject), Curve(*(part[:1] for part in vars(subject.expected).values())))

    return _judged(cell)


def _first_step(subject: Subject) -> Curve:
    strategy = DeepspeedStrategy(
        max_norm=0.0,
        train=TrainConfig(batch_size=reference.BATCH_SIZE, micro_batch_size=1),
        ds=DeepspeedConfig(zero_stage=3, param_dtype="fp32"),
    )
    strategy.setup_distributed()
    actor = Actor(str(subject.folder), param_dtype="fp32", ds_config=strategy.get_ds_train_config()).train()
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    rows = [(ids, torch.ones_like(ids), torch.cat([one[1:], one.new_zeros(1)]).long()) for ids, one in reference.rows()]
    loader = StepWindowLoader(
        rows,
        StepSchedule(reference.NUM_ROWS, reference.BATCH_SIZE, seed=0, shuffle=False),
        FixedSize(1),
        MicroBatchFormat(),
        strategy.groups,
    )
    try:
        result = WindowStep(actor, actor.trained, strategy, SFTObjective()).run(next(loader.windows()), 0)
    finally:
        actor.engine.destroy()
    return Curve([result.loss], [result.outcome.grad_norm], [])


def look_at(name: str, ranks: RankPool, is_refused: bool = True) -> Finding:
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        try:
            return ranks.run(on_a_rank, Subject.saved(small_model_named(name), Path(folder) / "model"), is_refused)[0]
        except CannotBeBuilt as error:
            return Finding("none", str(error))
        except Exception as error:  # a rank that ends by a signal; the pool starts it again
            return Finding("crash", in_short(error))


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    names = [name for name in arguments if not name.startswith("--")]
    of_zoo = list(json.loads((RESULTS / "zoo.json").read_text())["findings"])
    found = {}
    with RankPool(2) as ranks:
        for name in names or (NOT_UNDER_ZERO3 if "--unrefused" in arguments else of_zoo):
            found[name] = look_at(name, ranks, "--unrefused" not in arguments)
            print(f"{name}: {found[name].verdict} {found[name].text}", flush=True)
    if not arguments:
        (RESULTS / "zoo_zero3.md").write_text(_in_words(found))
    return 1 if any(one.verdict in ("wrong", "crash") for one in found.values()) else 0


def _in_words(found: dict[str, Finding]) -> str:
    verdicts = [one.verdict for one in found.values()]
    sums = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("ok", "refused", "wrong", "crash"))
    rows = [
        f"| {name} | {one.verdict} | {re.sub(r'/[^ ]*/zoo-[^ /]*/model', 'FOLDER', one.text)} |"
        for name, one in found.items()
        if one.verdict != "ok"
    ]
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "deepspeed"))
    head = ["# The zoo under ZeRO-3", "", f"Made by `python -m tests.zoo.zero3` with {versions}: {sums}.", ""]
    return "\n".join([*head, "| type | verdict | said |", "| --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
