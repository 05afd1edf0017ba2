"""Whether both contestants compute the same loss: in float32, on the case's first 8 samples, in the first step.

The reference of DPO has weights of its own here: held to itself, a policy's loss is ln 2 whatever is computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases import Case, job_of
from benchmarks.contestants import Job, Settings
from benchmarks.materials import Material
from benchmarks.measures import Bench

NUM_SAMPLES = 8


class LossesDiffer(RuntimeError):
    """The contestants do not train the same thing: their speeds cannot be compared."""


def check_same_loss(bench: Bench, case: Case) -> dict[str, Any]:
    """Loss of each contestant with the settings that are measured.

    Raises LossesDiffer where one is further than the case's tolerance (relative) from ours.
    """
    job = loss_job(bench, case)
    losses = {name: our_loss(bench, job, settings) for name, settings in case.ours.items()}
    if bench.trl is not None:
        losses |= {name: trl_loss(bench, job, settings) for name, settings in case.trl.items()}
    reference = next(iter(losses.values()))
    worst = max(abs(loss - reference) / reference for loss in losses.values())
    if worst > case.loss_tolerance:
        raise LossesDiffer(f"case {case.name}: losses on the same rows differ by {worst:.1e}: {losses}")
    return {"losses": losses, "largest_relative_difference": worst, "num_samples": job.batch_size}


def loss_material(case: Case) -> Material:
    return replace(case.material, num_rows=min(NUM_SAMPLES, case.batch_size))


def loss_job(bench: Bench, case: Case) -> Job:
    """All samples in one step of one micro-batch."""
    material = loss_material(case)
    job, _ = job_of(replace(case, material=material), bench.materials)
    reference = bench.materials.model(f"{case.model}_reference") if case.task == "dpo" else None
    number = material.num_rows
    return replace(job, batch_size=number, micro_batch_size=number, precision="fp32", reference=reference)


def our_loss(bench: Bench, job: Job, settings: Settings) -> float:
    return bench.ours.run(job, settings, "loss_ours", stop_after_steps=1).steps[0]["loss"]


def trl_loss(bench: Bench, job: Job, settings: Settings) -> float:
    """With the setting's own micro-batches, and as many of them as hold all samples."""
    assert bench.trl is not None
    settings = {key: value for key, value in settings.items() if key != "gradient_accumulation_steps"}
    return bench.trl.run(job, {**settings, "logging_steps": 1}, "loss_trl").losses[0]
