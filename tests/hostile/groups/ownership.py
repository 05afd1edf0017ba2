"""Two runs on one folder, owners that died, and leases that are not what they should be."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openrlhf.checkpoint.lease import FILE_NAME
from tests.faults.jobs import Job
from tests.hostile.case import Came, Case
from tests.hostile.hooks import be_quick_about_leases
from tests.hostile.workspace import Workspace

SLOW = dict(train__callbacks="tests.hostile.hooks:Slow", train__max_epochs=200)
ELSEWHERE = dict(
    token="t",
    host="node7",
    machine="another boot",
    pid=1,
    started="1",
    since="2026-01-01 00:00:00",
    command="train_sft",
)


def training(w: Workspace, **how: Any) -> Job:
    """A run of many slow steps, once it has written its first metrics."""
    job = w.start(**(SLOW | dict(before=be_quick_about_leases) | how))
    out = Path(how.get("ckpt__output_dir", w.out))
    _wait_until(job, lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0)
    return job


def _wait_until(job: Job, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so() and job.is_running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so(), job.words_said()


def second(w: Workspace, **changes: Any) -> Came:
    """What a second run says while the first one trains."""
    with training(w):
        return w.run(before=be_quick_about_leases, **changes)


def by_link(w: Workspace, flag: str, folder: Path) -> Came:
    with training(w):
        (w.folder / "link").symlink_to(folder)
        folders = {"ckpt__output_dir": w.folder / "a", "ckpt__path": w.folder / "b", flag: w.folder / "link"}
        return w.run(before=be_quick_about_leases, **folders)


def after_kill(w: Workspace, **how: Any) -> Came:
    """The run is started again as soon as the first one is killed."""
    with training(w, ckpt__save_steps=1) as job:
        _wait_until(job, (w.out / "checkpoints/latest").exists)
        job.kill([0])
        job.wait(10)
    return w.run(ckpt__load_enable=True, train__max_epochs=200, train__max_steps=8, ckpt__allow_mismatch=True, **how)


def with_lease(w: Workspace, content: str, is_renewed: bool = False, folder: str = "out") -> Came:
    """A lease lies in the folder already."""
    path = w.write(f"{folder}/{FILE_NAME}", content)
    is_over = threading.Event()

    def renew() -> None:
        while is_renewed and not is_over.wait(0.1):
            if path.exists():
                os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    came = w.run(before=be_quick_about_leases)
    is_over.set()
    thread.join()
    return came


def taken_while_stopped(w: Workspace) -> Came:
    """The first run is stopped (SIGSTOP), another takes its folder, and the first one goes on."""
    with training(w, ckpt__save_steps=1) as job:
        job.send(signal.SIGSTOP, 0)
        for folder in (w.out, w.out / "checkpoints"):
            (folder / FILE_NAME).write_text(json.dumps(ELSEWHERE))
        job.send(signal.SIGCONT, 0)
        return w.wait(job)


def lease_removed(w: Workspace) -> Came:
    job = w.start(before=be_quick_about_leases, train__callbacks="tests.hostile.hooks:Slow", train__max_epochs=5)
    _wait_until(job, (w.out / FILE_NAME).exists)
    (w.out / FILE_NAME).unlink()
    return w.wait(job)


def no_lease_is_left(w: Workspace) -> list[str]:
    return [f"{path.relative_to(w.folder)} is left" for path in w.folder.rglob(".owner*")]


def is_exported(w: Workspace) -> list[str]:
    return no_lease_is_left(w) + ([] if (w.out / "model.safetensors").is_file() else ["no model was exported"])


REFUSED = ("belongs to a run that is still going on", "process ", ", since ", "Waiting for its end")
OTHER = dict(ckpt__output_dir="other", ckpt__path="other/checkpoints")

CASES = (
    Case("a second run in the same folders", second, REFUSED, in_suite=True),
    Case(
        "a second run with the same output folder alone",
        lambda w: second(w, ckpt__path=w.folder / "mine"),
        REFUSED,
    ),
    Case(
        "a second run with the same checkpoint folder alone",
        lambda w: second(w, ckpt__output_dir=w.folder / "mine"),
        REFUSED,
    ),
    Case(
        "a second run that spells the output folder by a relative path",
        lambda w: second(w, ckpt__output_dir="./out/../out/.", ckpt__path=w.folder / "mine"),
        REFUSED,
    ),
    Case(
        "a second run whose output folder is a link to the first's",
        lambda w: by_link(w, "ckpt__output_dir", w.out),
        REFUSED,
    ),
    Case(
        "a second run whose checkpoint folder is a link to the first's",
        lambda w: by_link(w, "ckpt__path", w.out / "checkpoints"),
        REFUSED,
    ),
    Case(
        "a second run puts its checkpoints into the first one's output folder",
        lambda w: second(w, ckpt__path=w.out, ckpt__output_dir=w.folder / "mine"),
        REFUSED,
    ),
    Case("a second run goes on with the first one's checkpoints", lambda w: second(w, ckpt__load_enable=True), REFUSED),
    Case("a second run on two ranks", lambda w: second(w, num_ranks=2), REFUSED),
    Case(
        "a second run in folders of its own beside the first",
        lambda w: second(w, **OTHER),
        ("the model is in other",),
        exit_code=0,
    ),
    Case(
        "a run is killed and started again at once",
        after_kill,
        ("going on from", "the model is in"),
        exit_code=0,
        then=is_exported,
        must_not_see=("Waiting",),
        in_suite=True,
    ),
    Case(
        "the lease of another machine that renews it",
        lambda w: with_lease(w, json.dumps(ELSEWHERE), is_renewed=True),
        ("belongs to a run that is still going on", "process 1 on node7"),
    ),
    Case(
        "the lease of a machine that died",
        lambda w: with_lease(w, json.dumps(ELSEWHERE)),
        ("process 1 on node7", "the model is in"),
        exit_code=0,
        then=is_exported,
        in_suite=True,
    ),
    Case(
        "the lease of a machine that died, in the checkpoint folder",
        lambda w: with_lease(w, json.dumps(ELSEWHERE), folder="out/checkpoints"),
        ("process 1 on node7", "the model is in"),
        exit_code=0,
        then=is_exported,
    ),
    Case(
        "an empty lease", lambda w: with_lease(w, ""), ("held by another run (unknown)",), exit_code=0, then=is_exported
    ),
    Case("a lease of noise", lambda w: with_lease(w, "\x00[[["), ("(unknown)",), exit_code=0, then=is_exported),
    Case("a lease that is a list", lambda w: with_lease(w, "[1]"), ("(unknown)",), exit_code=0, then=is_exported),
    Case(
        "a lease with another version's fields",
        lambda w: with_lease(w, json.dumps({**ELSEWHERE, "more": 1})),
        ("(unknown)",),
        exit_code=0,
        then=is_exported,
    ),
    Case("an empty lease that is renewed", lambda w: with_lease(w, "", is_renewed=True), ("still going on",)),
    Case(
        "a run stands still (SIGSTOP), another takes its folders, it goes on",
        taken_while_stopped,
        ("was taken over by another run", "ends and saves nothing"),
        exit_code=3,
        must_not_see=("the model is in",),
        in_suite=True,
    ),
    Case(
        "the lease is removed while the run trains", lease_removed, ("the model is in",), exit_code=0, then=is_exported
    ),
    Case(
        "a run that fails leaves no lease",
        lambda w: w.run(train__callbacks="tests.hostile.hooks:Raises"),
        ("the callback's own fault",),
        exit_code=3,
        then=no_lease_is_left,
    ),
)
