"""The end of a run: what the export needs, what is kept where it fails, whose model lies there, numbers not finite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.fault_points import EXPORT_POINTS
from tests.hostile import hooks
from tests.hostile.case import Came, Case
from tests.hostile.groups.ownership import is_exported
from tests.hostile.workspace import Workspace

IN_CHECKPOINT = "The trained weights are in the checkpoint"
DONE = ("the model is in", "this run has finished")
AGAIN = dict(ckpt__load_enable=True)


def with_generation(w: Workspace, **settings: Any) -> Came:
    """The base model's generation settings are these, as some published models ship them."""
    path = w.model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return w.run()


def generates(w: Workspace) -> Iterator[str]:
    from transformers import GenerationConfig

    yield from is_exported(w)
    try:
        GenerationConfig.from_pretrained(w.out).validate(strict=True)
    except (ValueError, OSError) as error:
        yield f"the exported settings cannot be used: {error}"


def fails_at(w: Workspace, point: str, **how: Any) -> Came:
    """The disk is full at that point of the export; then the run is started again. What both have said."""
    first = w.run(env={"OPENRLHF_FAULT_POINT": f"{point}:1:disk_full"}, **how)
    assert first.exit_code == 2, first
    again = w.run(**(AGAIN | how))
    return Came(again.exit_code, first.said + again.said, first.seconds + again.seconds)


def damaged(w: Workspace, damage: Callable[[Path], object]) -> Came:
    """A finished run's model is damaged; the run is started again."""
    w.run(ckpt__save_steps=4)
    damage(w.out)
    return w.run(ckpt__save_steps=4, **AGAIN)


def flip_a_bit(out: Path) -> None:
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (out / "model.safetensors").write_bytes(data)


def put_base_model_there(w: Workspace) -> Callable[[Path], object]:
    return lambda out: shutil.copy(w.model / "model.safetensors", out / "model.safetensors")


def longer(w: Workspace, **changes: Any) -> Came:
    w.run(ckpt__save_steps=4)
    return w.run(ckpt__save_steps=4, **AGAIN, **changes)


def no_model(w: Workspace) -> list[str]:
    return ["a model was exported"] if (w.out / "config.json").exists() else []


def kept_alone(w: Workspace) -> list[str]:
    found = list(w.folder.rglob("weights_of_step4_1/model.safetensors"))
    return [] if found else ["no weights are kept"]


def _generation(name: str, *words: str, in_suite: bool = False, **settings: Any) -> Case:
    return Case(
        f"generation_config.json has {name}",
        lambda w: with_generation(w, **settings),
        ("note: generation_config.json", *words) if words else ("the model is in",),
        exit_code=0,
        then=generates,
        in_suite=in_suite,
    )


SAMPLING = "has settings of sampling without do_sample"

