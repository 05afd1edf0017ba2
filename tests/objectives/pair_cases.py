"""An objective over pairs, trained on real ranks: a unit of two sequences in any layout; runs inside a rank."""

from __future__ import annotations

import torch

from openrlhf.batching import MicroBatch, TokenSequence, Unit
from openrlhf.batching.micro_batch import LEAST_SHARED_TOKENS
from openrlhf.objectives import Objective, Scorer, Share

BETA = 0.1
NUM_PAIRS, BATCH_SIZE, NUM_STEPS = 10, 4, 5
LAYOUTS = [  # (fixture of the ranks, how the pairs are laid out)
    ("one_rank", dict(ring=1, zero_stage=0, packed=False)),
    ("one_rank", dict(ring=1, zero_stage=2, packed=True, max_tokens=120)),
    ("two_ranks", dict(ring=1, zero_stage=3, packed=True)),
    ("two_ranks", dict(ring=1, zero_stage=1, packed=False, max_tokens=130)),
    ("two_ranks", dict(ring=2, zero_stage=2, packed=True)),
    ("two_ranks", dict(ring=2, zero_stage=3, packed=True, max_tokens=60)),
]


class PairObjective(Objective):
    """The mean over pairs of -log sigmoid(beta * (log p(better) - log p(worse)) - margin)."""

    metrics = ("loss", "accuracy")

    def weight(self, batch: MicroBatch) -> float:
        return batch.unit_weight_sum

    def loss(self, scorer: Scorer, batch: MicroBatch, divisor: float) -> Share:
        better, worse = scorer.sequence_sums(scorer.log_probs()).view(-1, 2).unbind(1)
        margin = batch.unit_numbers.get("margin", better.new_zeros(0))
        losses = -torch.nn.functional.logsigmoid(BETA * (better - worse) - margin) * scorer.speaks_for_sequences
        count = len(better) * scorer.speaks_for_sequences
        accuracy = (better > worse).sum() * scorer.speaks_for_sequences
        return Share(
            losses.sum() / divisor, {"loss": (losses.detach().double().sum(), count), "accuracy": (accuracy, count)}
        )


class Pairs:
    """Pairs in memory; every token behind the first three is a target."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(2)
        lengths = torch.randint(5, 30, (NUM_PAIRS, 2), generator=draw).tolist()
        self.ids = [[torch.randint(3, 500, (length,), generator=draw) for length in pair] for pair in lengths]
        self.margins = torch.rand(NUM_PAIRS, generator=draw).tolist()

    def __len__(self) -> int:
        return NUM_PAIRS

    def __getitem__(self, row: int):
        raise AssertionError("a data set of several sequences a row is read by unit(row)")

    def unit_lengths(self, row: int) -> tuple[int, ...]:
        return tuple(len(ids) for ids in self.ids[row])

    def unit(self, row: int) -> Unit:
        sequences = tuple(TokenSequence(ids, (torch.arange(len(ids)) >= 2).long()) for ids in self.ids[row])
        return Unit(sequences, f"pair {row}", numbers={"margin": self.margins[row]})


def log_prob_of_answer(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Of one answer by plain transformers: the sum over its targets, all tokens behind the first three."""
    log_probs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return torch.stack([log_probs[t, ids[t + 1]] for t in range(2, len(ids) - 1)]).sum()


class LongPrompts(Pairs):
    """Pairs that begin alike: one by a token too few to be shared, the last one up to the end of an answer."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        for row, pair in enumerate(self.ids):
            prompt = torch.randint(3, 500, (LEAST_SHARED_TOKENS - 1 + 3 * row,), generator=draw)
            self.ids[row] = [torch.cat([prompt, ids]) for ids in pair]
        self.ids[-1][1] = self.ids[-1][0][:-3]


def curve(
    ring: int,
    zero_stage: int,
    packed: bool,
    max_tokens: int | None = None,
    shares_prompts: bool | None = None,
    kind: str = "llama",
    recomputes: bool = False,
) -> list[tuple[float, float, float]]:
    """(loss, accuracy, gradient norm) of each step.

    Args: shares_prompts: None: pairs without prompts of a length worth sharing.
    """
    from openrlhf.config import AdamConfig, DeepspeedConfig, TrainConfig
    from openrlhf.engine.optimizers import build_schedule
    from openrlhf.models import Actor
    from openrlhf.strategy import DeepspeedStrategy
    from openrlhf.trainer.step import WindowStep
    from tests.helpers.tiny_models import tiny_model

    strategy = DeepspeedStrategy(
        train=TrainConfig(batch_size=BATCH_SIZE, micro_batch_size=1, max_tokens_per_micro_batch=max_tokens),
        ds=DeepspeedConfig(zero_stage=zero_stage, param_dtype="fp32", packing_samples=packed, ring_attn_size=ring),
        adam=AdamConfig(lr=1e-3, eps=1e-6),
    )
    strategy.setup_distributed()
    attention = "ring" if shares_prompts else "auto"
    actor = Actor(tiny_model(kind), attention, packing_samples=packed, ring_attn_size=ring)
    if recomputes:
        actor.gradient_checkpointing_enable()
    optimizer = strategy.create_optimizer(actor)
    strategy.prepare((actor, optimizer, build_schedule(optimizer, "constant")))
    actor.train()
    step = WindowStep(actor, actor.trained, strategy, PairObjective())
    data = Pairs() if shares_prompts is None else LongPrompts()
    loader = strategy.setup_dataloader(data, 1, shuffle=False, shares_prompts=bool(shares_prompts))
    windows = loader.windows(max_epochs=2)
    results = [step.run(window, number) for number, window in zip(range(NUM_STEPS), windows, strict=False)]
    actor.engine.destroy()
    return [(r.loss, r.metrics["accuracy"], r.outcome.grad_norm) for r in results]
