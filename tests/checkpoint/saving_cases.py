"""Functions that the ranks run in test_checkpointer.py."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from openrlhf.checkpoint import fault_points, training_state
from openrlhf.checkpoint.checkpointer import Checkpointer, SaveReport
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import CheckpointStore
from openrlhf.config import CkptConfig
from openrlhf.errors import UserError
from openrlhf.strategy.checkpoints import Checkpointers, save_by_name
from tests.checkpoint.engines import new_engine, train, whole_state

IDENTITY = RunIdentity({"train.seed": 42}, data_fingerprint="d", num_samples=100, model_shape="m")


def _checkpointer(root: str) -> Checkpointer:
    return Checkpointer(CheckpointStore(root, max_num=3), dist.group.WORLD)


def _save(checkpointer: Checkpointer, engine: Any, step: int) -> SaveReport:
    progress = TrainingProgress(optimizer_step=step, consumed_samples=8 * step)
    return checkpointer.save(engine, progress, IDENTITY, client_state={"note": f"step {step}"})


def save_twice(root: str) -> None:
    engine, checkpointer = new_engine(2, "bf16"), _checkpointer(root)
    for step in (1, 2):
        train(engine, step - 1, step)
        report = _save(checkpointer, engine, step)
        assert report.problems == ()
    assert checkpointer.wait().problems == ()


def resume(root: str) -> tuple[TrainingProgress, dict[str, Any], bool, list[str]]:
    engine, checkpointer = new_engine(3, "bf16"), _checkpointer(root)
    found, notes = checkpointer.find()
    assert found is not None
    loaded = checkpointer.load(engine, found)
    return loaded.progress, loaded.client_state, loaded.is_random_restored, notes


def save_with_a_failing_rank(root: str, failing_rank: int, point: str) -> tuple[SaveReport, SaveReport, list[str]]:
    engine, checkpointer = new_engine(2), _checkpointer(root)
    train(engine, 0, 1)
    _save(checkpointer, engine, 1)
    checkpointer.wait()
    with_fault(failing_rank, point)
    _save(checkpointer, engine, 2)
    failed = checkpointer.wait()
    without_fault()
    _save(checkpointer, engine, 3)
    after = checkpointer.wait()
    names = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
    dist.barrier()
    return failed, after, names


def with_fault(failing_rank: int, point: str) -> None:
    fault_points._times_passed.clear()
    if dist.get_rank() == failing_rank:
        os.environ[fault_points.ENVIRONMENT_VARIABLE] = f"{point}:1:disk_full"


def without_fault() -> None:
    os.environ.pop(fault_points.ENVIRONMENT_VARIABLE, None)


def save_without_room(root: str) -> SaveReport:
    from openrlhf.checkpoint import checkpointer as module

    engine, checkpointer = new_engine(2), _checkpointer(root)
    real = module.size_bytes_to_save
    module.size_bytes_to_save = lambda engine: 1 << 50
    try:
        return _save(checkpointer, engine, 1)
    finally:
        module.size_bytes_to_save = real


def save_without_memory(root: str) -> tuple[list[SaveReport], list[str], int, bool]:
    """Two saves of a machine that has no memory left: reports, what is there after each, memory held, whether whole."""
    from openrlhf.checkpoint import host_memory

    engine, checkpointer = new_engine(2), _checkpointer(root)
    real, host_memory.bytes_left = host_memory.bytes_left, lambda: 100
    reports, there = [], []
    try:
        for step in (1, 2):
            train(engine, step - 1, step)
            reports.append(_save(checkpointer, engine, step))
            there += [path.name for path in Path(root).glob(f"global_step{step}")]
    finally:
        host_memory.bytes_left = real
    at_save = whole_state(engine)
    train(engine, 2, 3)
    found, _ = checkpointer.find()
    assert found is not None
    checkpointer.load(engine, found)
    again = whole_state(engine)
    is_whole = all(torch.equal(again[key], at_save[key]) for key in at_save)
    return reports, there, len(checkpointer._buffer._memory), is_whole


def save_and_train_on(root: str) -> dict[str, torch.Tensor]:
    """The state at the moment of saving; two more steps run while it is written."""
    engine, checkpointer = new_engine(3), _checkpointer(root)
    train(engine, 0, 1)
    at_save = whole_state(engine)
    with _SlowWriting(seconds=0.3):
        _save(checkpointer, engine, 1)
        train(engine, 1, 3)
        checkpointer.wait()
    return at_save


def whole_state_after_resume(root: str) -> dict[str, torch.Tensor]:
    engine, checkpointer = new_engine(3), _checkpointer(root)
    found, _ = checkpointer.find()
    assert found is not None
    checkpointer.load(engine, found)
    return whole_state(engine)


def time_a_slow_save(root: str) -> tuple[float, float]:
    engine, checkpointer = new_engine(2), _checkpointer(root)
    with _SlowWriting(seconds=2.0):
        start = time.monotonic()
        _save(checkpointer, engine, 1)
        returned = time.monotonic()
        checkpointer.wait()
        return returned - start, time.monotonic() - returned


class _SlowWriting:
    """A disk that takes `seconds` before each rank's tensors."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._real = training_state.write_tensors

    def __enter__(self) -> None:
        training_state.write_tensors = self._slow

    def _slow(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self._seconds)
        return self._real(*args, **kwargs)

    def __exit__(self, *exc_info: object) -> None:
        training_state.write_tensors = self._real


