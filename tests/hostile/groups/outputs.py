"""Outputs, reports and checkpoints where something of the user's lies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.hostile.case import Came, Case
from tests.hostile.workspace import INSPECT, Workspace

SAVING = dict(ckpt__save_steps=1, ckpt__max_num=1)
ANOTHER = "holds a model that is no run's output"
IS_MODEL = "is the folder of --model.model_name_or_path too"
AMONG = "lies among the checkpoints of --ckpt.path"
EMPTY = "is empty, which would be the working folder"
NO_REPORT = "exists and is no report of this command"


def run_over_model(w: Workspace, spelt: Callable[[Workspace], str]) -> Came:
    """A run whose output folder is the model's, spelt in some way."""
    w.remember(w.model)
    return w.run(ckpt__output_dir=spelt(w), ckpt__path=w.folder / "ck", **SAVING)


def another_model(w: Workspace, name: str = "theirs", **changes: Any) -> Came:
    """A run whose output folder holds a model that a user has put there."""
    w.remember(Path(shutil.copytree(w.model, w.folder / name)))
    return w.run(**({"ckpt__output_dir": w.folder / name, "ckpt__path": w.folder / "ck"} | changes))


def adapter_there(w: Workspace) -> Came:
    w.remember(w.write("out/adapter_config.json", "{}"))
    return w.run()


def linked_model(w: Workspace) -> Came:
    (w.folder / "link").symlink_to(w.model)
    return run_over_model(w, lambda w: str(w.folder / "link"))


def report_over(w: Workspace, path: Path) -> Came:
    w.remember(path)
    return w.run("--html", str(path), command=INSPECT)


def report_over_link(w: Workspace) -> Came:
    w.remember(w.rows)
    (w.folder / "link.html").symlink_to(w.rows)
    return w.run("--html", str(w.folder / "link.html"), command=INSPECT)


def report_twice(w: Workspace) -> Came:
    w.run("--html", "report.html", command=INSPECT)
    return w.run("--html", "report.html", command=INSPECT)


def model_among_checkpoints(w: Workspace, name: str = "global_step1_hf", **changes: Any) -> Came:
    """The base model lies where checkpoints are kept, as after a run with --ckpt.save_hf."""
    model = Path(shutil.copytree(w.model, w.folder / "ck" / name))
    w.remember(model)
    return w.run(
        **(dict(model__model_name_or_path=model, ckpt__path=w.folder / "ck", ckpt__save_hf=True) | SAVING | changes)
    )


def model_linked_among_checkpoints(w: Workspace) -> Came:
    (w.folder / "ck").mkdir()
    (w.folder / "ck/global_step1_hf").symlink_to(w.model)
    w.remember(w.model)
    return w.run(model__model_name_or_path=w.folder / "ck/global_step1_hf", ckpt__path=w.folder / "ck", **SAVING)


def checkpoints_by_link(w: Workspace) -> Came:
    model = Path(shutil.copytree(w.model, w.folder / "ck/global_step1_hf"))
    w.remember(model)
    (w.folder / "link").symlink_to(w.folder / "ck")
    return w.run(model__model_name_or_path=model, ckpt__path=w.folder / "link", ckpt__save_hf=True, **SAVING)


def rows_among_checkpoints(w: Workspace, flag: str) -> Came:
    rows = w.write("ck/global_step3/rows.jsonl", w.rows.read_bytes())
    w.remember(rows)
    return w.run(**({flag: rows, "ckpt__path": w.folder / "ck"} | SAVING))


def foreign_checkpoints(w: Workspace, **changes: Any) -> Came:
    """DeepSpeed's own checkpoints lie in the folder, as OpenRLHF writes them."""
    for step in (1, 2, 3):
        w.remember(w.write(f"ck/global_step{step}/mp_rank_00_model_states.pt", f"weights of step {step}"))
    w.remember(w.write("ck/latest", "global_step3"))
    return w.run(**({"ckpt__path": w.folder / "ck"} | SAVING | changes))


def files_named_as_ours(w: Workspace, **changes: Any) -> Came:
    for name in ("latest", "best.json"):
        w.remember(w.write(f"ck/{name}", "a note of mine"))
    return w.run(ckpt__path=w.folder / "ck", eval__dataset=w.rows, eval__steps=1, **SAVING, **changes)


def notes_in_checkpoint(w: Workspace) -> Came:
    """A user puts files into a checkpoint; the run goes on and its checkpoint is rotated away."""
    w.run(**SAVING)
    w.remember(w.write("out/checkpoints/global_step4/notes.txt", "look at this one"))
    w.remember(w.write("out/checkpoints/global_step4/merged/weights.bin", "mine"))
    return w.run(ckpt__load_enable=True, train__max_epochs=2, **SAVING)


