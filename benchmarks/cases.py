"""The cases: what is trained, and with which settings each contestant runs.

`ours` holds flags of the command line over the job's own; `trl` holds, for each setting of TRL that is measured,
arguments of its configuration over the job's own (no arguments: TRL's defaults). What was tried to find TRL's best is
in benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.contestants import Job
from benchmarks.materials import Material, Materials, RowFacts

DEFAULTS: dict[str, Any] = {}
NO_CHECKPOINTING = {"gradient_checkpointing": False}
PACKED_TO_448 = {  # about 32 samples a step; the longest sample of GSM8K has 430 tokens, TRL would cut a longer one
    **NO_CHECKPOINTING,
    "packing": True,
    "max_length": 448,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 11,
}
PAIRS = {**NO_CHECKPOINTING, "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
PAIRS_COMPILED = {**PAIRS, "torch_compile": True}  # at its first start two minutes go by before the first step
ONE_BY_ONE = {**NO_CHECKPOINTING, "per_device_train_batch_size": 1}  # no padding either
PACKED = {"ds.packing_samples": True, "ds.zero_stage": 1, "logger.logging_steps": 1}
RECOMPUTED = {"model.gradient_checkpointing_enable": True}  # as TRL's defaults do
NO_FLAGS = {"train.micro_batch_size": None}  # the layout is the run's own choice
NO_LAYOUT_FLAGS = {**NO_FLAGS, "model.compile_layers": True}
FUSED = {**PACKED, "model.compile_layers": True}
PAIRS_FUSED = {**FUSED, "train.max_tokens_per_micro_batch": 8_192}
# TRL's padding_free is ignored by its DPO and unknown to its reward modelling; packing is unknown to both.
COMPUTED_ONCE = {"precompute_ref_log_probs": True}
TRL_DPO_BEST = {**NO_CHECKPOINTING, "per_device_train_batch_size": 1}
TRL_COMPILED = {**TRL_DPO_BEST, "torch_compile": True}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        kind: what is measured, a key of `measures.MEASURES`.
        batch_size, micro_batch_size: samples an optimizer step; samples that TRL computes at once.
        warm_up_steps: steps before the clock starts.
        max_rounds: of a contestant that would take too long to be run in every round.
        facts: further numbers of the kind.
        task: sft, dpo or rm.
        loss_tolerance: relative, of the first step's loss in float32.
        precision: bf16 or fp32, for all contestants.
    """

    name: str
    title: str
    kind: str
    model: str
    material: Material
    batch_size: int
    micro_batch_size: int
    max_len: int
    ours: Mapping[str, Mapping[str, Any]]
    trl: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warm_up_steps: int = 1
    max_rounds: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    num_threads: int = 2
    task: str = "sft"
    loss_tolerance: float = 1e-5
    precision: str = "bf16"

    @property
    def has_shares_of_peak(self) -> bool:
        """Pairs have none: they share prompts, and a reference computes besides, so no count of operations fits all."""
        return self.kind == "speed" and self.task == "sft"

    @property
    def contestants(self) -> list[str]:
        return [*self.ours, *self.trl]


