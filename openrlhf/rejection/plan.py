"""The steps of all iterations: where each leaves its files, which settings it depends on, and which others it follows.

start/evaluation           the held-out prompts, answered by the model that the first iteration starts from
iteration_<k>/
  manifest.json            settings, weights and inputs of each step
  generations, scores      as `generate` and `score` leave them
  selected/                selected.jsonl, and control.jsonl for the random control
  model, control_model     as train_sft exports them; checkpoints, control_checkpoints
  evaluation, control_evaluation
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from openrlhf.atomic_file import replace_file
from openrlhf.config import (
    DataConfig,
    GenerateConfig,
    PromptConfig,
    RejectionConfig,
    ScoreConfig,
    SelectConfig,
    SFTConfig,
)
from openrlhf.config.disk import local_path, parts_of
from openrlhf.config.generate_settings import GeneratorConfig, SamplingConfig
from openrlhf.config.hub_settings import HubConfig
from openrlhf.config.iterate_settings import SET_BY_THE_ITERATION
from openrlhf.config.schema import settings, values_of
from openrlhf.config.settings import EvalConfig, TrainConfig
from openrlhf.errors import UserError
from openrlhf.rejection.prompts import template_file
from openrlhf.rejection.records import MANIFEST, content_of, settings_of
from openrlhf.rejection.rewards.server_reward import address_content

_NAMES_OF_EVALUATION = {
    "generate.n": "eval.n",
    "generate.temperature": "eval.temperature",
    "data.dataset": "eval.dataset",
    "data.dataset_split": "eval.split",
    "data.max_samples": "eval.max_samples",
}
_READ = {"score.input": "the answers", "select.input": "the scores", "select.like": "the selection"}
_GIVE_ANOTHER = re.compile(r"([.:] )[Gg]ive another(?: folder| name)?(?:, or the settings of that run)?\.$")
_MORE = "generate.n"  # a higher one leaves the answers that are there
# Settings of a training that a resume may change freely, and that change the model nevertheless.
_ALSO_TRAINED_WITH = (
    *("train.max_epochs", "train.max_steps", "data.max_len", "data.overlong", "data.eos_token", "data.control_tokens"),
    *("ds.lora.target_modules", "ds.lora.adapter_name_or_path"),
)


_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of an iteration.

    Attributes:
        iteration: 0 is what comes before the first.
        path: what it leaves, a folder or a file.
        settings: those that its result depends on.
        after: the steps (iteration, name) whose results it reads.
    """

    iteration: int
    name: str
    path: Path
    settings: Mapping[str, Any]
    after: tuple[tuple[int, str], ...]

    @property
    def key(self) -> tuple[int, str]:
        return self.iteration, self.name


