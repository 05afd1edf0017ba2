"""`metrics.jsonl`: valid JSON, each step once, whatever a kill left behind."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from openrlhf.errors import UserError
from openrlhf.tracking.metrics_file import JsonLinesSink, read_records


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(path):
    return [record["global_step"] for record in lines_of(path)]


def test_a_record_is_in_the_file_before_the_next_one(tmp_path, a_step, an_eval):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonLinesSink(path)
    sink.log_step(a_step(1))
    assert lines_of(path) == [a_step(1)]
    sink.log_eval(an_eval(1))
    assert lines_of(path) == [a_step(1), an_eval(1)]
    sink.close()


def test_a_name_that_nobody_announced_follows_the_known_ones(tmp_path, a_step):
    path = tmp_path / "metrics.jsonl"
    JsonLinesSink(path).log_step(a_step(1, own_number=0.5))
    (record,) = lines_of(path)
    assert list(record.items()) == [*a_step(1).items(), ("own_number", 0.5)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null(tmp_path, a_step, number):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.log_step(a_step(1, loss=number))
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None


def test_resume_removes_later_steps_and_goes_on(tmp_path, a_step, an_eval):
    path = tmp_path / "metrics.jsonl"
    killed = JsonLinesSink(path)
    for step in range(1, 8):
        killed.log_step(a_step(step))
    killed.log_eval(an_eval(4))
    killed.log_eval(an_eval(6))
    resumed = JsonLinesSink(path, resume_step=4)
    assert lines_of(path) == [a_step(step) for step in range(1, 5)] + [an_eval(4)]
    resumed.log_step(a_step(5))
    assert steps_of(path) == [1, 2, 3, 4, 4, 5]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"global_step": 4, "lo', "\0\0\0", "7", '{"global_step": 3'])
def test_resume_drops_a_torn_last_line(tmp_path, a_step, torn):
    path = tmp_path / "metrics.jsonl"
    JsonLinesSink(path).log_step(a_step(3))
    with path.open("a") as file:
        file.write(torn)
    JsonLinesSink(path, resume_step=5).log_step(a_step(6))
    assert steps_of(path) == [3, 6]


def test_resume_keeps_a_whole_last_line_that_lacks_its_newline(tmp_path, a_step):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(a_step(3)))
    JsonLinesSink(path, resume_step=3).log_step(a_step(4))
    assert steps_of(path) == [3, 4]


def test_resume_without_a_file_begins_one(tmp_path, a_step):
    JsonLinesSink(tmp_path / "metrics.jsonl", resume_step=5).log_step(a_step(6))
    assert steps_of(tmp_path / "metrics.jsonl") == [6]


def test_a_new_run_keeps_the_older_file_aside(tmp_path, a_step):
    path = tmp_path / "metrics.jsonl"
    JsonLinesSink(path).log_step(a_step(9))
    JsonLinesSink(path).log_step(a_step(1))
    assert steps_of(path) == [1]
    assert steps_of(tmp_path / "metrics.jsonl.previous") == [9]


def test_a_full_disk_stops_nobody_and_loses_no_line(tmp_path, a_step, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path)
    sink.log_step(a_step(1))
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", no_space_after(20))
        sink.log_step(a_step(2))
        sink.log_step(a_step(3))
    sink.log_step(a_step(4))
    sink.close()
    assert steps_of(path) == [1, 2, 3, 4]
    assert caplog.text.count("No space left on device") == 1


@pytest.mark.parametrize("spare", ["checkpoints", None])
def test_what_has_no_room_at_the_end_is_told_and_kept_elsewhere(tmp_path, a_step, monkeypatch, caplog, spare):
    path, rest = tmp_path / "metrics.jsonl", tmp_path / "checkpoints" / "rest_of_metrics.jsonl"
    sink = JsonLinesSink(path, spare_folder=spare and tmp_path / spare)
    sink.log_step(a_step(1))
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", no_space_after(20))
        sink.log_step(a_step(2))
        sink.log_step(a_step(3))
        sink.close()
    assert (lines_of(rest) if rest.exists() else None) == ([a_step(2), a_step(3)] if spare else None)
    place = f"they are in {rest}" if spare else "they are lost"
    assert f"{path} lacks its last 2 line(s), of step 2 and later; {place}." in caplog.text


def test_a_file_that_cannot_be_opened_again_is_waited_for_and_costs_nobody_a_file(tmp_path, a_step, monkeypatch):
    path, others = tmp_path / "metrics.jsonl", tmp_path / "others"
    sink = JsonLinesSink(path)
    sink.log_step(a_step(1))
    path.unlink()
    with monkeypatch.context() as away:
        away.setattr(os, "open", refused)
        sink.log_step(a_step(2))
    with others.open("w") as file:  # may be given the number of a descriptor that is closed
        sink.log_step(a_step(3))
        file.write("theirs")
    with monkeypatch.context() as away:
        away.setattr(os, "close", refused)
        sink.close()
    assert steps_of(path) == [1, 2, 3]
    assert others.read_text() == "theirs"


def refused(*arguments, **more):
    raise OSError(5, "Input/output error")


def no_space_after(num_bytes):
    write, left = os.write, [num_bytes]

    def limited(file, data):
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    return limited


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--ckpt.output_dir"):
        JsonLinesSink(tmp_path / "file" / "metrics.jsonl")


def test_a_killed_process_tears_at_most_the_last_line(tmp_path, a_step):
    path = tmp_path / "metrics.jsonl"
    script = f"""
        import sys
        from openrlhf.tracking.metrics_file import JsonLinesSink
        sink = JsonLinesSink({str(path)!r})
        for step in range(1, 10**9):
            sink.log_step({a_step(1)!r} | {{"global_step": step}})
            if step == 200:
                print("going", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    steps = [record["global_step"] for record in read_records(path)]
    assert len(steps) >= 200
    assert steps == list(range(1, len(steps) + 1))


def test_an_event_has_a_line_of_its_own_and_goes_with_its_step(tmp_path, a_step):
    path = tmp_path / "metrics.jsonl"
    killed = JsonLinesSink(path)
    event = {"global_step": 2, "out_of_memory": "forward pass, rank 0", "recomputes_activations": True}
    killed.log_step(a_step(1))
    killed.log_event(event)
    killed.log_step(a_step(2))
    assert lines_of(path) == [a_step(1), event, a_step(2)]
    JsonLinesSink(path, resume_step=1)
    assert lines_of(path) == [a_step(1)]
