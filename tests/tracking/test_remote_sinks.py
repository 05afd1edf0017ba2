"""TensorBoard and W&B for real: what they wrote is read back from the disk."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from openrlhf.tracking.sinks import TensorBoardSink
from tests.helpers.workbench import flags, save_model, save_rows
from tests.tracking.cases import run_with_words

SECRET = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz01234567"


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def a_second_apart(monkeypatch):
    """TensorBoard reads event files in the order of their names, which begin with the second of their start."""
    from tensorboard.summary.writer import event_file_writer

    seconds = itertools.count(1_800_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: float(next(seconds))))


def test_tensorboard_shows_steps_and_evaluations(tmp_path, a_step, an_eval):
    sink = TensorBoardSink(str(tmp_path))
    sink.log_step(a_step(1))
    sink.log_step(a_step(2))
    sink.log_eval(an_eval(2))
    sink.close()
    shown = scalars(tmp_path)
    assert shown["train/loss"] == [(1, 2.0), (2, 1.0)]
    assert shown["eval/loss"] == [(2, 1.25)]


@pytest.mark.usefixtures("a_second_apart")
def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path, a_step):
    killed = TensorBoardSink(str(tmp_path))
    for step in (1, 2, 3):
        killed.log_step(a_step(step, loss=9.0))
    killed.close()
    resumed = TensorBoardSink(str(tmp_path), resume_step=2)
    resumed.log_step(a_step(3, loss=7.0))
    resumed.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 9.0), (2, 9.0), (3, 7.0)]


def test_tensorboard_draws_two_runs_of_one_folder_apart(tmp_path, a_step):
    for loss in (9.0, 8.0, 7.0):
        run = TensorBoardSink(str(tmp_path))
        run.log_step(a_step(1, loss=loss))
        run.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 7.0)]
    assert scalars(tmp_path / "events.previous")["train/loss"] == [(1, 9.0)]
    assert scalars(tmp_path / "events.previous_2")["train/loss"] == [(1, 8.0)]


@pytest.mark.usefixtures("a_second_apart")
def test_a_run_that_goes_on_moves_the_events_of_another_aside_and_says_so(tmp_path, a_step, caplog):
    for run_id, resume_step, loss in (("a", None, 9.0), ("b", None, 8.0), ("a", 1, 7.0), ("a", 2, 6.0)):
        run = TensorBoardSink(str(tmp_path), resume_step, run_id=run_id)
        run.log_step(a_step((resume_step or 0) + 1, loss=loss))
        run.close()
    assert scalars(tmp_path)["train/loss"] == [(2, 7.0), (3, 6.0)]
    assert scalars(tmp_path / "events.previous")["train/loss"] == [(1, 9.0)]
    assert scalars(tmp_path / "events.previous_2")["train/loss"] == [(1, 8.0)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} held event files of another run: they are in {tmp_path / name}."
        for name in ("events.previous", "events.previous_2")
    ]


def test_other_folders_beside_the_events_stay(tmp_path, a_step):
    (tmp_path / "events").mkdir()
    TensorBoardSink(str(tmp_path)).close()
    TensorBoardSink(str(tmp_path)).close()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"events", "events.previous"}


WANDB_RUN = """
    import os, sys
    from openrlhf.config import WandbConfig
    from openrlhf.tracking.more_sinks import WandbSink
    folder, word, resume, *more = sys.argv[1:]
    key = word.removeprefix("--logger.wandb.key=")
    settings = WandbConfig(enable=True, project="trials", name="first", key=key)
    sink = WandbSink(folder, settings, {"train.seed": 42}, resume=resume == "resume")
    assert sys.argv[2:] == [word, resume, *more], "the program's own command line changed"
    assert os.environ["WANDB_API_KEY"] == key
    sink.log_step({"global_step": 1, "loss": 2.5, "lr": 1e-4, "own_number": 7.0})
    sink.log_eval({"global_step": 1, "eval_loss": 1.25})
    sink.close("failed")
"""


def run_wandb_offline(folder, resume="new"):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "WANDB_MODE": "offline",
        "HOME": str(folder),
    }
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(WANDB_RUN),
        str(folder / "out"),
        f"--logger.wandb.key={SECRET}",
    ]
    more = ["--hub_token", TOKEN, "--eval.prompts_reward", f"https://me:{TOKEN}@judge/score?token=x{TOKEN}"]
    done = subprocess.run([*command, resume, *more], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    """A folder in which W&B ran offline with a key on the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("wandb")
    return folder, run_wandb_offline(folder)


def messages(wandb_file):
    """The messages of a run's file: behind 7 bytes of magic, each with checksum, 2-byte length and type."""
    data, at = wandb_file.read_bytes(), 7
    assert data.startswith(b":W&B")
    assert len(data) < 2**15, "only files of one block are read here"
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 6], "little")
        yield data[at + 7 : at + 7 + size]
        at += 7 + size


def records(folder, kind):
    """What W&B has written of that kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    file = min(folder.glob("out/wandb/offline-run-*/*.wandb"))
    found = [Record.FromString(message) for message in messages(file)]
    return [record for record in found if record.WhichOneof("record_type") == kind]


def logged(folder):
    """What a run logged: a dict for each call of `log`."""
    rows = [record.history.item for record in records(folder, "history")]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def test_wandb_offline_keeps_the_run_on_disk(offline_run):
    rows = logged(offline_run[0])
    step = {"train/loss": 2.5, "train/lr": 1e-4, "train/own_number": 7.0, "global_step": 1}
    assert any(row.items() >= step.items() for row in rows), rows
    assert any(row.get("eval/loss") == 1.25 for row in rows), rows


def test_wandb_hears_that_the_run_has_failed(offline_run):
    (last,) = records(offline_run[0], "exit")
    assert last.exit.exit_code == 1


def test_wandb_key_stands_in_no_file_and_no_output(offline_run):
    folder, output = offline_run
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3, f"W&B wrote too little for this test to mean something: {files}"
    for secret in (SECRET, TOKEN):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert secret not in output
    assert any(b"https://judge/score" in path.read_bytes() for path in files)


def test_wandb_goes_on_with_the_same_run(offline_run):
    folder, _ = offline_run
    run_id = (folder / "out" / "wandb_run_id.txt").read_text()
    run_wandb_offline(folder, resume="resume")
    assert (folder / "out" / "wandb_run_id.txt").read_text() == run_id


@pytest.fixture(scope="module")
def run_with_key(tmp_path_factory, one_rank):
    """The folder of a whole run whose command line holds a key; the key that W&B found, and what was printed."""
    folder = tmp_path_factory.mktemp("run_with_key")
    words = flags(save_model(folder / "model"), save_rows(folder / "rows.jsonl", 8), folder / "out")
    words += ["--logger.wandb.enable", f"--logger.wandb.key={SECRET}"]
    (answer,) = one_rank.run(run_with_words, words)
    return folder, *answer


def test_the_key_of_a_runs_command_line_reaches_wandb(run_with_key):
    assert run_with_key[1] == SECRET


def test_a_run_writes_its_key_nowhere(run_with_key):
    folder, _, printed = run_with_key
    assert list(folder.glob("out/wandb/offline-run-*/*.wandb")), "W&B did not run"
    assert [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in printed
