"""Trackers, each with a package of its own: Weights & Biases, MLflow, trackio, Comet.

Where their records go, and the key for it, is said by each one's own environment variables: `WANDB_API_KEY` and
`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, `COMET_API_KEY` and `COMET_MODE`.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openrlhf.config import WandbConfig
from openrlhf.config.sources import with_secrets_hidden
from openrlhf.errors import UserError, first_line_of, how_to_install
from openrlhf.exit_codes import EXIT_CODE_PREEMPTED, Outcome
from openrlhf.tracking.sinks import Charts, prompt_text

KEY_VARIABLE = "WANDB_API_KEY"


class TrackerSink(Charts):
    """A run of a tracker, which goes on under its id; the id stands in the run's folder."""

    package: str  # its name, also as an extra
    remedy = ""  # where a run cannot be started: what its package does not say

    def __init__(
        self,
        folder: str | Path,
        settings: WandbConfig,
        shown_config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        openrlhf_names: bool = False,
    ):
        """Args:
            folder: the run's id goes to `<folder>/<package>_run_id.txt`.
            settings: of all trackers, although their group is W&B's.
            shown_config: what the run's page shows as its settings; without secrets.
            resume: go on with the run whose id stands in the folder.
            openrlhf_names: of the charts and their axes, in place of our own.

        Raises:
            UserError: the package is missing, or does not let the run start (no key, no network).
        """
        self.openrlhf_names = openrlhf_names
        id_file = Path(folder) / self.id_file()
        id_file.parent.mkdir(parents=True, exist_ok=True)
        run_id = id_file.read_text(encoding="utf-8").strip() if resume and id_file.exists() else None
        try:
            run_id = self._begin(id_file.parent, settings, run_id, dict(shown_config or {}))
        except ImportError as problem:
            raise UserError(f"{self.flag()} needs a package: {self.install_line()}") from problem
        except UserError:
            raise
        except Exception as problem:  # of any kind: a server that is away, a key that is wrong
            raise UserError(
                f"{self.flag()}: the run could not be started: {first_line_of(problem)}{self.remedy}"
            ) from problem
        id_file.write_text(run_id, encoding="utf-8")

    @classmethod
    def id_file(cls) -> str:
        """Its name; of another run it is set aside."""
        return f"{cls.package}_run_id.txt"

    @classmethod
    def flag(cls) -> str:
        """The setting that asks for this tracker."""
        return f"--logger.trackers {cls.package}"

    @classmethod
    def install_line(cls) -> str:
        return how_to_install(cls.package)

    @abstractmethod
    def _begin(self, folder: Path, settings: WandbConfig, run_id: str | None, shown_config: dict[str, Any]) -> str:
        """Starts the run, or goes on with the one of that id. Returns its id."""


class WandbSink(TrackerSink):
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps everything on this disk, in `<folder>/wandb`.

    The key comes from the environment's `WANDB_API_KEY`. A key among the settings is put there and nowhere else.
    W&B would copy the command line into its own files, so it is shown the command line without secrets.
    """

    package = "wandb"

    @classmethod
    def flag(cls) -> str:
        return "--logger.wandb.enable"

    @classmethod
    def install_line(cls) -> str:
        return "pip install wandb"

    def _begin(self, folder: Path, settings: WandbConfig, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import wandb

        if settings.key:
            os.environ[KEY_VARIABLE] = settings.key
        with _secrets_hidden_from_command_line():
            try:
                self._run = wandb.init(
                    dir=folder,
                    project=project_of(settings),
                    name=settings.name,
                    group=settings.group,
                    entity=settings.org,
                    config=shown_config,
                    id=run_id,
                    resume="allow",
                )
            except wandb.Error as problem:
                raise UserError(
                    f"Weights & Biases did not start the run: {problem}. Set {KEY_VARIABLE} in the "
                    "environment, or WANDB_MODE=offline, or leave --logger.wandb.enable out."
                ) from None
        for group in ("train/", "eval/") if self.openrlhf_names else ("",):
            self._run.define_metric(f"{group}*", step_metric=f"{group}global_step")
        return str(self._run.id)

    def close(self, outcome: Outcome = "finished") -> None:
        if outcome == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code={"finished": 0, "failed": 1, "preempted": EXIT_CODE_PREEMPTED}[outcome])

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        axis = {} if self.openrlhf_names else {"global_step": optimizer_step}
        self._run.log(axis | numbers_by_chart)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        columns: list[str | int] = ["global_step", "prompt", "response", "finish_reason", "reward"]
        rows = [
            [one["global_step"], prompt_text(one["prompt"]), *(one.get(str(name)) for name in columns[2:])]
            for one in answers
        ]
        self._run.log({"answers": wandb.Table(columns=columns, data=rows)})


def project_of(settings: WandbConfig) -> str:
    """W&B's own variable holds where no setting says otherwise."""
    is_default = settings.project.startswith("openrlhf_train_")
    return os.environ.get("WANDB_PROJECT", settings.project) if is_default else settings.project


