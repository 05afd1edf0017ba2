"""The settings of `generate`. The rows of one output agree in those that are `must_match`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

from openrlhf.config.checks import input_template_problems
from openrlhf.config.disk import data_source, folder_of_model, is_address, parts_of, split_names, without_secrets
from openrlhf.config.kinds import Answers, Count, Fraction, Number, Place, PositiveCount, PositiveNumber, WholeNumber
from openrlhf.config.outputs import writable
from openrlhf.config.schema import Command, Root, free, must_match
from openrlhf.config.synonyms import Synonyms

SYNONYMS: Synonyms = {"pretrain": "model.model_name_or_path", "data.split": "data.dataset_split"}


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The model that answers."""

    model_name_or_path: Place = free(
        "", "folder of a Hugging Face model, or its name on the hub or the server (needed)"
    )
    trust_remote_code: bool = free(False, "run Python code that comes with the model or tokenizer")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The prompts."""

    dataset: str = free("", "files, folders or hub names, by commas; path@subfolder for a subfolder (needed)")
    dataset_split: str = must_match("train", "split of a data set that has several")
    max_samples: PositiveCount | None = must_match(None, "use at most that many rows")
    input_key: str | None = must_match(
        None, "column of the prompt, text or messages; none means prompt, messages, conversations, instruction or input"
    )
    label_key: str = must_match("label", "column that goes on as label, for rewards that compare; it may be missing")
    input_template: str | None = must_match(None, "text around a prompt of text, which stands at {}")
    apply_chat_template: bool = must_match(False, "a prompt of text is the message of a user")
    tokenizer_chat_template: str | None = must_match(
        None, "chat template in place of the tokenizer's; chatml is built in"
    )
    max_bad_rows: Count = free(0, "go on with up to that many rows left out because they cannot be read")


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the model is asked, by which engine, and where its answers go."""

    engine: Literal["transformers", "openai", "vllm"] = free(
        "transformers", "in process; any OpenAI-compatible server; vLLM in process, where it is installed"
    )
    url: str | None = free(None, "openai: address of the server, as in http://localhost:8000/v1; several by commas")
    served_name: str | None = free(None, "openai: the server's name of the model; none means model.model_name_or_path")
    output: str = free("./generations", "folder of the answers; a run that was cut off goes on there")
    n: Answers = must_match(1, "answers to each prompt")
    temperature: Number = must_match(1.0, "0: the likeliest token each time")
    top_p: Fraction = must_match(1.0, "sample from the likeliest tokens with that share of the probability")
    max_new_tokens: PositiveCount = must_match(1024, "longest answer, in tokens")
    max_prompt_len: PositiveCount | None = must_match(
        None, "in process: leave prompts of more tokens out; none means as many as the model can take"
    )
    seed: WholeNumber = must_match(42, "with prompt and number it decides each answer's random numbers")
    concurrency: PositiveCount = free(32, "answers that are computed at once, by each process")
    param_dtype: Literal["auto", "bf16", "fp16", "fp32"] = must_match(
        "auto", "in process: type of the weights; auto: the one they are saved in"
    )
    timeout_seconds: PositiveNumber = free(600.0, "openai: longest wait for a whole answer")
    runner: Literal["local", "ray"] = free(
        "local", "this process (with torchrun its ranks), or workers of a Ray cluster with a shared disk"
    )
    max_retries: Count = free(8, "openai: tries after a failed one, each after a longer wait")


def needed(config: GenerateConfig, world_size: int) -> Iterator[str]:
    name, data = config.model.model_name_or_path, config.data
    if not name:
        yield "--model.model_name_or_path is missing: give the folder of a model, or its name on the hub or the server."
    elif config.generate.engine != "openai":
        yield from folder_of_model("--model.model_name_or_path", name)
    if not data.dataset:
        yield "--data.dataset is missing: give a file, a folder or the name of a data set on the hub."
    for source in split_names(data.dataset):
        yield from data_source("--data.dataset", source)
    if data.input_template is not None:
        yield from input_template_problems(data.input_template)
    if data.input_template is not None and data.apply_chat_template:
        yield "--data.input_template and --data.apply_chat_template both stand around a prompt: leave one of them out."
    yield from writable("--generate.output", config.generate.output)


def engine(config: GenerateConfig, world_size: int) -> Iterator[str]:
    generate = config.generate
    is_server = generate.engine == "openai"
    if is_server and not parts_of(generate.url):
        yield "--generate.engine openai needs --generate.url, as in http://localhost:8000/v1."
    if not is_server and generate.url:
        url = without_secrets(generate.url)
        yield f"--generate.url {url} is of a server: add --generate.engine openai, or leave it out."
    if is_server and generate.max_prompt_len is not None:
        yield (
            f"--generate.max_prompt_len {generate.max_prompt_len} is not read by --generate.engine openai: leave it "
            "out. Prompts that the server refuses as too long are left out and counted."
        )
    for url in parts_of(generate.url) if is_server else ():
        if not is_address(url):
            yield f"--generate.url {without_secrets(url)!r} is no address of a server, as in http://localhost:8000/v1."
        elif "?" in url or "#" in url:
            yield f"--generate.url {without_secrets(url)} has a query behind it (?…), which is not sent: leave it out."
    if generate.runner == "ray" and world_size > 1:
        yield "--generate.runner ray shares the prompts itself: start one process, without torchrun."
    if generate.top_p == 0:
        yield "--generate.top_p 0 leaves no token: give a number above 0, at most 1."


def template(config: GenerateConfig, world_size: int) -> Iterator[str]:
    if config.generate.engine == "openai" and config.data.tokenizer_chat_template is not None:
        yield (
            "--data.tokenizer_chat_template is not read by --generate.engine openai, whose server has a template of "
            "its own: leave it out, and give it to the server, as in vllm serve MODEL --chat-template FILE."
        )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(Root):
    """Answers of a model to prompts."""

    command: ClassVar[Command] = Command(
        "Answers of a model to prompts, several to each: the first stage of rejection sampling.",
        "python -m openrlhf.cli.generate",
        SYNONYMS,
        (needed, engine, template),
    )
    model: GeneratorConfig = GeneratorConfig()
    data: PromptConfig = PromptConfig()
    generate: SamplingConfig = SamplingConfig()