_ALL = (
    Case(
        name="a",
        title="18.9M parameters, GSM8K",
        kind="speed",
        model="small",
        material=Material("text", 3 * 32),
        batch_size=32,
        micro_batch_size=8,
        max_len=1_024,
        ours={
            "ours": {**FUSED, "train.max_tokens_per_micro_batch": 8_192},
            "ours_no_layout_flags": NO_LAYOUT_FLAGS,
            "ours_no_flags": NO_FLAGS,
        },
        trl={
            "trl_defaults": DEFAULTS,
            "trl_packed": PACKED_TO_448,
            "trl_pairs": PAIRS,
            "trl_pairs_compiled": PAIRS_COMPILED,
        },
        max_rounds=dict.fromkeys(("trl_defaults", "trl_packed", "trl_pairs"), 3) | {"trl_pairs_compiled": 1},
    ),
    Case(
        name="b",
        title="vocabulary 151,936",
        kind="speed",
        model="large_vocabulary",
        material=Material("text", 2 * 8),
        batch_size=8,
        micro_batch_size=8,
        max_len=1_024,
        ours={"ours": {**PACKED, **RECOMPUTED, "train.max_tokens_per_micro_batch": 2_048}, "ours_no_flags": NO_FLAGS},
        trl={"trl_defaults": DEFAULTS, "trl_best": ONE_BY_ONE},
        max_rounds={"trl_defaults": 3, "trl_best": 1},
    ),
    Case(
        name="c",
        title="one sample of 8,192 tokens",
        kind="speed",
        model="small",
        material=Material("fixed_length", 2, 8_192),
        batch_size=1,
        micro_batch_size=1,
        max_len=8_192,
        ours={
            "ours": {**FUSED, "train.max_tokens_per_micro_batch": 8_192},
            "ours_no_layout_flags": NO_LAYOUT_FLAGS,
            "ours_no_flags": NO_FLAGS,
        },
        trl={"trl_defaults": DEFAULTS, "trl_best": NO_CHECKPOINTING},
        max_rounds={"trl_defaults": 3, "trl_best": 1},
    ),
    Case(
        name="d",
        title="lengths from 16 to 2,048",
        kind="speed",
        model="small",
        material=Material("uneven", 3 * 8, 2_048),
        batch_size=8,
        micro_batch_size=8,
        max_len=2_048,
        ours={
            "ours": {**FUSED, "train.max_tokens_per_micro_batch": 8_192},
            "ours_no_layout_flags": NO_LAYOUT_FLAGS,
            "ours_no_flags": NO_FLAGS,
        },
        trl={"trl_defaults": DEFAULTS, "trl_best": ONE_BY_ONE},
        max_rounds={"trl_defaults": 3, "trl_best": 1},
    ),
    Case(
        name="e",
        title="preparing 150,000 rows",
        kind="preparation",
        model="small",
        material=Material("changed_text", 150_000),
        batch_size=8,
        micro_batch_size=8,
        max_len=1_024,
        ours={"ours": {**PACKED, "train.max_tokens_per_micro_batch": 4_096}},
        trl={"trl_defaults": DEFAULTS, "trl_2_processes": {"dataset_num_proc": 2}},
        max_rounds={"trl_defaults": 3, "trl_2_processes": 3},
        facts={"few_rows": Material("text", 64)},
    ),
    Case(
        name="f",
        title="launch to first step",
        kind="start",
        model="small",
        material=Material("text", 7_473),
        batch_size=8,
        micro_batch_size=8,
        max_len=1_024,
        ours={"ours": {**PACKED, "train.max_tokens_per_micro_batch": 4_096}},
        trl={"trl_defaults": DEFAULTS},
    ),
    Case(
        name="g",
        title="resuming",
        kind="resume",
        model="small",
        material=Material("fixed_length", 1_000_020, 8),
        batch_size=10,
        micro_batch_size=10,
        max_len=64,
        ours={"at_sample_10": PACKED, "at_sample_1000000": PACKED},
        facts={"consumed_samples": {"at_sample_10": 10, "at_sample_1000000": 1_000_000}},
    ),
    Case(
        name="h",
        title="saving",
        kind="saving",
        model="large_vocabulary",
        material=Material("fixed_length", 65 * 8, 32),
        batch_size=8,
        micro_batch_size=8,
        max_len=64,
        ours={
            "in_background": {**PACKED, "ckpt.save_steps": 30},
            "blocking": {**PACKED, "ckpt.save_steps": 30, "ckpt.background_save": "false"},
        },
    ),
    Case(
        name="i",
        title="DPO, reference computed before",
        kind="speed",
        task="dpo",
        model="small",
        material=Material("pairs", 2 * 16),
        batch_size=16,
        micro_batch_size=4,
        max_len=1_024,
        ours={"ours": {**PAIRS_FUSED, "ref.precompute": True}},
        trl={"trl_best": {**TRL_DPO_BEST, **COMPUTED_ONCE}},  # with torch_compile it ends in a TypeError
    ),
    Case(
        name="j",
        title="DPO, reference computed beside",
        kind="speed",
        task="dpo",
        model="small",
        material=Material("pairs", 2 * 16),
        batch_size=16,
        micro_batch_size=4,
        max_len=1_024,
        ours={"ours": PAIRS_FUSED},
        trl={"trl_best": TRL_DPO_BEST, "trl_compiled": TRL_COMPILED},
        max_rounds={"trl_compiled": 1},
    ),
    Case(
        name="k",
        title="reward model",
        kind="speed",
        task="rm",
        model="small_reward",
        material=Material("pairs", 5 * 16),
        batch_size=16,
        micro_batch_size=4,
        max_len=1_024,
        ours={"ours": PAIRS_FUSED},
        trl={"trl_best": TRL_DPO_BEST, "trl_compiled": TRL_COMPILED},
        warm_up_steps=2,  # torch.compile makes a second graph where a pack passes 4,096 tokens
        max_rounds={"trl_compiled": 2},
    ),
    Case(
        name="l",
        title="DPO, prompts of 1,000 tokens, answers of 100",
        kind="speed",
        task="dpo",
        model="small",
        material=Material("long_pairs", 3 * 2, 1_000),
        batch_size=2,
        micro_batch_size=2,
        max_len=2_048,
        ours={"ours": {**PAIRS_FUSED, "ref.precompute": True}},
        trl={"trl_best": {**TRL_DPO_BEST, **COMPUTED_ONCE}},
    ),
    Case(
        name="m",
        title="DPO, vocabulary 151,936",
        kind="speed",
        task="dpo",
        model="large_vocabulary",
        material=Material("pairs", 2 * 8),
        batch_size=8,
        micro_batch_size=8,  # TRL's own default
        max_len=1_024,
        ours={"ours": {**PACKED, **RECOMPUTED, "ref.precompute": True, "train.max_tokens_per_micro_batch": 2_048}},
        trl={"trl_defaults": COMPUTED_ONCE, "trl_best": {**TRL_DPO_BEST, **COMPUTED_ONCE}},
        max_rounds={"trl_defaults": 1},
    ),
    Case(
        name="n",
        title="DPO, vocabulary 151,936, prompts of 1,000 tokens, answers of 100",
        kind="speed",
        task="dpo",
        model="large_vocabulary",
        material=Material("long_pairs", 3 * 2, 1_000),
        batch_size=2,
        micro_batch_size=2,
        max_len=1_152,
        ours={"ours": {**PACKED, **RECOMPUTED, "ref.precompute": True, "train.max_tokens_per_micro_batch": 2_304}},
        trl={"trl_defaults": COMPUTED_ONCE, "trl_best": {**TRL_DPO_BEST, **COMPUTED_ONCE}},
        max_rounds={"trl_defaults": 1},
        loss_tolerance=3e-5,  # log-probs of answers are about -1,200: float32 rounds them to 1.2e-4, times beta 1.2e-5
    ),
)

