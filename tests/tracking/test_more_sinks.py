"""MLflow, trackio and Comet: the packages themselves, on this disk.

Comet's is no part of the tests' environment: transformers would import it at each start. To run its test:
`pip install --target F comet_ml`, then `PYTHONPATH=F python -m pytest tests/tracking/test_more_sinks.py`.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import zipfile

import pytest

from openrlhf.config import LoggerConfig, SFTConfig, parse_config
from openrlhf.config.settings import WandbConfig
from openrlhf.errors import UserError
from openrlhf.exit_codes import Outcome
from openrlhf.run.report import keep_other_run_aside
from openrlhf.tracking.more_sinks import project_of
from openrlhf.tracking.tracker import open_tracker
from tests.helpers.workbench import flags, save_model, save_rows

ANSWER = {"global_step": 2, "prompt": "coffee", "response": "with oat milk", "finish_reason": "stop"}


@pytest.fixture
def track(tmp_path, monkeypatch):
    """Two steps and an answer by a tracker, then, in a run that goes on, a third."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    monkeypatch.chdir(tmp_path)

    def run(package: str, outcome: Outcome = "finished") -> None:
        settings = LoggerConfig(trackers=(package,), wandb=WandbConfig(project="poems", name="first"))
        for resume_step, steps in ((None, (1, 2)), (2, (3,))):
            told = {"adam.lr": 0.5}
            tracker = open_tracker(
                settings, tmp_path, num_steps=3, is_rank_0=True, resume_step=resume_step, shown_config=told
            )
            for step in steps:
                tracker.log_step({"global_step": step, "loss": 1.0 / step, "lr": 0.1, "tokens_per_second": 9.0})
            if resume_step is None:
                tracker.log_answers([ANSWER])
            tracker.close(outcome)

    return run


def test_mlflow_has_one_run_with_all_steps_answers_and_settings(track):
    track("mlflow")
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("poems").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    found = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert found == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/settings.json") == {"adam.lr": 0.5}
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/answers/2.json") == {"answers": [ANSWER]}


@pytest.mark.parametrize(("outcome", "status"), [("failed", "FAILED"), ("preempted", "KILLED")])
def test_mlflow_shows_how_the_run_has_ended(track, outcome, status):
    track("mlflow", outcome)
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("poems").experiment_id])
    assert run.info.status == status


def test_trackio_has_one_run_with_all_steps_and_answers(track, tmp_path):
    track("trackio")
    rows = (
        sqlite3.connect(tmp_path / "trackio/poems.db").execute("select run_name, step, metrics from metrics").fetchall()
    )
    assert {name for name, _, _ in rows} == {"first"}
    losses = {step: json.loads(metrics).get("train/loss") for _, step, metrics in rows if b"train/loss" in metrics}
    assert losses == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert any(b"with oat milk" in metrics for _, _, metrics in rows)


def test_comet_has_all_steps_and_answers_and_nothing_of_the_machine(track, tmp_path):
    pytest.importorskip("comet_ml", reason="comet_ml is not installed; the module's text says how to run this")
    track("comet")
    said = b""
    for archive in (tmp_path / "comet").glob("*.zip"):
        with zipfile.ZipFile(archive) as files:
            said += b"".join(files.read(name) for name in files.namelist())
    assert said.count(b'"train/loss"') >= 3
    assert b"with oat milk" in said
    assert sys.argv[0].encode() not in said


def test_a_new_run_in_the_folder_of_another_goes_on_with_no_run_of_a_tracker(tmp_path):
    ids = [tmp_path / f"{package}_run_id.txt" for package in ("wandb", "mlflow", "trackio", "comet")]
    for file in ids:
        file.write_text("of-another-run")
    keep_other_run_aside(tmp_path, "mine", goes_on=False)
    assert [file for file in ids if file.exists()] == []
    assert all(file.with_name(f"{file.name}.previous").read_text() == "of-another-run" for file in ids)


@pytest.mark.parametrize("package", ["mlflow", "trackio", "comet"])
def test_a_package_that_is_missing_is_told_with_its_extra(track, monkeypatch, package):
    monkeypatch.setitem(sys.modules, {"comet": "comet_ml"}.get(package, package), None)
    with pytest.raises(UserError, match=rf"--logger.trackers {package} needs a package: pip install '.\[{package}\]'"):
        track(package)


def test_the_login_of_a_server_that_is_away_is_not_told(track, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    with pytest.raises(UserError, match=r"mlflow: the run could not be started: .*http://127.0.0.1:1") as told:
        track("mlflow")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"])
def test_mlflow_without_a_place_for_its_runs_says_how_one_is_named(track, monkeypatch, variable):
    monkeypatch.delenv(variable)
    said = r"could not be started: .* MLFLOW_TRACKING_URI says where runs go: .* MLFLOW_ALLOW_FILE_STORE=true beside"
    with pytest.raises(UserError, match=said):
        track("mlflow")


def test_a_tracker_of_another_name_is_refused(tmp_path):
    model, rows = save_model(tmp_path / "model"), save_rows(tmp_path / "rows.jsonl", 4)
    with pytest.raises(UserError, match="--logger.trackers .*mlflow, trackio, comet"):
        parse_config(SFTConfig, [*flags(model, rows, tmp_path / "out"), "--logger.trackers", "neptune"])


def test_the_project_of_the_environment_holds_where_none_is_given(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert project_of(WandbConfig()) == "mine"
    assert project_of(WandbConfig(project="given")) == "given"
