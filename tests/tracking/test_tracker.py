"""The tracker: who hears of which step."""

from contextlib import closing

from openrlhf.config import LoggerConfig, WandbConfig
from openrlhf.tracking.metrics_file import read_records
from openrlhf.tracking.tracker import Tracker, open_tracker


class Ear:
    """A sink that remembers what it heard."""

    def __init__(self):
        self.heard = []

    def log_step(self, record):
        self.heard.append(("step", record["global_step"]))

    def log_eval(self, record):
        self.heard.append(("eval", record["global_step"]))

    def close(self, outcome="finished"):
        self.heard.append("close" if outcome == "finished" else f"close: {outcome}")


class Broken(Ear):
    """A sink whose server went away."""

    def log_step(self, record):
        raise ConnectionError(f"server is gone at step {record['global_step']}")


def test_slow_sinks_hear_every_nth_step_and_the_last(a_step, an_eval):
    quick, slow = Ear(), Ear()
    with closing(Tracker([quick], [slow], logging_steps=3)) as tracker:
        for step in range(1, 6):
            tracker.log_step(a_step(step))
        tracker.log_eval(an_eval(5))
    assert quick.heard == [("step", step) for step in range(1, 6)] + [("eval", 5), "close"]
    assert slow.heard == [("step", 3), ("eval", 5), ("step", 5), "close"]


def test_no_step_is_told_twice_at_the_end(a_step):
    slow = Ear()
    with closing(Tracker(slow=[slow], logging_steps=2)) as tracker:
        tracker.log_step(a_step(2))
    assert slow.heard == [("step", 2), "close"]


def test_a_broken_slow_sink_is_reported_once_and_stops_nobody(a_step, caplog):
    broken, well = Broken(), Ear()
    with closing(Tracker(slow=[broken, well])) as tracker:
        tracker.log_step(a_step(1))
        tracker.log_step(a_step(2))
    assert well.heard == [("step", 1), ("step", 2), "close"]
    assert broken.heard == []
    assert caplog.text.count("ConnectionError: server is gone at step 1") == 1


def test_slow_sinks_hear_how_the_run_has_ended():
    slow = Ear()
    Tracker(slow=[slow]).close("failed")
    assert slow.heard == ["close: failed"]


def test_every_rank_knows_of_servers_that_the_first_waits_for(tmp_path):
    def has_servers(**settings):
        return open_tracker(LoggerConfig(**settings), tmp_path, num_steps=1, is_rank_0=False).has_servers

    assert has_servers(trackers=("mlflow",))
    assert has_servers(wandb=WandbConfig(enable=True))
    assert not has_servers(tensorboard_dir=str(tmp_path))


def test_other_ranks_write_nothing(tmp_path, a_step):
    settings = LoggerConfig(tensorboard_dir=str(tmp_path))
    with closing(open_tracker(settings, tmp_path / "out", num_steps=1, is_rank_0=False)) as tracker:
        tracker.log_step(a_step(1))
    assert list(tmp_path.iterdir()) == []


def test_metrics_hold_every_step_whatever_the_slow_sinks_hear(tmp_path, a_step, capsys):
    with closing(open_tracker(LoggerConfig(logging_steps=5), tmp_path, num_steps=5, is_rank_0=True)) as tracker:
        for step in range(1, 6):
            tracker.log_step(a_step(step))
    assert [record["global_step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "step 5/5" in capsys.readouterr().err


def test_each_restart_has_a_line_beside_the_metrics_until_a_new_run_begins(tmp_path, a_step):
    settings = LoggerConfig()
    for resume_step in (None, 2, 2, 1):
        with closing(open_tracker(settings, tmp_path, num_steps=3, is_rank_0=True, resume_step=resume_step)) as tracker:
            for step in range((resume_step or 0) + 1, 4):
                tracker.log_step(a_step(step))
    assert [record["global_step"] for record in read_records(tmp_path / "restarts.jsonl")] == [2, 2, 1]
    assert read_records(tmp_path / "metrics.jsonl") == [a_step(step) for step in (1, 2, 3)]
    open_tracker(settings, tmp_path, num_steps=3, is_rank_0=True).close()
    assert not (tmp_path / "restarts.jsonl").exists()
