"""The settings of `rejection_sampling`: those of its stages and of the training, save for what an iteration sets."""

# mypy: disable-error-code="misc"
# (a constant stands in the place of a field, which dataclasses allow)

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from openrlhf.config.checks import COMMON_CHECKS, COMMON_NOTICES, PACKAGE_CHECKS
from openrlhf.config.disk import HIDDEN, is_address, model_folder, parts_of, program, without_secrets
from openrlhf.config.generate_settings import SamplingConfig, engine
from openrlhf.config.hub_settings import hub
from openrlhf.config.kinds import Answers, Number, PositiveCount, PositiveNumber
from openrlhf.config.outputs import writable
from openrlhf.config.schema import Command, free, must_match, settings, values_of
from openrlhf.config.select_settings import (
    ScoreConfig,
    ScoreSettings,
    SelectConfig,
    SelectSettings,
    score_problems,
    select_problems,
)
from openrlhf.config.settings import DataConfig, EvalConfig, TrainConfig, TrainingConfig
from openrlhf.config.synonyms import COMMON_SYNONYMS

SET_BY_THE_ITERATION = (
    "generate.output", "score.input", "score.output", "select.input", "select.output", "select.like",
    "select.iteration", "ckpt.output_dir", "ckpt.path", "ckpt.load_enable",
    "ckpt.export_best",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IterationDataConfig(DataConfig):
    """The prompts that are answered, and how the selected answers become tokens."""

    dataset_probs: ClassVar[None] = None
    format: ClassVar[str] = "auto"
    output_key: ClassVar[None] = None
    multiturn: ClassVar[bool] = False
    targets: ClassVar[None] = None

    label_key: str = must_match("label", "column that goes on as label, for rewards that compare; it may be missing")
    control_tokens: Literal["text", "refuse", "keep"] = free(
        "keep", "control tokens such as <|im_start|> in a prompt: kept, as they are asked; read as text, or refused"
    )


@dataclasses.dataclass(frozen=True)
class IterationTrainConfig(TrainConfig):
    """How many samples make a step, and for how long."""

    early_stop_patience: ClassVar[None] = None


@dataclasses.dataclass(frozen=True)
class HeldOutConfig(EvalConfig):
    """Prompts that are never trained on: answered and scored before the first and after each iteration."""

    steps: ClassVar[int] = -1
    every_epoch: ClassVar[bool] = False
    prompts: ClassVar[None] = None
    prompts_steps: ClassVar[int] = -1
    prompts_reward: ClassVar[None] = None
    prompts_max_new_tokens: ClassVar[int] = 128

    dataset: str | None = free(None, "like data.dataset; without it nothing is measured")
    max_samples: PositiveCount | None = free(None, "use at most that many of its rows")
    n: Answers = free(1, "answers to each of its prompts")
    temperature: Number = free(0.0, "of these answers; 0: the likeliest token each time")


@dataclasses.dataclass(frozen=True)
class IteratedSamplingConfig(SamplingConfig):
    """How the model is asked, by which engine, and how a server gets the trained weights."""

    start_command: str | None = free(
        None, "openai: starts the server of a model, which stands at {model}; it is ended before the training"
    )
    start_timeout_seconds: PositiveNumber = free(600.0, "openai: longest wait for a server that was started")
    reload_url: str | None = free(
        None, 'openai: address to which {"model_path": folder} is sent, so that a server loads the weights; by commas'
    )


@dataclasses.dataclass(frozen=True)
class IterateConfig:
    """The iterations."""

    iterations: PositiveCount = free(1, "times that a model answers, and is trained on the best of its answers")
    output: str = free("./rejection_sampling", "folder of all iterations; a run that was cut off goes on there")
    start_from: Literal["last", "base"] = free("last", "model that each training starts from")
    control: bool = free(False, "train a second model in each iteration, on as many answers drawn at random")
    launcher: str = free("python -m", "starts the training, as in: deepspeed --num_accelerators 2 --module")


def iteration_problems(config: RejectionConfig, world_size: int) -> Iterator[str]:
    if world_size > 1:
        yield "rejection_sampling is one process, and starts the ranks of its training itself: see --iterate.launcher."
    given = values_of(config)
    for name in SET_BY_THE_ITERATION:
        if given[name] != settings(type(config))[name].default:
            yield f"--{name} {given[name]} is set by each iteration, below --iterate.output: leave it out."
    yield from writable("--iterate.output", config.iterate.output)
    yield from program("--iterate.launcher", config.iterate.launcher, "python -m")
    if config.ds.lora.is_used and (config.iterate.iterations > 1 or config.eval.dataset):
        yield (
            "--ds.lora.rank: what a training leaves is an adapter, and the next stage opens whole models. Train one "
            "iteration without --eval.dataset, and merge it by openrlhf.cli.lora_combiner; or train without adapters."
        )
    if config.select.policy == "pairs":
        yield "--select.policy pairs is for train_dpo, and an iteration trains by train_sft: choose another."
    if config.iterate.control and config.select.policy == "random":
        yield "--iterate.control is the random control of a selection, which --select.policy random is itself."


def stage_problems(config: RejectionConfig, world_size: int) -> Iterator[str]:
    generate: Any = config
    yield from engine(generate, world_size)
    score = dataclasses.replace(config.score, input="generations")
    yield from score_problems(ScoreConfig(score), world_size)
    yield from select_problems(SelectConfig(dataclasses.replace(config.select, input="scores")), world_size)


def server_problems(config: RejectionConfig, world_size: int) -> Iterator[str]:
    generate = config.generate
    ways = [name for name in ("start_command", "reload_url") if getattr(generate, name) is not None]
    if generate.engine != "openai":
        yield from (f"--generate.{name} is of a server: add --generate.engine openai." for name in ways)
    elif len(ways) == 2:
        yield "--generate.start_command and --generate.reload_url are two ways: leave one of them out."
    elif not ways and (config.iterate.iterations > 1 or config.eval.dataset):
        yield (
            "--generate.engine openai: the trained weights must reach the server. Give --generate.start_command, as in "
            "'vllm serve {model} --port 8000', or --generate.reload_url."
        )
    for url in parts_of(generate.reload_url):
        if not is_address(url):
            yield f"--generate.reload_url {without_secrets(url)!r} is no address of a server, as in http://localhost:8000/reload."
    if generate.start_command is not None:
        yield from program("--generate.start_command", generate.start_command, "vllm serve {model}")
        if "{model}" not in generate.start_command:
            said = without_secrets(generate.start_command)
            yield f"--generate.start_command {said!r} must hold the place of the model, {{model}}."
        if HIDDEN in generate.start_command:
            yield "--generate.start_command is from a file that does not hold its key: give the command once more."


def template_of_the_server(config: RejectionConfig) -> Iterator[str]:
    generate = config.generate
    is_asked_by_another = generate.engine == "openai" and "--chat-template" not in (generate.start_command or "")
    if config.data.tokenizer_chat_template is not None and is_asked_by_another:
        yield (
            "--data.tokenizer_chat_template shapes the training, and not what the server makes of its prompts: give it "
            "to the server too, as in --generate.start_command 'vllm serve {model} --chat-template FILE'."
        )


@dataclasses.dataclass(frozen=True)
class RejectionConfig(TrainingConfig):
    """Optimizer, schedule and clipping of each training."""

    command: ClassVar[Command] = Command(
        "Rejection sampling: a model answers, is trained on the best of its answers, and answers again.",
        "python -m openrlhf.cli.rejection_sampling",
        COMMON_SYNONYMS,
        (*COMMON_CHECKS, *PACKAGE_CHECKS, model_folder, hub, iteration_problems, stage_problems, server_problems),
        (*COMMON_NOTICES, template_of_the_server),
        SET_BY_THE_ITERATION,
    )
    iterate: IterateConfig = IterateConfig()
    data: IterationDataConfig = IterationDataConfig()
    train: IterationTrainConfig = IterationTrainConfig()
    generate: IteratedSamplingConfig = IteratedSamplingConfig()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings = SelectSettings()
    eval: HeldOutConfig = HeldOutConfig()
