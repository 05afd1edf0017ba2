"""Launch scripts: every rank is started with what it needs; the launchers here are stand-ins that say what they got."""

from __future__ import annotations

import os
import subprocess

import pytest

SRUN = """\
#!/usr/bin/env bash
shift    # --kill-on-bad-exit=1
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || code=$?
done
exit "${code:-0}"
"""
PYTHON = """\
#!/usr/bin/env bash
echo "rank $RANK/$WORLD_SIZE local $LOCAL_RANK/$LOCAL_WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT runs $*"
exit "$PYTHON_EXIT_CODE"
"""
SCONTROL = """\
#!/usr/bin/env bash
if [ "$1" = show ]; then echo machine-a; echo machine-b; else echo "scontrol $*"; fi
"""
ECHO = """\
#!/usr/bin/env bash
echo "$(basename "$0") $*"
"""
SLURM = {
    "SLURM_JOB_NODELIST": "machine-[a-b]",
    "SLURM_JOB_ID": "123456",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
}


@pytest.fixture
def run_script(tmp_path, examples):
    """A function that runs an example with stand-ins for launchers: (exit code, lines of output)."""
    for name, text in {
        "srun": SRUN,
        "python": PYTHON,
        "scontrol": SCONTROL,
        "torchrun": ECHO,
        "deepspeed": ECHO,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **variables):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        command = ["bash", str(examples / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def test_slurm_starts_every_rank_with_its_place(run_script):
    code, lines = run_script("slurm/train.sbatch", "run.toml", **SLURM, PYTHON_EXIT_CODE="0")
    port = 20000 + 123456 % 20000
    words = "-m openrlhf.cli.train_sft @ run.toml --ckpt.load_enable"
    assert lines == [f"rank {r}/4 local {r % 2}/2 at machine-a:{port} runs {words}" for r in range(4)]
    assert code == 0


def test_slurm_requeues_a_run_that_was_asked_to_leave(run_script):
    code, lines = run_script("slurm/train.sbatch", "run.toml", **SLURM, PYTHON_EXIT_CODE="75")
    assert lines[-1] == "scontrol requeue 123456"
    assert code == 75


def test_slurm_does_not_requeue_a_run_that_failed(run_script):
    code, lines = run_script("slurm/train.sbatch", "run.toml", **SLURM, PYTHON_EXIT_CODE="2")
    assert not any("requeue" in line for line in lines)
    assert code == 2


@pytest.mark.parametrize(
    ("variables", "meeting_place", "num_machines"),
    [
        ({}, "localhost:0", 1),
        ({"NUM_MACHINES": "2", "FIRST_MACHINE": "10.0.0.1"}, "10.0.0.1:29400", 2),
    ],
)
def test_torchrun_meets_at_the_first_machine(run_script, variables, meeting_place, num_machines):
    _, (line,) = run_script("torchrun.sh", "run.toml", **variables)
    assert line == (
        f"torchrun --nnodes {num_machines} --rdzv_backend c10d --rdzv_endpoint {meeting_place} --rdzv_id sft "
        "--max_restarts 3 --nproc_per_node gpu -m openrlhf.cli.train_sft @ run.toml --ckpt.load_enable"
    )


def test_deepspeed_is_given_the_hostfile(run_script, examples):
    _, (line,) = run_script("hostfile/train.sh", "run.toml", "--train.seed", "1")
    hostfile = examples / "hostfile" / "hostfile"
    assert line == (
        f"deepspeed --hostfile {hostfile} --master_port 29400 --module openrlhf.cli.train_sft @ run.toml --train.seed 1"
    )
    machines = [text for text in hostfile.read_text().splitlines() if not text.startswith("#")]
    assert all("slots=" in machine for machine in machines)