def own_export_among_ours(w: Workspace) -> Came:
    """A user's own folder is named as the models that a run exports along the way."""
    w.run(ckpt__save_hf=True, **SAVING)
    w.remember(Path(shutil.copytree(w.model, w.out / "checkpoints/global_step2_hf")))
    return w.run(ckpt__load_enable=True, train__max_epochs=2, ckpt__save_hf=True, **SAVING)


def three_starts(w: Workspace, **changes: Any) -> Came:
    """Three runs, one after another, into the same folders; none goes on with another."""
    for rate in (1e-3, 2e-3):
        w.run(adam__lr=rate, **changes)
        for name in ("metrics.jsonl", "run_config.yaml", "training_curves.png", "model.safetensors"):
            w.remember(w.out / name)
    return w.run(adam__lr=3e-3, **changes)


def another_runs_output(w: Workspace) -> Came:
    """A run goes on into the output folder of another one."""
    w.run(ckpt__output_dir=w.folder / "other", ckpt__path=w.folder / "ck2", adam__lr=5e-3)
    w.remember(w.folder / "other")
    w.run(**SAVING)
    return w.run(
        ckpt__load_enable=True,
        train__max_epochs=2,
        ckpt__output_dir=w.folder / "other",
        ckpt__path=w.out / "checkpoints",
    )


def files_beside_the_model(w: Workspace) -> Came:
    for name in ("README.md", "notes/today.txt", "rows.jsonl", "weights_of_step4_1/mine.txt"):
        w.remember(w.write(f"out/{name}", f"mine: {name}"))
    return w.run(**SAVING)


def names_of_model_files(w: Workspace) -> Came:
    """Folders and files of a user stand where the model's files go."""
    for name in ("model.safetensors/mine.txt", "tokenizer.json", "generation_config.json", "manifest.json/mine.txt"):
        w.remember(w.write(f"out/{name}", f"mine: {name}"))
    return w.run()


def killed_over_another(w: Workspace, point: str) -> Came:
    """A's model is in place; B's export is killed there; B is started again."""
    w.run(adam__lr=5e-3)
    first = load_file(w.out / "model.safetensors")
    w.remember(w.out / "model.safetensors")
    w.run(env={"OPENRLHF_FAULT_POINT": point}, **SAVING)
    came = w.run(ckpt__load_enable=True, **SAVING)
    second = load_file(w.out / "model.safetensors")
    if all((second[name] == first[name]).all() for name in first):
        return Came(came.exit_code, came.said + "\nthe first run's model passes as the second one's", came.seconds)
    return came


def changed(w: Workspace) -> list[str]:
    return w.changed()


def lost(w: Workspace) -> list[str]:
    return w.lost()


def _refused(name: str, do: Callable[[Workspace], Came], *words: str, in_suite: bool = False) -> Case:
    return Case(name, do, words, then=changed, in_suite=in_suite)


def _kept(name: str, do: Callable[[Workspace], Came], *words: str, in_suite: bool = False) -> Case:
    return Case(name, do, words or ("the model is in",), exit_code=0, then=lost, in_suite=in_suite)