class Plan:
    """Configurations and folders of all steps."""

    def __init__(self, config: RejectionConfig):
        self.config = config
        self.output = local_path(config.iterate.output)

    def folder(self, iteration: int) -> Path:
        return self.output / (f"iteration_{iteration}" if iteration else "start")

    def model(self, iteration: int, of: str = "") -> str:
        """The model that an iteration leaves; `of` is '' or 'control_'. Before the first it is the base."""
        base = self.config.model.model_name_or_path
        return str(self.folder(iteration) / f"{of}model") if iteration else base

    def generate(self, iteration: int) -> GenerateConfig:
        config, output = self.config, str(self.folder(iteration) / "generations")
        model = GeneratorConfig(self.model(iteration - 1), config.model.trust_remote_code)
        seed = config.generate.seed + iteration - 1  # a prompt is not to get the draws that it had
        sampling = _narrowed(SamplingConfig, config.generate, output=output, seed=seed)
        return GenerateConfig(model, _narrowed(PromptConfig, config.data), sampling)

    def held_out(self, iteration: int, of: str = "") -> GenerateConfig:
        """The held-out prompts, answered by the model that an iteration leaves."""
        plain, held_out = self.generate(1), self.config.eval
        output = str(self.folder(iteration) / f"{of}evaluation" / "generations")
        asked = dict(dataset=held_out.dataset, dataset_split=held_out.split, max_samples=held_out.max_samples)
        return GenerateConfig(
            dataclasses.replace(plain.model, model_name_or_path=self.model(iteration, of)),
            _narrowed(PromptConfig, plain.data, **asked),
            dataclasses.replace(plain.generate, output=output, n=held_out.n, temperature=held_out.temperature),
        )

    def score(self, generations: GenerateConfig) -> ScoreConfig:
        """The scores lie beside the generations."""
        answers = Path(generations.generate.output)
        return ScoreConfig(
            dataclasses.replace(self.config.score, input=str(answers), output=str(answers.with_name("scores")))
        )

    def select(self, iteration: int) -> SelectConfig:
        folder = self.folder(iteration)
        return SelectConfig(
            dataclasses.replace(
                self.config.select,
                input=str(folder / "scores"),
                output=str(folder / "selected" / "selected.jsonl"),
                iteration=iteration,
                seed=self.config.select.seed + iteration - 1,
            )
        )

    def train(self, iteration: int, rows: Path, of: str = "") -> SFTConfig:
        config, folder = self.config, self.folder(iteration)
        base = iteration - 1 if config.iterate.start_from == "last" else 0
        read = dict(dataset=str(rows), dataset_split="train", max_samples=None, input_key=None, input_template=None)
        left = dict(output_dir=self.model(iteration, of), path=str(folder / f"{of}checkpoints"), load_enable=True)
        return _narrowed(
            SFTConfig,
            config,
            model=dataclasses.replace(config.model, model_name_or_path=self.model(base)),
            data=_narrowed(DataConfig, config.data, **read),
            train=_narrowed(TrainConfig, config.train),
            eval=EvalConfig(),
            ckpt=_narrowed(type(config.ckpt), config.ckpt, **left),
            hub=HubConfig() if of else config.hub,  # the control is for nobody else
        )

    def steps(self) -> Iterator[Step]:
        """All steps, each behind those that it follows."""
        is_measured, has_control = self.config.eval.dataset is not None, self.config.iterate.control
        if is_measured:
            yield self._evaluation(0, "")
        for k in range(1, self.config.iterate.iterations + 1):
            folder = self.folder(k)
            before = ((k - 1, "train"),) if k > 1 else ()
            generate = self.generate(k)
            yield Step(k, "generate", folder / "generations", self._asked(generate), before)
            yield Step(k, "score", folder / "scores", self._judged_by(generate), ((k, "generate"),))
            yield Step(k, "select", folder / "selected", settings_of(self.select(k)), ((k, "score"),))
            for of in ("", "control_") if has_control else ("",):
                yield Step(k, f"{of}train", folder / f"{of}model", self._trained_with(k), ((k, "select"),))
                if is_measured:
                    yield self._evaluation(k, of)

    def _evaluation(self, iteration: int, of: str) -> Step:
        held_out = self.held_out(iteration, of)
        asked = {_NAMES_OF_EVALUATION.get(name, name): value for name, value in self._asked(held_out).items()}
        depends = {**asked, **self._judged_by(held_out)}
        after = ((iteration, f"{of}train"),) if iteration else ()
        return Step(iteration, f"{of}evaluate", self.folder(iteration) / f"{of}evaluation", depends, after)

    def _asked(self, config: GenerateConfig) -> dict[str, Any]:
        return {**settings_of(config), "data.dataset": config.data.dataset, **template_file(config.data)}

    def _judged_by(self, generations: GenerateConfig) -> dict[str, Any]:
        """The settings of the scores, and the hash of each file of rewards, and of each address that has a query."""
        names = parts_of(self.config.score.reward)
        files = [Path(name.rpartition(":")[0]) for name in names]
        contents = {str(file): content_of(file) for file in files if file.is_file()}
        for number, name in enumerate(names, 1):
            if (content := address_content(name)) != name:
                contents[f"address {number}"] = content
        return {**settings_of(self.score(generations)), "score.reward files": contents}

    def _trained_with(self, iteration: int) -> dict[str, Any]:
        config = self.train(iteration, Path())
        table = settings(SFTConfig)
        compared = {name: value for name, value in values_of(config).items() if table[name].resume != "free"}
        compared |= {name: values_of(config)[name] for name in _ALSO_TRAINED_WITH}
        return {**compared, "iterate.start_from": self.config.iterate.start_from}