@contextmanager
def _secrets_hidden_from_command_line() -> Iterator[None]:
    """`sys.argv` holds no secret while this lasts, and the key of the environment in no part of a word."""
    whole, key = list(sys.argv), os.environ.get(KEY_VARIABLE)
    sys.argv[:] = [word.replace(key, "[hidden]") if key else word for word in with_secrets_hidden(whole)]
    try:
        yield
    finally:
        sys.argv[:] = whole


class MlflowSink(TrackerSink):
    package = "mlflow"
    remedy = (  # the extra's package keeps no database, which is MLflow's place for runs where no other is named
        " The environment's MLFLOW_TRACKING_URI says where runs go: a server's address, or file:FOLDER, which needs "
        "MLFLOW_ALLOW_FILE_STORE=true beside it."
    )

    def _begin(self, folder: Path, settings: WandbConfig, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import mlflow

        mlflow.set_experiment(settings.project)
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, run_name=settings.name)
        mlflow.log_dict(shown_config, "settings.json")
        return str(run.info.run_id)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._mlflow.log_dict({"answers": [dict(one) for one in answers]}, f"answers/{answers[0]['global_step']}.json")

    def close(self, outcome: Outcome = "finished") -> None:
        self._mlflow.end_run({"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}[outcome])

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._mlflow.log_metrics(numbers_by_chart, step=int(optimizer_step))


class TrackioSink(TrackerSink):
    package = "trackio"

    def _begin(self, folder: Path, settings: WandbConfig, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import trackio

        self._trackio = trackio
        name = run_id or settings.name
        run = trackio.init(project=settings.project, name=name, config=shown_config, resume="allow")
        return str(run.name)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        import pandas

        rows = [{**one, "prompt": prompt_text(one["prompt"])} for one in answers]
        table = self._trackio.Table(dataframe=pandas.DataFrame(rows))
        self._trackio.log({"answers": table}, step=int(answers[0]["global_step"]))

    def close(self, outcome: Outcome = "finished") -> None:  # trackio knows no outcomes
        self._trackio.finish()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._trackio.log(numbers_by_chart, step=int(optimizer_step))


class CometSink(TrackerSink):
    package = "comet"

    def _begin(self, folder: Path, settings: WandbConfig, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import comet_ml

        nothing_more: dict[str, Any] = dict.fromkeys(
            ("log_code", "log_git_metadata", "log_git_patch", "parse_args", "auto_output_logging", "log_env_host"),
            False,
        )
        how = comet_ml.ExperimentConfig(name=settings.name, **nothing_more)
        self._run = comet_ml.start(project_name=settings.project, experiment_key=run_id, experiment_config=how)
        self._run.log_parameters(shown_config)
        return str(self._run.get_key())

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for one in answers:
            self._run.log_text(f"{prompt_text(one['prompt'])}\n\n{one['response']}", step=int(one["global_step"]))

    def close(self, outcome: Outcome = "finished") -> None:  # Comet says itself what it saw of the process
        self._run.end()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._run.log_metrics(numbers_by_chart, step=int(optimizer_step))


SINKS: dict[str, type[TrackerSink]] = {sink.package: sink for sink in (WandbSink, MlflowSink, TrackioSink, CometSink)}
