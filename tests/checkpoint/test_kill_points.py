"""Killed at any named point of a save, a process leaves a whole checkpoint; the next run goes on from it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from openrlhf.checkpoint import fault_points
from openrlhf.checkpoint.checkpointer import Checkpointer
from openrlhf.checkpoint.identity import RunIdentity
from openrlhf.checkpoint.manifest import verify, write_manifest
from openrlhf.checkpoint.progress import TrainingProgress
from openrlhf.checkpoint.store import CheckpointStore
from tests.helpers.fault_points import SAVE_POINTS

IDENTITY = RunIdentity({"train.seed": 42}, data_fingerprint="d", num_samples=100, model_shape="m")


class OneRankEngine(SimpleNamespace):
    """The interface of a DeepSpeed engine of stage 0 in float32, without the seconds of importing DeepSpeed."""

    def __init__(self, value: float) -> None:
        module = torch.nn.Linear(40, 10)
        torch.nn.init.constant_(module.weight, value)
        super().__init__(
            module=module,
            optimizer=torch.optim.AdamW(module.parameters()),
            lr_scheduler=None,
            seq_data_parallel_group=None,
            seq_dp_world_size=1,
            checkpoint_mp_rank=0,
            mp_world_size=1,
            global_steps=0,
            global_samples=0,
            skipped_steps=0,
            micro_steps=0,
        )

    def zero_optimization_stage(self) -> int:
        return 0

    def fp16_enabled(self) -> bool:
        return False


@pytest.fixture(autouse=True, scope="module")
def _imported_before_forking(tmp_path_factory: pytest.TempPathFactory) -> None:
    """torch.optim and safetensors import for a second at their first use; let no child pay for it."""
    _in_child(lambda: None)
    assert OneRankEngine(0).optimizer.state == {}
    write_manifest(tmp_path_factory.mktemp("empty"))


def _in_child(work: Callable[[], Any], fault: str = "") -> int:
    """Run in a forked process; its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.environ[fault_points.ENVIRONMENT_VARIABLE] = fault
    fault_points._times_passed.clear()
    status = 1
    try:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        work()
        status = 0
    finally:
        os._exit(status)


def _save_steps(root: Path, steps: tuple[int, ...], in_background: bool = True) -> list[str]:
    """Save weights that are equal to the step; what went wrong."""
    checkpointer = Checkpointer(CheckpointStore(root, max_num=2), in_background=in_background)
    problems: list[str] = []
    for step in steps:
        progress = TrainingProgress(optimizer_step=step, consumed_samples=8 * step)
        problems += checkpointer.save(OneRankEngine(step), progress, IDENTITY, eval_loss=1 / step).problems
    return problems + list(checkpointer.wait().problems)


def _resume(root: Path) -> int:
    """The step a new run goes on from; its weights and progress are checked against each other."""
    checkpointer = Checkpointer(CheckpointStore(root, max_num=2))
    found, _ = checkpointer.find()
    assert found is not None
    engine = OneRankEngine(0)
    loaded = checkpointer.load(engine, found)
    assert torch.all(engine.module.weight == loaded.progress.optimizer_step)
    assert loaded.progress.consumed_samples == 8 * loaded.progress.optimizer_step
    return loaded.progress.optimizer_step


# The third save is the first that removes one; the last saves a step that is there already.
@pytest.mark.parametrize("point", SAVE_POINTS)
def test_killed_at_any_point_a_whole_checkpoint_is_found(point: str, tmp_path: Path) -> None:
    assert _in_child(lambda: _save_steps(tmp_path, (1, 2))) == 0
    status = _in_child(lambda: _save_steps(tmp_path, (3, 3)), point)
    assert os.WIFSIGNALED(status), f"{point} was not reached"
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert _in_child(lambda: _expect(_resume(tmp_path) in (2, 3))) == 0
    assert _in_child(lambda: _expect(_save_steps(tmp_path, (4,)) == [])) == 0
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == ["global_step3", "global_step4"] or left == ["global_step2", "global_step4"]
    assert _in_child(lambda: _expect(_resume(tmp_path) == 4)) == 0


@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_disk_full_at_any_point_is_reported_and_the_next_save_works(point: str, tmp_path: Path) -> None:
    def work() -> None:
        problems = _save_steps(tmp_path, (1, 2, 3, 3))
        _expect(any("No space left" in problem for problem in problems))
        _expect(_resume(tmp_path) == 3)

    nth = 2 if point in ("save.best_renamed", "save.latest_aside", "save.latest_renamed") else 1
    assert _in_child(work, f"{point}:{nth}:disk_full") == 0


def test_a_client_state_that_json_cannot_hold_is_reported(tmp_path: Path) -> None:
    def work() -> None:
        checkpointer = Checkpointer(CheckpointStore(tmp_path), in_background=False)
        progress = TrainingProgress(optimizer_step=1)
        report = checkpointer.save(OneRankEngine(1), progress, IDENTITY, client_state={"names": {"a", "b"}})
        _expect(len(report.problems) == 1 and "not JSON serializable" in report.problems[0])

    assert _in_child(work) == 0


def test_every_file_with_a_flipped_bit_is_found(tmp_path: Path) -> None:
    assert _in_child(lambda: _save_steps(tmp_path, (1, 2))) == 0
    files = [path for path in (tmp_path / "global_step2").rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            assert verify(tmp_path / "global_step2"), f"byte {position} of {path.name} was flipped unseen"
        path.write_bytes(whole)
    assert verify(tmp_path / "global_step2") == []


def _expect(holds: bool) -> None:
    if not holds:
        os._exit(3)
