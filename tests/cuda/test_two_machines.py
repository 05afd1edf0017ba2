"""Two machines, each launcher for real: the same losses as on one, though host names lead to loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.slow import slow
from tests.helpers.two_machines import ADDRESSES, NAMES, TwoMachines, why_not
from tests.helpers.workbench import flags, save_model, save_rows, step_lines

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODULE = "openrlhf.cli.train_sft"
PORT = "29411"

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"network namespaces cannot be made: {why_not()}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    save_model(folder / "model")
    save_rows(folder / "rows.jsonl", 14)
    return folder


@pytest.fixture(scope="module")
def machines(bench):
    with TwoMachines(bench) as machines:
        yield machines


@pytest.fixture(scope="module")
def losses_of_one_machine(bench, machines):
    done = machines.run([[sys.executable, "-m", MODULE, *words_of_run(bench, "one")]], [environ(bench)])
    assert done[0].code == 0, done[0].said[-3000:]
    return losses(bench, "one")


def words_of_run(bench, name):
    return flags(bench / "model", bench / "rows.jsonl", bench / name, train__comm_timeout_minutes=1)


def losses(bench, name):
    return [line["loss"] for line in step_lines(bench / name)]


def environ(bench, **more):
    """As at the other end of an ssh: of what launchers set nothing is there."""
    return {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{bench}/bin:{BIN}:/usr/bin:/bin:/usr/sbin",
    } | more


def torchrun(bench, words):
    """By the example."""
    (bench / "run.toml").touch()
    one = ["bash", str(ROOT / "examples/torchrun.sh"), str(bench / "run.toml"), *words]
    machines = {"NUM_MACHINES": "2", "FIRST_MACHINE": ADDRESSES[0], "RANKS_PER_MACHINE": "1", "PORT": PORT}
    return [one, one], [environ(bench, **machines)] * 2


def deepspeed(bench, words):
    (bench / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    hosts = ["--hostfile", str(bench / "hostfile"), "--master_addr", ADDRESSES[0], "--master_port", PORT]
    return [["deepspeed", *hosts, "--module", MODULE, *words]], [environ(bench)]


def srun(bench, words):
    """The variables that srun gives to its tasks, and no others."""
    of_job = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "machine-[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }  # fmt: skip
    tasks = [of_job | {"SLURM_PROCID": str(n), "SLURM_NODEID": str(n), "SLURM_LOCALID": "0"} for n in range(2)]
    return [[sys.executable, "-m", MODULE, *words]] * 2, [environ(bench, **task) for task in tasks]


@pytest.mark.parametrize("launcher", [deepspeed, *slow([torchrun, srun])])
def test_the_same_losses_as_on_one_machine(bench, machines, losses_of_one_machine, launcher):
    commands, envs = launcher(bench, words_of_run(bench, launcher.__name__))
    done = machines.run(commands, envs)
    said = "\n".join(one.said for one in done)
    assert [one.code for one in done] == [0] * len(done), said[-5000:]
    assert "2 × cpu" in said, "this was no run of two ranks"
    assert losses(bench, launcher.__name__) == pytest.approx(losses_of_one_machine, rel=1e-6)