CASES = {case.name: case for case in _ALL}


def on_processor(case: Case, features: list[str]) -> Case:
    """The case in float32 for all contestants where the processor has no products of bfloat16.

    torch's own products of bfloat16, which TRL would use, are slower there by an order of magnitude. In float32 ZeRO's
    stage 1 holds the weights twice; ours does without it on its one rank.
    """
    if not case.trl or {"avx512_bf16", "amx_tile"}.intersection(features) or "avx2" not in features:
        return case
    ours = {
        name: {key: 0 if key == "ds.zero_stage" else value for key, value in one.items()}
        for name, one in case.ours.items()
    }
    return replace(case, precision="fp32", ours=ours)


def quick_form(case: Case) -> Case:
    """The same case at a size of seconds, in one setting of ours: the suite runs, its figures mean nothing."""
    material = replace(
        case.material,
        num_rows=min(
            case.material.num_rows, 2_020 if case.kind == "resume" else (case.warm_up_steps + 1) * case.batch_size
        ),
        length_tokens=min(case.material.length_tokens, 128),
        tokenizer_of="tiny",
    )
    facts = dict(case.facts)
    if case.kind == "saving":
        material = replace(material, num_rows=case.material.num_rows)
    if case.kind == "resume":
        facts["consumed_samples"] = {"at_sample_10": 10, "at_sample_1000000": 2_000}
    if case.kind == "preparation":
        material = replace(material, num_rows=2_000)
        facts["few_rows"] = replace(case.facts["few_rows"], num_rows=16, tokenizer_of="tiny")
    title = f"{case.title}, at a toy size"
    model = "tiny_reward" if case.task == "rm" else "tiny"
    not_compiled = {name: {**settings, "model.compile_layers": None} for name, settings in case.ours.items()}
    if case.kind == "speed":  # other settings of ours are the same code
        not_compiled = {"ours": not_compiled["ours"]}
    return replace(case, title=title, model=model, material=material, ours=not_compiled, facts=facts)


def job_of(case: Case, materials: Materials) -> tuple[Job, RowFacts]:
    """The case's job, and what is in its rows."""
    facts = materials.rows(case.material)
    model = materials.model(case.model)
    job = Job(
        model,
        facts.path,
        case.batch_size,
        case.micro_batch_size,
        case.max_len,
        precision=case.precision,
        num_threads=case.num_threads,
        task=case.task,
    )
    return job, facts
