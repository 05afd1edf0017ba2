"""How a run ends when its terminal, its log, its user or its own callback ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.tracking.metrics_file import read_records
from tests.hostile import hooks
from tests.hostile.case import Came, Case
from tests.hostile.groups.ownership import is_exported, training
from tests.hostile.workspace import INSPECT, Workspace

CALLBACKS = "tests.hostile.hooks:"
SECONDS_BETWEEN_CTRL_C = 0.8


def asked_to_leave(w: Workspace, *numbers: signal.Signals, seconds: float = 0.1, **how: Any) -> Came:
    """A run of many slow steps gets these signals, so far apart."""
    job = training(w, **how)
    for number in numbers:
        job.send(number, how.get("num_ranks", 1) - 1)
        time.sleep(seconds)
    return w.wait(job)


def in_a_hanging_save(w: Workspace, *numbers: signal.Signals, seconds: float) -> Came:
    """The save that follows the first signal hangs."""
    return asked_to_leave(w, *numbers, seconds=seconds, env={"OPENRLHF_FAULT_POINT": "save.begun:1:hang"})


def is_saved(w: Workspace) -> Iterator[str]:
    last = read_records(w.out / "metrics.jsonl")[-1]["global_step"]
    path, problems = CheckpointStore(w.out / "checkpoints").newest_whole()
    yield from problems
    if path is None or path.name != f"global_step{last}":
        yield f"step {last} is the last one of metrics.jsonl, and the newest checkpoint is {path}"


def weights_are_kept(w: Workspace) -> list[str]:
    return [] if list(w.folder.rglob("weights_of_step*/*.safetensors")) else ["no weights are kept"]


def has_four_steps(w: Workspace) -> Iterator[str]:
    yield from is_exported(w)
    steps = [record["global_step"] for record in read_records(w.out / "metrics.jsonl")]
    if steps != [1, 2, 3, 4]:
        yield f"metrics.jsonl has the steps {steps}"


def goes_on(w: Workspace) -> Iterator[str]:
    """Where the file was replaced, its new content stays, and later steps follow."""
    steps = [record["global_step"] for record in read_records(w.out / "metrics.jsonl")]
    if steps[-1:] != [4]:
        yield f"metrics.jsonl has the steps {steps}"


def twice(w: Workspace) -> Came:
    """A command that fails, twice from one shell: on two ranks with the same port."""
    env = {"TMPDIR": str(w.folder), "MASTER_PORT": "29500"}
    w.run(num_ranks=2, ds__zero_stage=4, env=env)
    return w.run(num_ranks=2, ds__zero_stage=4, env=env)


def streams(name: str, hook: Callable[[], None], in_suite: bool = False, **how: Any) -> Case:
    """A run that trains to its end, whatever becomes of its streams."""
    return Case(name, lambda w: w.run(before=hook, **how), exit_code=0, then=is_exported, in_suite=in_suite)


CASES = (
    streams("stdout is a pipe that nobody reads (| head)", partial(hooks.break_pipe, 1), in_suite=True),
    streams("stderr is a pipe that nobody reads", partial(hooks.break_pipe, 2)),
    streams("stdout and stderr are pipes that nobody reads", partial(hooks.break_pipe, 1, 2)),
    streams("stdout goes to a full disk", partial(hooks.fill_disk_of, 1), in_suite=True),
    streams("stderr goes to a full disk", partial(hooks.fill_disk_of, 2)),
    streams("stdout and stderr go to a full disk", partial(hooks.fill_disk_of, 1, 2)),
    streams("stdout and stderr go to a full disk, on two ranks", partial(hooks.fill_disk_of, 1, 2), num_ranks=2),
    streams("stdout is closed (>&-)", partial(hooks.close, 1)),
    streams("stdout and stderr are closed", partial(hooks.close, 1, 2)),
    streams("all three streams are closed", partial(hooks.close, 0, 1, 2)),
    Case(
        "inspect_data into a pipe that nobody reads",
        lambda w: w.run(command=INSPECT, before=partial(hooks.break_pipe, 1)),
        exit_code=0,
    ),
    Case(
        "inspect_data to a full disk",
        lambda w: w.run(command=INSPECT, before=partial(hooks.fill_disk_of, 1)),
        exit_code=0,
    ),
    Case(
        "a wrong flag, and stderr is a pipe that nobody reads",
        lambda w: w.run(ds__zero_stage=4, before=partial(hooks.break_pipe, 2)),
    ),
    Case(
        "Ctrl-C once while training",
        lambda w: asked_to_leave(w, signal.SIGINT),
        ("SIGINT: this step is finished and saved", "asked to leave after step"),
        exit_code=75,
        then=is_saved,
        in_suite=True,
    ),
    Case(
        "Ctrl-C once, on the second of two ranks",
        lambda w: asked_to_leave(w, signal.SIGINT, num_ranks=2),
        ("asked to leave after step",),
        exit_code=75,
        then=is_saved,
    ),
    Case(
        "Ctrl-C twice, and the save hangs",
        lambda w: in_a_hanging_save(w, signal.SIGINT, signal.SIGINT, seconds=SECONDS_BETWEEN_CTRL_C),
        ("once more: at once",),
        exit_code=75,
        must_not_see=("saved.",),
        in_suite=True,
    ),
    Case(
        "SIGTERM twice, three seconds apart, and the save hangs",
        lambda w: in_a_hanging_save(w, signal.SIGTERM, signal.SIGTERM, seconds=3.0),
        ("once more: at once",),
        exit_code=75,
    ),
    Case(
        "Ctrl-C, passed on by the launcher as SIGTERM",
        lambda w: asked_to_leave(w, signal.SIGINT, signal.SIGTERM, seconds=0.05),
        ("asked to leave after step",),
        exit_code=75,
        then=is_saved,
    ),
    *(
        Case(
            f"{number.name} while training",
            lambda w, number=number: asked_to_leave(w, number),
            (f"{number.name}: this step", "asked to leave after step"),
            exit_code=75,
            then=is_saved,
            in_suite=number == signal.SIGHUP,
        )
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    ),
    Case(
        "SIGHUP under nohup",
        lambda w: asked_to_leave(w, signal.SIGHUP, train__max_epochs=3, before=partial(hooks.ignore, signal.SIGHUP)),
        ("the model is in",),
        exit_code=0,
        then=is_exported,
    ),
    *(
        Case(
            f"{number.name} while the data are prepared",
            lambda w, number=number: w.run(before=partial(hooks.signal_while_reading, number)),
            exit_code=75,
        )
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    ),
    *(
        Case(
            f"{number.name} while the model is exported",
            lambda w, number=number: w.run(before=partial(hooks.signal_at_export, number)),
            ("the run is finished and its model exported, then the run leaves", "the model is in"),
            exit_code=0,
            then=is_exported,
        )
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    ),
    Case(
        "Ctrl-C with --ckpt.disable_ds",
        lambda w: asked_to_leave(w, signal.SIGINT, ckpt__disable_ds=True),
        ("which nothing here removes",),
        exit_code=75,
        then=weights_are_kept,
    ),
    Case(
        "Ctrl-C, and the disk of the checkpoints is full",
        lambda w: asked_to_leave(w, signal.SIGINT, before=hooks.checkpoints_do_not_fit),
        ("which could not be saved", "which nothing here removes"),
        exit_code=3,
        then=weights_are_kept,
    ),
    Case(
        "a callback raises, and no checkpoint is there",
        lambda w: w.run(train__callbacks=f"{CALLBACKS}Raises"),
        ("the callback's own fault", "which nothing here removes"),
        exit_code=3,
        then=weights_are_kept,
    ),
    Case(
        "a callback raises, and a checkpoint is there",
        lambda w: w.run(train__callbacks=f"{CALLBACKS}Raises", ckpt__save_steps=1),
        ("The newest checkpoint is", "global_step2; --ckpt.load_enable goes on from it"),
        exit_code=3,
    ),
    Case("a command that fails, twice from one shell", twice, ("--ds.zero_stage is '4'",), in_suite=True),
    Case(
        "metrics.jsonl is removed while the run trains",
        lambda w: w.run(train__callbacks=f"{CALLBACKS}RemovesMetrics"),
        ("was removed or replaced",),
        exit_code=0,
        then=has_four_steps,
        in_suite=True,
    ),
    Case(
        "an editor saves metrics.jsonl while the run trains",
        lambda w: w.run(train__callbacks=f"{CALLBACKS}ReplacesMetrics"),
        ("was removed or replaced",),
        exit_code=0,
        then=has_four_steps,
    ),
    Case(
        "the output folder is removed while the run trains",
        lambda w: w.run(train__callbacks=f"{CALLBACKS}RemovesOutput", ckpt__path=w.folder / "ck"),
        ("was removed or replaced",),
        exit_code=0,
        then=has_four_steps,
    ),
)