CASES = (
    _refused(
        "--ckpt.output_dir is empty", lambda w: w.run(ckpt__output_dir=""), "--ckpt.output_dir", EMPTY, in_suite=True
    ),
    _refused("--ckpt.output_dir is a space", lambda w: w.run(ckpt__output_dir=" "), "--ckpt.output_dir", EMPTY),
    _refused("--ckpt.path is empty", lambda w: w.run(ckpt__path=""), "--ckpt.path", EMPTY),
    _refused(
        "--ckpt.path is empty, without checkpoints",
        lambda w: w.run(ckpt__path="", ckpt__disable_ds=True),
        "--ckpt.path",
        EMPTY,
    ),
    _refused("--ckpt.output_dir is a file", lambda w: w.run(ckpt__output_dir=w.rows), "cannot be written"),
    _refused("--ckpt.path is a file", lambda w: w.run(ckpt__path=w.rows), "cannot be written"),
    _refused("--ckpt.output_dir holds a zero byte", lambda w: w.run(ckpt__output_dir="a\0b"), "holds a zero byte"),
    _refused(
        "--ckpt.output_dir has a name of 300 letters", lambda w: w.run(ckpt__output_dir="x" * 300), "cannot be written"
    ),
    _refused("output over the model", lambda w: run_over_model(w, lambda w: str(w.model)), IS_MODEL, in_suite=True),
    _refused("output over the model, by ./", lambda w: run_over_model(w, lambda w: "./model/."), IS_MODEL),
    _refused("output over the model, by ..", lambda w: run_over_model(w, lambda w: "model/../model"), IS_MODEL),
    _refused("output over the model, by a link", linked_model, IS_MODEL),
    _refused("output over another model", another_model, ANOTHER, in_suite=True),
    _refused(
        "output over another model, with --ckpt.load_enable",
        lambda w: another_model(w, ckpt__load_enable=True),
        ANOTHER,
    ),
    _refused(
        "output into the working folder, in which a model lies",
        lambda w: another_model(w, "x/../theirs", ckpt__output_dir="theirs/"),
        ANOTHER,
    ),
    _refused("output over an adapter", adapter_there, ANOTHER),
    _refused("inspect_data --html over the data", lambda w: report_over(w, w.rows), NO_REPORT, in_suite=True),
    _refused("inspect_data --html over a model's file", lambda w: report_over(w, w.model / "config.json"), NO_REPORT),
    _refused("inspect_data --html over the data, by a link", report_over_link, NO_REPORT),
    _refused("inspect_data --html is a folder", lambda w: report_over(w, w.model), NO_REPORT),
    _refused("inspect_data --html over an empty file", lambda w: report_over(w, w.write("empty", "")), NO_REPORT),
    _refused(
        "inspect_data --html below a file", lambda w: w.run("--html", f"{w.rows}/x.html", command=INSPECT), "cannot be"
    ),
    Case("inspect_data --html over its own report", report_twice, ("wrote report.html",), exit_code=0),
    _refused("the model lies among the checkpoints", model_among_checkpoints, AMONG, in_suite=True),
    _refused(
        "the model lies among the checkpoints, with --ckpt.load_enable",
        lambda w: model_among_checkpoints(w, ckpt__load_enable=True),
        AMONG,
    ),
    _refused(
        "the model lies deeper among the checkpoints", lambda w: model_among_checkpoints(w, "global_step9/hf"), AMONG
    ),
    _refused("the model is linked among the checkpoints", model_linked_among_checkpoints, AMONG),
    _refused("the model lies among the checkpoints, whose folder is a link", checkpoints_by_link, AMONG),
    _refused("the rows lie in a checkpoint", lambda w: rows_among_checkpoints(w, "data__dataset"), AMONG),
    _refused(
        "the rows of the evaluation lie in a checkpoint", lambda w: rows_among_checkpoints(w, "eval__dataset"), AMONG
    ),
    _refused(
        "the output lies in a checkpoint", lambda w: w.run(ckpt__output_dir=w.out / "checkpoints/global_step2"), AMONG
    ),
    _kept(
        "the model lies in a folder of checkpoints by another name",
        lambda w: model_among_checkpoints(w, "earlier_run_1/global_step1_hf"),
    ),
    _kept("checkpoints of DeepSpeed's own lie in --ckpt.path", foreign_checkpoints, "of an earlier run", in_suite=True),
    _refused(
        "checkpoints of DeepSpeed's own are to be gone on from",
        lambda w: foreign_checkpoints(w, ckpt__load_enable=True),
        "no whole checkpoint is left",
    ),
    _kept("files named latest and best.json lie in --ckpt.path", files_named_as_ours),
    _kept(
        "files named latest and best.json, with --ckpt.load_enable",
        lambda w: files_named_as_ours(w, ckpt__load_enable=True),
    ),
    _kept("a user's notes lie in a checkpoint that is rotated away", notes_in_checkpoint, in_suite=True),
    _kept("a user's model is named global_step2_hf", own_export_among_ours),
    _kept("three fresh starts into one folder", three_starts, in_suite=True),
    _kept("three fresh starts into one folder, with checkpoints", lambda w: three_starts(w, **SAVING)),
    _kept("a run goes on into the output folder of another", another_runs_output),
    _kept("a user's files lie beside the model", files_beside_the_model),
    _kept("a user's files and folders have the names of the model's", names_of_model_files),
    *(
        Case(
            f"an export is killed at {point} over another run's model, and started again",
            lambda w, point=point: killed_over_another(w, point),
            ("nothing is trained", "the model is in"),
            exit_code=0,
            must_not_see=("passes as the second",),
            then=lost,
            in_suite=point == "export.half_in_place",
        )
        for point in (
            "export.shard_written",
            "export.old_config_removed",
            "export.half_in_place",
            "export.before_config",
        )
    ),
)
