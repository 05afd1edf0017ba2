"""A table of launchers' environments: which rank a task is, and where rank 0 is, from the variables of each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from openrlhf.cli.entry import run_command
from openrlhf.engine.launchers import adopt_launcher, derived_variables, first_slurm_node
from openrlhf.errors import UserError

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
BATCH = {  # what sbatch's script and all that it starts have; three nodes, 8 + 8 + 4 tasks
    "ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "20", "SLURM_NNODES": "3", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "gpu-[07-08,11]", "SLURM_TASKS_PER_NODE": "8(x2),4",
}  # fmt: skip
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "20", "SLURM_STEP_NUM_NODES": "3"}
TASK = BATCH | STEP | {"SLURM_PROCID": "17", "SLURM_LOCALID": "1", "SLURM_NODEID": "2"}
ONE_NODE = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PMI2 = {"PMI_FD": "9", "PMI_JOBID": "7.0", "PMI_RANK": "17", "PMI_SIZE": "20"}  # srun --mpi=pmi2 adds them
JSM = {  # jsrun without an MPI
    "JSM_NAMESPACE_RANK": "7", "JSM_NAMESPACE_SIZE": "12", "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "6",
}  # fmt: skip
FLUX = {
    "FLUX_TASK_RANK": "3", "FLUX_JOB_SIZE": "8", "FLUX_TASK_LOCAL_ID": "3", "FLUX_JOB_ID": "f1", "PMI_RANK": "3",
    "PMI_SIZE": "8",
}  # fmt: skip
RANK_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400"}


@pytest.mark.parametrize(
    ("environ", "rank", "world_size", "local_rank", "local_world_size", "address"),
    [
        (TASK, "17", "20", "1", "4", "gpu-07"),
        (TASK | PMI2, "17", "20", "1", "4", "gpu-07"),
        (TASK | ADDRESS, "17", "20", "1", "4", "10.0.0.1"),
        (ONE_NODE, "1", "2", "1", "2", "127.0.0.1"),
        (OPEN_MPI, "3", "4", "3", "4", "127.0.0.1"),
        (BATCH | OPEN_MPI, "3", "4", "3", "4", "127.0.0.1"),
        (TASK | OPEN_MPI, "3", "4", "3", "4", "127.0.0.1"),
        (HYDRA, "1", "2", "1", "2", "127.0.0.1"),
        (TASK | HYDRA | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, "1", "2", "1", "2", "127.0.0.1"),
        (OPEN_MPI | ADDRESS | {"OMPI_COMM_WORLD_SIZE": "8"}, "3", "8", "3", "4", "10.0.0.1"),
        (OPEN_MPI | {"JSM_NAMESPACE_RANK": "3"}, "3", "4", "3", "4", "127.0.0.1"),
        (JSM | ADDRESS, "7", "12", "1", "6", "10.0.0.1"),
        (TASK | FLUX | {"FLUX_JOB_NNODES": "1"}, "3", "8", "3", "8", "127.0.0.1"),
        (TASK | ADDRESS | {"RANK": "17", "WORLD_SIZE": "20", "LOCAL_RANK": "1"}, "17", "20", "1", "4", "10.0.0.1"),
    ],
    ids=[
        "srun",
        "srun-pmi2",
        "srun-own-address",
        "srun-one-node",
        "mpirun",
        "mpirun-in-slurm",
        "mpirun-in-srun",
        "hydra",
        "hydra-in-a-task-of-srun",
        "mpirun-machines",
        "jsrun-of-spectrum",
        "jsrun-machines",
        "flux-in-slurm",
        "srun-rank-by-hand",
    ],
)
def test_a_task_is_the_rank_that_its_launcher_says(
    monkeypatch, environ, rank, world_size, local_rank, local_world_size, address
):
    seen = environ_of_a_command(monkeypatch, environ)
    assert [seen.get(name) for name in OURS[:4]] == [rank, world_size, local_rank, local_world_size]
    assert seen["MASTER_ADDR"] == address
    assert 1024 < int(seen["MASTER_PORT"]) < 32768


def environ_of_a_command(monkeypatch, environ):
    """What a command finds in its environment."""
    for name in list(os.environ):
        if name in OURS or name.startswith(("SLURM_", "OMPI_", "PMI", "JSM_", "FLUX_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ | environ)
    found = {}
    run_command(lambda argv: found.update(os.environ))
    return found


@pytest.mark.parametrize(
    "environ",
    [
        BATCH,  # the script itself, without srun
        BATCH | STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an interactive job
        TASK | {"RANK": "3", "WORLD_SIZE": "4"},  # a launcher of other ranks inside srun
        BATCH | {"RANK": "0", "WORLD_SIZE": "20"},  # set in the script itself, which SLURM takes for one process
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {},
    ],
    ids=["sbatch", "salloc", "torchrun", "sbatch-rank", "mpirun-1", "none"],
)
def test_nothing_is_derived_where_a_task_is_alone_or_knows_its_rank(environ):
    assert derived_variables(environ) == {}


def test_tasks_of_a_job_have_one_port_and_other_jobs_another():
    first, second = (derived_variables(TASK | {"SLURM_PROCID": str(n)})["MASTER_PORT"] for n in (0, 19))
    assert first == second
    assert derived_variables(TASK | {"SLURM_JOB_ID": "8"})["MASTER_PORT"] != first
    assert derived_variables(TASK | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] != first


def test_jobs_of_srun_by_pmi_do_not_meet():
    jobs = [TASK | PMI2, TASK | PMI2 | {"SLURM_JOB_ID": "8", "PMI_JOBID": "8.0"}]
    assert len({derived_variables(job)["MASTER_PORT"] for job in jobs}) == 2
    by_pmi_alone = HYDRA | {"PMI_JOBID": "7.0"}
    assert derived_variables(by_pmi_alone)["MASTER_PORT"] != derived_variables(HYDRA)["MASTER_PORT"]


def test_jobs_of_hydra_do_not_meet_and_ranks_behind_a_script_do(tmp_path):
    """Hydra names no job; this stands for its process on a machine, and starts two ranks."""
    proxy = tmp_path / "hydra_pmi_proxy"
    proxy.symlink_to("/bin/sh")
    code = "from openrlhf.engine.launchers import *; print(derived_variables(os.environ)['MASTER_PORT'])"
    script = """"$0" -c "$1"; PMI_RANK=0 sh -c '"$0" -c "$1"; true' "$0" "$1" """
    job = [str(proxy), "-c", script, sys.executable, code]
    in_srun = STEP | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7", "PMI_JOBID": "7.0"}
    env = {name: value for name, value in os.environ.items() if name not in OURS} | in_srun | HYDRA
    (first, same), (second, _) = (subprocess.check_output(job, env=env, text=True).split() for _ in range(2))
    assert first == same
    assert first != second


def test_ranks_that_cannot_find_rank_0_are_told_what_to_set():
    with pytest.raises(UserError, match=r"mpirun has started 8 ranks, and MASTER_ADDR is not set.*mpirun -x"):
        derived_variables(OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "8"})
    for environ, name in ((JSM, "jsrun has started 12"), (FLUX, "flux run has started 8")):
        with pytest.raises(UserError, match=rf"{name} ranks, and MASTER_ADDR is not set: [^(]*there\.$"):
            derived_variables(environ)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is no number above 0"),
        ({"RANK": "-1"}, "RANK=-1 is no number of a rank"),
        ({"SLURM_CPUS_PER_TASK": "4,4"}, "SLURM_CPUS_PER_TASK=4,4 is no number above 0"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x is no number above 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "^RANK=2 cannot be where WORLD_SIZE=2: it is 1 at most"),
        (RANK_1 | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 cannot be where LOCAL_WORLD_SIZE=2: it is 1 at most"),
        (RANK_1 | {"LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE=4 cannot be where WORLD_SIZE=2: it is 2 at most"),
        (RANK_1 | {"ACCELERATE_USE_FSDP": "true"}, "accelerate launch asks for FSDP, not known here"),
    ],
)
def test_what_a_launcher_says_and_cannot_be_is_told(monkeypatch, environ, words):
    monkeypatch.setattr(os, "environ", environ)
    with pytest.raises(UserError, match=words):
        adopt_launcher()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu-[07,12-15],login1", "gpu-07"), ("a1,a[2-3]", "a1"), ("r[1-3]n[04,05]x,b", "r1n04x"), ("solo", "solo")],
)
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_slurm_node(nodes) == first