CASES = (
    _generation("temperature without do_sample", SAMPLING, temperature=0.6, in_suite=True),
    _generation("temperature and do_sample false", SAMPLING, temperature=0.6, do_sample=False),
    _generation("top_p without do_sample", SAMPLING, top_p=0.9),
    _generation("top_k without do_sample", SAMPLING, top_k=20),
    _generation("min_p and typical_p without do_sample", SAMPLING, min_p=0.1, typical_p=0.9),
    _generation("temperature, top_p and top_k without do_sample", SAMPLING, temperature=0.6, top_p=0.9, top_k=5),
    Case(
        "generation_config.json asks for several answers without beams or sampling",
        lambda w: with_generation(w, num_return_sequences=4),
        ("generation_config.json cannot be used", "Mend it, or remove the file"),
        then=no_model,
    ),
    _generation("a length penalty without beams", "the usual settings", length_penalty=0.5),
    _generation("beams of early stopping without beams", "the usual settings", early_stopping=True),
    _generation("temperature with do_sample", temperature=0.6, do_sample=True),
    Case(
        "the disk of the output has too little space",
        lambda w: w.run(before=hooks.little_space, ckpt__disable_ds=True),
        ("could not be exported", "GiB are free", "Nothing is trained"),
        then=no_model,
        in_suite=True,
    ),
    *(
        Case(
            f"the disk is full at {point}, without --ckpt.save_steps; started again",
            lambda w, point=point: fails_at(w, point),
            ("No space left on device", IN_CHECKPOINT, "nothing is trained", "the model is in"),
            exit_code=0,
            then=is_exported,
            in_suite=point == "export.half_of_shard_written",
        )
        for point in EXPORT_POINTS
        if point not in ("export.begun", "export.in_place")
    ),
    Case(
        "the disk is full at the export, with --ckpt.disable_ds; started again",
        lambda w: fails_at(w, "export.shard_written", ckpt__disable_ds=True),
        (IN_CHECKPOINT, "nothing is trained", "the model is in"),
        exit_code=0,
        then=is_exported,
    ),
    Case(
        "the disk is full at the export, with a checkpoint of each step; started again",
        lambda w: fails_at(w, "export.shard_written", ckpt__save_steps=1),
        (IN_CHECKPOINT, "nothing is trained", "the model is in"),
        exit_code=0,
        then=is_exported,
    ),
    Case(
        "the disk is full at the export, on two ranks with ZeRO 3; started again",
        lambda w: fails_at(w, "export.shard_written", num_ranks=2, ds__zero_stage=3),
        (IN_CHECKPOINT, "nothing is trained", "the model is in"),
        exit_code=0,
        then=is_exported,
    ),
    Case(
        "the export fails once, and no checkpoint fits",
        lambda w: w.run(
            before=hooks.checkpoints_do_not_fit, env={"OPENRLHF_FAULT_POINT": "export.shard_written:1:disk_full"}
        ),
        ("The weights after step 4 are in", "which nothing here removes"),
        then=kept_alone,
    ),
    Case(
        "nothing at all can be written at the end",
        lambda w: w.run(before=hooks.nothing_fits),
        ("could not be exported", "No folder could take the weights after step 4"),
        must_not_see=DONE,
    ),
    Case(
        "the disk of the checkpoints is full at the last step alone",
        lambda w: w.run(before=hooks.checkpoints_do_not_fit, ckpt__save_steps=4, ckpt__max_failed_saves_in_a_row=1),
        ("run stops", "which nothing here removes"),
        exit_code=3,
    ),
    Case(
        "the disk of the checkpoints is full when the last checkpoint is written",
        lambda w: w.run(before=hooks.checkpoints_do_not_fit, ckpt__save_steps=100, ckpt__max_failed_saves_in_a_row=1),
        ("warning: checkpoint of step 4 not begun", "the model is in"),
        exit_code=0,
        then=is_exported,
        in_suite=True,
    ),
    Case(
        "the disk of the checkpoints is full at every save",
        lambda w: w.run(before=hooks.checkpoints_do_not_fit, ckpt__save_steps=1),
        ("3 saves in a row have failed", "The weights after step 3 are in"),
        exit_code=3,
    ),
    Case(
        "a finished run is started again",
        lambda w: damaged(w, lambda out: None),
        ("this run has finished", "Nothing is done"),
        exit_code=0,
        then=is_exported,
    ),
    *(
        Case(
            f"{name} of a finished run; started again",
            do,
            ("this run has finished, and its model is not exported yet", "the model is in"),
            exit_code=0,
            then=is_exported,
            in_suite=name == "a bit is flipped in the model",
        )
        for name, do in {
            "a bit is flipped in the model": lambda w: damaged(w, flip_a_bit),
            "the weights are removed": lambda w: damaged(w, lambda out: (out / "model.safetensors").unlink()),
            "the configuration is removed": lambda w: damaged(w, lambda out: (out / "config.json").unlink()),
            "the tokenizer is removed": lambda w: damaged(w, lambda out: (out / "tokenizer.json").unlink()),
            "the manifest is removed": lambda w: damaged(w, lambda out: (out / "manifest.json").unlink()),
            "the manifest is damaged": lambda w: damaged(w, lambda out: (out / "manifest.json").write_text("[1]")),
            "the base model's weights lie in the output": lambda w: damaged(w, put_base_model_there(w)),
            "the output folder is removed, metrics and all,": lambda w: damaged(
                w, lambda out: [path.unlink() for path in out.iterdir() if path.is_file()]
            ),
        }.items()
    ),
    Case(
        "--train.max_epochs is raised for a finished run",
        lambda w: longer(w, train__max_epochs=2),
        ("is 8 from here on; the checkpoint's was 4", "going on from", "the model is in"),
        exit_code=0,
        then=is_exported,
        in_suite=True,
    ),
    Case(
        "--train.max_epochs is lowered for a finished run",
        lambda w: longer(w, train__max_steps=2),
        ("the horizon of the learning rate schedule", "differs: 4 in the checkpoint, 2 now"),
    ),
    Case(
        "the loss of every step is nan",
        lambda w: w.run(train__loss="tests.hostile.hooks:LossIsNan"),
        ("--train.max_nonfinite_steps_in_a_row", "loss nan"),
        exit_code=3,
        must_not_see=DONE,
        then=no_model,
    ),
    Case(
        "the loss is nan in a run shorter than the rule that stops it",
        lambda w: w.run(train__loss="tests.hostile.hooks:LossIsNan", train__max_steps=2, ckpt__save_steps=1),
        ("the loss of the last step, 2, is not finite",),
        exit_code=3,
        must_not_see=DONE,
        then=no_model,
        in_suite=True,
    ),
    Case(
        "weights are nan after the last step",
        lambda w: w.run(train__callbacks="tests.hostile.hooks:WeightsBecomeNan"),
        ("weights are not finite", "they are not kept"),
        exit_code=3,
        must_not_see=DONE,
        then=no_model,
        in_suite=True,
    ),
    Case(
        "weights are nan after the last step, on two ranks with ZeRO 3",
        lambda w: w.run(train__callbacks="tests.hostile.hooks:WeightsBecomeNan3", num_ranks=2, ds__zero_stage=3),
        ("weights are not finite",),
        exit_code=3,
        must_not_see=DONE,
        then=no_model,
    ),
)
