"""All stages in turn, again and again: a model answers, the best of its answers are trained on, it answers again.

    from openrlhf.rejection.iterate import rejection_sampling
    stats = rejection_sampling(config)

Each step is finished or not; one that is finished is not run again, so the same call goes on after a kill.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf.atomic_file import keep_aside, replace_file
from openrlhf.config import GenerateConfig, RejectionConfig, ScoreConfig, write_resolved
from openrlhf.config.written import FILE_NAME
from openrlhf.rejection.child_process import alone_in, start, words_of
from openrlhf.rejection.evaluation import PassRates, compared, gained, measured, pass_rates, told
from openrlhf.rejection.full_disk import keeps_on_a_full_disk
from openrlhf.rejection.generate import generate
from openrlhf.rejection.iterations_report import named, write_iterations
from openrlhf.rejection.model_fingerprint import model_fingerprint
from openrlhf.rejection.plan import IterationManifest, Plan, check_nothing_is_stale, told_as_of_the_recipe
from openrlhf.rejection.prompts import Prompts
from openrlhf.rejection.records import STATS, content_of, is_finished
from openrlhf.rejection.report import REPORT
from openrlhf.rejection.rewards.find import check_rewards
from openrlhf.rejection.score import score
from openrlhf.rejection.select import control_of, select
from openrlhf.rejection.serving import serving
from openrlhf.tracking.more_sinks import KEY_VARIABLE

TRAIN_MODULE = "openrlhf.cli.train_sft"


@keeps_on_a_full_disk
def rejection_sampling(config: RejectionConfig) -> dict[str, Any]:
    """Runs what is not finished of all iterations; returns the content of `stats.json`.

    Raises UserError where a stage does, where steps that are there were made with other settings, and where the disk is
    full. Exits with the training's code where that fails.
    """
    plan = Plan(config)
    plan.output.mkdir(parents=True, exist_ok=True)
    with alone_in(plan.output) as lock:
        check_nothing_is_stale(plan)  # now that no other run makes more
        write_resolved(config, plan.output / FILE_NAME)
        _check_rewards(plan)
        iterations = [_Iteration(plan, number, lock) for number in range(config.iterate.iterations + 1)]
        for iteration in iterations:
            if iteration.number:
                with told_as_of_the_recipe(is_evaluation=False):
                    iteration.learn()
            if config.eval.dataset is not None:
                with told_as_of_the_recipe(is_evaluation=True):
                    iteration.evaluate()
        stats = {"iterations": list(_statistics(iterations))}
        _leave(plan, stats)
    for one in filter(told, stats["iterations"]):
        print(", ".join([named(one["iteration"]), *(f"{name} {value}" for name, value in told(one).items())]))
    for name, value in gained(stats["iterations"]):
        print(f"{name:<36} {value}")
    print(f"report: {plan.output / REPORT}", flush=True)
    return stats


def _check_rewards(plan: Plan) -> None:
    """Before the first answer: what judges is needed after the last, which may be hours later."""
    asked = plan.generate(plan.config.iterate.iterations)
    settings = plan.score(asked).score
    if not is_finished(Path(settings.output)):
        label = next((prompt.columns["label"] for prompt in Prompts(asked.data)), None)
        check_rewards(settings, label, asked.data.dataset)


def _leave(plan: Plan, stats: dict[str, Any]) -> None:
    """Statistics and report; both stay as they are where nothing has changed."""
    left, text = plan.output / STATS, json.dumps(stats, indent=1) + "\n"
    if not ((plan.output / REPORT).exists() and left.exists() and left.read_text() == text):
        write_iterations(plan, stats["iterations"])
        replace_file(left, text)


class _Iteration:
    """One pass through the stages; number 0 is the start, which is evaluated alone."""

    def __init__(self, plan: Plan, number: int, lock: int):
        self.number = number
        self._lock = lock
        self.rates: dict[str, PassRates] = {}
        self.scores: dict[str, Path] = {}
        self.num_rows: dict[str, int] = {}
        self._plan, self._folder = plan, plan.folder(number)
        self._manifest = IterationManifest(self._folder)
        self._settings = {step.name: step.settings for step in plan.steps() if step.iteration == number}
        self._models = ("", "control_") if number and plan.config.iterate.control else ("",)

    def learn(self) -> None:
        """From prompts to a trained model, and to its control."""
        plan, number = self._plan, self.number
        asked = plan.generate(number)
        self._generate("generate", asked)
        self._score("score", asked)
        self._manifest.note("select", settings=self._settings["select"])
        selection = plan.select(number)
        chosen = {"": selection, "control_": control_of(selection, str(self._folder / "selected" / "control.jsonl"))}
        for of in self._models:
            self.num_rows[of] = select(chosen[of])["num_rows"]
        self._manifest.note("select", inputs={"scores": content_of(self._folder / "scores")})
        for of in self._models:
            self._train(of, Path(chosen[of].select.output))

    def evaluate(self) -> None:
        """Answers the held-out prompts by each of its models, and scores the answers."""
        for of in self._models:
            asked = self._plan.held_out(self.number, of)
            self._generate(f"{of}evaluate", asked)
            settings = self._score(f"{of}evaluate", asked).score
            self.scores[of] = Path(settings.output)
            self.rates[of] = pass_rates(self.scores[of], settings.pass_reward)

    def _generate(self, step: str, asked: GenerateConfig) -> None:
        model = asked.model.model_name_or_path
        self._manifest.note(step, settings=self._settings[step])
        output = Path(asked.generate.output)
        if is_finished(output):  # a server is not started for it
            generate(asked)
        else:
            self._say(f"{step}: {model} answers {asked.data.dataset}")
            with serving(self._plan.config.generate, model, self._lock):
                generate(asked)
        self._manifest.note(step, weights=model_fingerprint(model), rows=content_of(output))

    def _score(self, step: str, asked: GenerateConfig) -> ScoreConfig:
        config = self._plan.score(asked)
        self._manifest.note(step, settings=self._settings[step])
        score(config)
        return config

    def _train(self, of: str, rows: Path) -> None:
        config = self._plan.train(self.number, rows, of)
        step, model = f"{of}train", config.ckpt.output_dir
        base = model_fingerprint(config.model.model_name_or_path)
        inputs = {"base": base, "rows": content_of(rows)}
        noted = self._manifest.of(step)
        if noted.get("model") == model_fingerprint(model) and noted.get("inputs") == inputs:
            return
        self._say(f"{step}: {rows} → {model}")
        begun = {"settings": _as_noted(self._settings[step]), "inputs": inputs}
        if begun != {name: noted.get(name) for name in begun} and Path(config.ckpt.path).exists():
            self._say(f"{step}: {config.ckpt.path} is of a training with other settings or rows, and goes aside")
            keep_aside(Path(config.ckpt.path))
        self._manifest.note(step, **begun, model=None)
        settings_file = self._folder / f"{step}.yaml"
        write_resolved(config, settings_file)
        words = [*words_of(self._plan.config.iterate.launcher), TRAIN_MODULE, "@", str(settings_file)]
        key = config.logger.wandb.key  # stands in no file
        code = start(words, self._lock, {KEY_VARIABLE: key} if key else None).wait()
        if code:
            self._say(f"{step} ended with exit code {code}. Start the same command again: what is finished stays.")
            self._say(f"the folders of {settings_file} lie below --iterate.output, and are given by that alone")
            sys.exit(code if code > 0 else 128 - code)
        self._manifest.note(step, model=model_fingerprint(model))

    def _say(self, sentence: str) -> None:
        print(f"iteration {self.number}: {sentence}", file=sys.stderr, flush=True)


def _as_noted(facts: Any) -> Any:
    """As a manifest gives them back."""
    return json.loads(json.dumps(dict(facts), default=str))


def _statistics(iterations: list[_Iteration]) -> Iterator[dict[str, Any]]:
    """For each iteration its rows, its pass rates on held-out prompts, and how these differ from start and control."""
    start = iterations[0].rates.get("")
    for iteration in iterations:
        found: dict[str, Any] = {"iteration": iteration.number, "num_rows": iteration.num_rows.get("")}
        if rates := iteration.rates.get(""):
            found["model"] = measured(rates, iteration.scores[""])
            if iteration.number and start:
                found["against_start"] = compared(rates, start)
            if control := iteration.rates.get("control_"):
                found["control"] = measured(control, iteration.scores["control_"])
                found["against_control"] = compared(rates, control)
        yield found
