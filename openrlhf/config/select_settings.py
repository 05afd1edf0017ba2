"""The settings of `score` and `select`. Rows of one output agree in those that are `must_match`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from openrlhf.config.disk import begins_as_address, is_address, local_path, parts_of, without_secrets
from openrlhf.config.kinds import AnyNumber, Count, Fraction, PositiveCount, PositiveNumber, WholeNumber
from openrlhf.config.outputs import writable
from openrlhf.config.schema import Command, Root, free, must_match


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """What judges the answers, and how long it may take."""

    input: str = free("", "folder of the answers, or a file of them, a JSON object a line (needed)")
    output: str = free("./scores", "folder of the scores; a run that was cut off goes on there")
    reward: str = must_match(
        "",
        "file.py:function (of TRL's or OpenRLHF's signature), math (math-verify), exact (the label's text or number), "
        "verifiers:ID (a task set), the folder of a reward model, http://…/get_reward; several by commas (needed)",
    )
    weights: str | None = must_match(None, "a number for each reward, by commas; the reward is the weighted sum")
    timeout_seconds: PositiveNumber = free(30.0, "longest time of one call of a reward")
    batch_size: PositiveCount | None = free(
        None, "answers that a call is given; none means 1 for a function and a server beside it, 64 for a server"
    )
    workers: PositiveCount | None = free(None, "processes that run functions; none means one a processor")
    runner: Literal["local", "ray"] = free("local", "this process, or workers of a Ray cluster with a shared disk")
    max_tokens_per_micro_batch: PositiveCount = free(16384, "tokens that a reward model computes at once")
    max_len: PositiveCount | None = must_match(None, "longest text of a reward model, in tokens; none means its own")
    pass_reward: AnyNumber = free(1.0, "an answer with that reward or more passes: what pass@k counts")


@dataclasses.dataclass(frozen=True)
class SelectSettings:
    """Which answers are trained on."""

    input: str = free("", "folder of the scores, or a file of them, a JSON object a line (needed)")
    output: str = free("./selected.jsonl", "file of the selected rows; report.html and stats.json lie beside it")
    policy: Literal["best_of_n", "top_k", "threshold", "pairs", "random"] = must_match(
        "best_of_n",
        "the best answer to each prompt; its k best; all of min_reward or more; the best against the worst, for "
        "train_dpo; k at random, or as many as another selection has (like)",
    )
    k: PositiveCount | None = must_match(
        None, "answers or pairs a prompt of top_k, pairs and random; none means max_per_prompt, else 1"
    )
    min_reward: AnyNumber | None = must_match(None, "lowest reward of an answer, or of the better one of a pair")
    max_per_prompt: PositiveCount | None = must_match(None, "at most that many answers or pairs of a prompt")
    dedupe: Literal["none", "text", "equations"] = must_match(
        "none", "of a prompt's answers with one text, or with one sequence of equations, the best alone"
    )
    pass_rate_min: Fraction = must_match(0.0, "leave prompts out of whose answers a smaller share passes")
    pass_rate_max: Fraction = must_match(1.0, "leave prompts out of whose answers a larger share passes")
    pass_reward: AnyNumber | None = must_match(
        None, "an answer with that reward or more passes; none means min_reward, else 1"
    )
    keep_truncated: bool = must_match(False, "select from answers too that were cut at the longest length")
    seed: WholeNumber = must_match(42, "decides the draw of random")
    like: str | None = free(None, "file of a selection: random draws as many answers as that has")
    match_lengths: bool = must_match(False, "with like: draw as many short and long answers as that has")
    iteration: Count = must_match(0, "number of the iteration, for the provenance of the rows")


def score_problems(config: ScoreConfig, world_size: int) -> Iterator[str]:
    score = config.score
    if not score.input:
        yield "--score.input is missing: give the folder that generate has written."
    if not parts_of(score.reward):
        yield (
            "--score.reward is missing: give file.py:function, math, exact, verifiers:ID, the folder of a model or an "
            "address."
        )
    names = parts_of(score.reward)
    for name in names:
        if begins_as_address(name) and not is_address(name):
            said = without_secrets(name)
            yield f"--score.reward {said} is no address of a server, as in http://localhost:5000/get_reward."
    if score.weights is not None:
        words = score.weights.split(",")
        if not all(map(_is_number, words)):
            yield f"--score.weights {score.weights} must be numbers by commas, as in 1,0.5."
        elif len(words) != len(names):
            yield f"--score.weights {score.weights} gives {len(words)} numbers for {len(names)} rewards; give as many."
    yield from writable("--score.output", score.output)


def select_problems(config: SelectConfig, world_size: int) -> Iterator[str]:
    select = config.select
    if not select.input:
        yield "--select.input is missing: give the folder that score has written."
    if select.policy == "threshold" and select.min_reward is None:
        yield "--select.policy threshold needs --select.min_reward: the lowest reward that is selected."
    if select.k is not None and select.policy in ("best_of_n", "threshold"):
        remedy = "use --select.policy top_k" if select.policy == "best_of_n" else "use --select.max_per_prompt"
        yield f"--select.k {select.k} is not read by --select.policy {select.policy}: {remedy}, or leave it out."
    if select.policy == "best_of_n" and (select.max_per_prompt or 1) > 1:
        yield (
            f"--select.max_per_prompt {select.max_per_prompt} changes nothing: --select.policy best_of_n takes one "
            "answer of a prompt. Use --select.policy top_k, or leave it out."
        )
    if select.like is not None and (select.policy != "random" or select.k is not None):
        other = "--select.policy random" if select.policy != "random" else "no --select.k"
        yield f"--select.like {select.like} says how many answers a random draw has: it goes with {other}."
    if select.match_lengths and select.like is None:
        yield "--select.match_lengths needs --select.like: the selection whose lengths are matched."
    if select.pass_rate_min > select.pass_rate_max:
        yield (
            f"--select.pass_rate_min {select.pass_rate_min:g} is above --select.pass_rate_max "
            f"{select.pass_rate_max:g}: no prompt is between them."
        )
    if local_path(select.output).is_dir():
        yield f"--select.output {select.output} is a folder: give the name of a file, as in selected.jsonl."
    yield from writable("--select.output", str(Path(select.output).parent) if select.output.strip() else "")


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class ScoreConfig(Root):
    """Rewards of answers."""

    command: ClassVar[Command] = Command(
        "Rewards of the answers that generate has written: the second stage of rejection sampling.",
        "python -m openrlhf.cli.score",
        checks=(score_problems,),
    )
    score: ScoreSettings = ScoreSettings()


@dataclasses.dataclass(frozen=True)
class SelectConfig(Root):
    """The answers to train on."""

    command: ClassVar[Command] = Command(
        "The answers to train on, picked by their rewards: the third stage of rejection sampling.",
        "python -m openrlhf.cli.select",
        checks=(select_problems,),
    )
    select: SelectSettings = SelectSettings()
