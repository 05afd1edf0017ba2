"""Settings that cannot be: the command line, and files of settings."""

from __future__ import annotations

from tests.hostile.case import Case

CASES = (
    Case(
        "--ds.zero_stage 4",
        lambda w: w.run(ds__zero_stage=4),
        must_see=("--ds.zero_stage is '4'",),
        in_suite=True,
    ),
    Case(
        "a run without any mistake (the harness itself)",
        lambda w: w.run(),
        must_see=("the model is in",),
        exit_code=0,
        then=lambda w: () if (w.out / "model.safetensors").is_file() else ("no model was exported",),
        in_suite=True,
    ),
)