def _narrowed(kind: type[_T], group: Any, **changes: Any) -> _T:
    """A group of the recipe as the one of a stage, which has its settings, or some of them."""
    return kind(**{**{field.name: getattr(group, field.name) for field in dataclasses.fields(kind)}, **changes})  # type: ignore[arg-type]


class IterationManifest:
    """`manifest.json` of an iteration: by step its settings, weights and inputs, and what it made, by hash."""

    def __init__(self, folder: Path):
        """Raises UserError where the file is damaged."""
        self._path = folder / MANIFEST
        try:
            self._steps: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))["steps"]
        except FileNotFoundError:
            self._steps = {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._path} is no manifest that can be read ({error}): remove the folder.") from error

    def of(self, step: str) -> dict[str, Any]:
        """What is noted of a step; empty where nothing is."""
        return dict(self._steps.get(step, {}))

    def note(self, step: str, **facts: Any) -> None:
        """Adds facts of a step."""
        self._steps[step] = {**self.of(step), **json.loads(json.dumps(facts, default=str))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps({"steps": self._steps}, indent=1) + "\n")


@contextmanager
def told_as_of_the_recipe(is_evaluation: bool) -> Iterator[None]:
    """A UserError of a stage names settings that a recipe has, and no folder that can be given another way."""
    try:
        yield
    except UserError as error:
        names = _NAMES_OF_EVALUATION if is_evaluation else {}
        raise UserError(*(_of_the_recipe(problem, names) for problem in error.problems)) from error


def _of_the_recipe(problem: str, names: Mapping[str, str]) -> str:
    for name, recipes in names.items():
        problem = re.sub(rf"(?<![\w.]){re.escape(name)}(?!\w|\.\w)", recipes, problem)
    for name, words in _READ.items():
        problem = problem.replace(f"the content of --{name}", f"the content of {words}")
    given = "|".join(map(re.escape, SET_BY_THE_ITERATION))
    problem = re.sub(rf"another --(?:{given})\b", "another --iterate.output", problem)
    problem = re.sub(rf"--(?:{given}) ", "", problem)
    problem = problem.replace("or give another folder.", "or give another --iterate.output.")
    remedy = "{}emove that and start again, or give another --iterate.output."
    return _GIVE_ANOTHER.sub(lambda found: found[1] + remedy.format("R" if "." in found[1] else "r"), problem)


def check_nothing_is_stale(plan: Plan) -> None:
    """Raises UserError that names each changed setting, and every step whose result does not go with it any more."""
    stale: dict[tuple[int, str], Path] = {}
    grown: set[tuple[int, str]] = set()  # answers that stay, and get others beside them
    changes: dict[str, None] = {}
    manifests: dict[int, IterationManifest] = {}
    for step in plan.steps():
        manifest = manifests.setdefault(step.iteration, IterationManifest(plan.folder(step.iteration)))
        noted = manifest.of(step.name).get("settings")
        if noted is None or not step.path.exists():
            continue
        now = json.loads(json.dumps(dict(step.settings), default=str))
        changed = [name for name in {**noted, **now} if noted.get(name) != now.get(name)]
        changes |= {
            f"--{name} was {json.dumps(noted.get(name))}, is {json.dumps(now.get(name))}": None for name in changed
        }
        is_stale = any(one in stale or one in grown for one in step.after)
        if step.name == "generate" and changed == [_MORE] and now[_MORE] > noted[_MORE] and not is_stale:
            grown.add(step.key)
        elif changed or is_stale:
            stale[step.key] = step.path
    if stale:
        paths = " ".join(str(path.relative_to(plan.output)) for path in stale.values())
        raise UserError(
            f"{plan.output} was made with other settings ({'; '.join(changes)}), so these of its steps are stale: "
            f"{paths}. Remove them and start again, or give another --iterate.output, or the settings of that run."
        )
