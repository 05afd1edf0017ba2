"""Trackers that come with extras of the package: MLflow, trackio, Comet.

Where their records go, and the key for it, is said by each one's own environment variables: `MLFLOW_TRACKING_URI`,
`TRACKIO_DIR`, `COMET_API_KEY` and `COMET_MODE`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf.errors import UserError, first_line_of, how_to_install
from openrlhf.tracking.sinks import Charts, prompt_text


class TrackerSink(Charts):
    """A run of a tracker, which goes on under its id; the id stands in the run's folder."""

    package: str  # its name, also as an extra

    def __init__(
        self,
        folder: Path,
        project: str,
        name: str | None,
        shown_config: Mapping[str, Any],
        *,
        resume: bool,
        openrlhf_names: bool,
    ):
        """Args as of `WandbSink`. Raises UserError where the package is missing, or does not let the run start."""
        self.openrlhf_names = openrlhf_names
        id_file = folder / f"{self.package}_run_id.txt"
        run_id = id_file.read_text(encoding="utf-8").strip() if resume and id_file.exists() else None
        try:
            run_id = self._begin(project, name, run_id, dict(shown_config))
        except ImportError as problem:
            raise UserError(
                f"--logger.trackers {self.package} needs a package: {how_to_install(self.package)}"
            ) from problem
        except Exception as problem:  # of any kind: a server that is away, a key that is wrong
            raise UserError(
                f"--logger.trackers {self.package}: the run could not be started: {first_line_of(problem)}"
            ) from problem
        id_file.write_text(run_id, encoding="utf-8")

    @abstractmethod
    def _begin(self, project: str, name: str | None, run_id: str | None, shown_config: dict[str, Any]) -> str:
        """Starts the run, or goes on with the one of that id. Returns its id."""


class MlflowSink(TrackerSink):
    package = "mlflow"

    def _begin(self, project: str, name: str | None, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import mlflow

        mlflow.set_experiment(project)
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, run_name=name)
        mlflow.log_dict(shown_config, "settings.json")
        return str(run.info.run_id)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        self._mlflow.log_dict({"answers": [dict(one) for one in answers]}, f"answers/{answers[0]['global_step']}.json")

    def close(self) -> None:
        self._mlflow.end_run()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._mlflow.log_metrics(numbers_by_chart, step=int(optimizer_step))


class TrackioSink(TrackerSink):
    package = "trackio"

    def _begin(self, project: str, name: str | None, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import trackio

        self._trackio = trackio
        return str(trackio.init(project=project, name=run_id or name, config=shown_config, resume="allow").name)

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        import pandas

        rows = [{**one, "prompt": prompt_text(one["prompt"])} for one in answers]
        table = self._trackio.Table(dataframe=pandas.DataFrame(rows))
        self._trackio.log({"answers": table}, step=int(answers[0]["global_step"]))

    def close(self) -> None:
        self._trackio.finish()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._trackio.log(numbers_by_chart, step=int(optimizer_step))


class CometSink(TrackerSink):
    package = "comet"

    def _begin(self, project: str, name: str | None, run_id: str | None, shown_config: dict[str, Any]) -> str:
        import comet_ml

        nothing_more: dict[str, Any] = dict.fromkeys(
            ("log_code", "log_git_metadata", "log_git_patch", "parse_args", "auto_output_logging", "log_env_host"),
            False,
        )
        settings = comet_ml.ExperimentConfig(name=name, **nothing_more)
        self._run = comet_ml.start(project_name=project, experiment_key=run_id, experiment_config=settings)
        self._run.log_parameters(shown_config)
        return str(self._run.get_key())

    def log_answers(self, answers: Sequence[Mapping[str, Any]]) -> None:
        for one in answers:
            self._run.log_text(f"{prompt_text(one['prompt'])}\n\n{one['response']}", step=int(one["global_step"]))

    def close(self) -> None:
        self._run.end()

    def _draw(self, numbers_by_chart: dict[str, float], optimizer_step: float) -> None:
        self._run.log_metrics(numbers_by_chart, step=int(optimizer_step))


SINKS: dict[str, type[TrackerSink]] = {sink.package: sink for sink in (MlflowSink, TrackioSink, CometSink)}