def error_of_resuming_with_another_seed(root: str) -> str:
    from openrlhf.engine.step_guard import StepGuard
    from openrlhf.engine.trained_model import TrainedModel
    from openrlhf.strategy.checkpoints import load_found

    trained, checkpointer = TrainedModel(new_engine(2, "bf16"), None, StepGuard()), _checkpointer(root)
    found, _ = checkpointer.find()
    assert found is not None
    try:
        load_found(checkpointer, trained, found, replace(IDENTITY, must_match={"train.seed": 43}), False, print)
    except UserError as error:
        return str(error)
    return "nothing was raised"


def train_and_export(stage: int, kind: str, folder: str) -> bool:
    """True where plain transformers computes the same with the exported model as the engine."""
    from transformers import AutoModelForCausalLM

    from openrlhf.checkpoint.export import export_model

    engine, rows = _language_model_engine(stage, kind), torch.arange(12).reshape(2, 6)
    engine.backward(engine(rows, labels=rows).loss)
    engine.step()
    with torch.no_grad():
        meant = engine(rows).logits.clone()
    export_model(engine.module, None, folder, dist.group.WORLD, max_shard_bytes=100_000)
    again = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        is_same = torch.equal(again(rows).logits, meant)
    dist.barrier()
    return is_same


def error_of_exporting_to_a_full_disk(folder: str) -> str:
    from openrlhf.checkpoint.export import export_model

    engine = _language_model_engine(3, "qwen3")
    with_fault(0, "export.half_of_shard_written")
    try:
        export_model(engine.module, None, folder, dist.group.WORLD, max_shard_bytes=100_000)
    except UserError as error:
        return str(error)
    finally:
        without_fault()
    return "nothing was raised"


def _language_model_engine(stage: int, kind: str) -> Any:
    import deepspeed

    from tests.helpers.tiny_models import tiny_model

    model = tiny_model(kind)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def begin_in_folders(
    folder: str, folder_of_rank_1: str, must_save: bool | None = None, **settings: Any
) -> tuple[str, list[str]]:
    """What a run that begins is refused with, and told: its folders are relative, and each rank stands in one."""
    said: list[str] = []
    try:
        ckpt = CkptConfig("out", "ck", **settings)
        owning = _checkpointers().owning_folders(ckpt, said.append, must_save=must_save)
        with _standing_in(folder, folder_of_rank_1), owning:
            pass
    except UserError as error:
        return str(error), said
    return "", said


def save_by_name_in_folders(folder: str, folder_of_rank_1: str) -> str:
    """What a script's save is refused with; the folder is as above."""
    trained: Any = SimpleNamespace(engine=new_engine(2), run_id=None, scheduler=None)
    try:
        with _standing_in(folder, folder_of_rank_1):
            save_by_name(_checkpointers().of("ck"), trained, IDENTITY, "global_step1", {}, print)
    except UserError as error:
        return str(error)
    return ""


@contextmanager
def _standing_in(folder: str, folder_of_rank_1: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder_of_rank_1 if dist.get_rank() else folder)
    try:
        yield
    finally:
        os.chdir(before)


def _checkpointers() -> Checkpointers:
    return Checkpointers(SimpleNamespace(control=dist.group.WORLD), timeout_seconds=60)  # type: ignore[arg-type]
