"""What is set before ranks join: threads on the host, gloo's interface, the allocator; and the end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from openrlhf.engine import gloo_interface, launch, launchers
from openrlhf.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}
SEVERAL_MACHINES = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}


@pytest.fixture
def environ(monkeypatch):
    """Makes the environment: these variables, and no others that are looked at."""

    def make(**variables):
        always = {"PATH": os.environ["PATH"], "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}
        monkeypatch.setattr(os, "environ", always | variables)
        return os.environ

    return make


@pytest.fixture
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(launch, "cores_allowed", lambda: None)


@pytest.mark.parametrize(
    ("variables", "num_threads"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, "4"),
        ({"LOCAL_SIZE": "8"}, "2"),  # deepspeed
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "12"}, "12"),  # srun has bound the task to cores of its own
        # the task is the launcher, whose ranks share its cores
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "12"}, "3"),
        ({"LOCAL_SIZE": "8", "SLURM_CPUS_PER_TASK": "16"}, "2"),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": ""}, "4"),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "3"}, "3"),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, "1"),
    ],
    ids=["torchrun", "deepspeed", "srun", "srun-torchrun", "sbatch-deepspeed", "empty", "users", "users-one"],
)
def test_ranks_share_the_cores_of_their_machine_also_with_gpus(environ, sixteen_cores, variables, num_threads):
    variables = environ(**variables)
    launchers.adopt_launcher()
    launch._prepare(torch.device("cuda", 0))
    assert variables["OMP_NUM_THREADS"] == num_threads


@pytest.mark.parametrize(("cores", "num_threads"), [(8.0, 2), (1.5, 1), (64.0, 4)])
def test_ranks_share_what_a_containers_quota_leaves(environ, sixteen_cores, monkeypatch, cores, num_threads):
    environ(LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(launch, "cores_allowed", lambda: cores)
    assert launch.num_host_threads() == num_threads


@pytest.mark.parametrize(("users_own", "num_threads"), [(None, "4"), ("1", "1")], ids=["torchruns", "users"])
def test_torchruns_single_thread_is_not_taken_for_the_users_wish(
    environ, sixteen_cores, monkeypatch, users_own, num_threads
):
    of_torchrun = {"PATH": os.environ["PATH"]} | ({"OMP_NUM_THREADS": users_own} if users_own else {})
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", "echo; read end"], env=of_torchrun, stdin=pipe, stdout=pipe) as torchrun:
        assert torchrun.stdout.readline() == b"\n"  # its environment can be read from now on
        monkeypatch.setattr(os, "getppid", lambda: torchrun.pid)
        variables = environ(**TORCHRUN)
        launch._share_cores_among_ranks()
        torchrun.stdin.close()
    assert variables["OMP_NUM_THREADS"] == num_threads


@pytest.mark.parametrize("name", launchers.ALLOCATOR_NAMES)
def test_memory_of_packs_grows_in_segments_unless_the_user_says_how(environ, name):
    variables = environ()
    launchers.prepare_cuda()
    assert variables["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    variables = environ(**{name: "max_split_size_mb:128"})
    launchers.prepare_cuda()
    assert [variables[one] for one in launchers.ALLOCATOR_NAMES if one in variables] == ["max_split_size_mb:128"]


@pytest.fixture
def loopback_name(monkeypatch):
    """A machine whose own name leads to loopback, with these interfaces."""
    monkeypatch.setattr(gloo_interface.socket, "gethostname", lambda: "localhost")
    interfaces = {"docker0": ["172.17.0.1"], "eth0": ["10.0.0.2", "fe80::1"]}
    monkeypatch.setattr(gloo_interface, "_interfaces", lambda: interfaces)
    own = {"10.0.0.1": "10.0.0.2", "192.0.2.1": "172.17.0.1"}  # this machine's address on the way to another
    monkeypatch.setattr(gloo_interface, "_own_address_towards", lambda host: own.get(host, "127.0.0.1"))


@pytest.mark.parametrize(
    ("variables", "interface"),
    [
        (SEVERAL_MACHINES, "eth0"),
        (SEVERAL_MACHINES | {"MASTER_ADDR": "this-machine"}, "docker0"),  # rank 0's own name: the way to anywhere
        (SEVERAL_MACHINES | {"GLOO_SOCKET_IFNAME": "ib0"}, "ib0"),
        (SEVERAL_MACHINES | {"LOCAL_WORLD_SIZE": "4"}, None),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}, None),
    ],
    ids=["machines", "first-machine", "users", "one-machine", "loopback"],
)
def test_gloo_listens_where_other_machines_reach_it(environ, loopback_name, variables, interface):
    variables = environ(**variables)
    gloo_interface.choose_gloo_interface()
    assert variables.get("GLOO_SOCKET_IFNAME") == interface


@pytest.mark.parametrize(
    "variables",
    [{"MASTER_PORT": "tcp://10.96.0.12:29500"}, {"MASTER_ADDR": "192.0.2.1"}, {"RANK": "", "MASTER_PORT": "1"}],
    ids=["kubernetes", "stale-address", "no-rank"],
)
def test_a_process_that_is_alone_meets_nobody_at_an_address_that_is_set(environ, variables, capsys):
    variables = environ(**variables)
    launchers.adopt_launcher()
    launch._stand_alone_if_not_launched()
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert int(variables["MASTER_PORT"]) > 1024
    assert "changes nothing: RANK is not set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "is_told"),
    [
        ({"PET_NNODES": "1:4"}, True),
        ({"PET_NNODES": "1"}, False),
        ({"SM_HOSTS": '["algo-1","algo-2"]'}, True),
        ({"SM_HOSTS": '["algo-1"]'}, False),
        ({"PALS_RANKID": "5"}, True),
        ({"PALS_RANKID": "0", "PMI_RANK": "0", "PMI_SIZE": "1"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_a_process_that_is_alone_among_others_says_so(environ, variables, is_told, capsys):
    environ(**variables)
    launchers.adopt_launcher()
    launch._stand_alone_if_not_launched()
    assert ("speaks of more ranks, and RANK is not set" in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"MASTER_PORT": "tcp://10.96.0.12:29500"}, "MASTER_PORT=tcp://10.96.0.12:29500 is no number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no number from 1 to 65535"),
        ({"LOCAL_RANK": ""}, "RANK=3 is set, and LOCAL_RANK not"),
        ({"LOCAL_WORLD_SIZE": "", "MASTER_ADDR": "10.0.0.1"}, "RANK=3 is set, and LOCAL_WORLD_SIZE not"),
    ],
)
def test_a_rank_whose_variables_say_nothing_is_told_which(environ, more, words):
    environ(**{"RANK": "3", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_PORT": "29500"} | more)
    launchers.adopt_launcher()
    with pytest.raises(UserError, match=words):
        launch._stand_alone_if_not_launched()


JOIN_AND_LEAVE = """
from datetime import timedelta
import torch
from openrlhf.engine.launch import join_ranks, leave_ranks
join_ranks(timedelta(seconds=60))
assert torch.distributed.is_initialized()
leave_ranks()
assert not torch.distributed.is_initialized()
leave_ranks()
"""


def test_ranks_leave_in_order_at_the_end():
    done = subprocess.run([sys.executable, "-c", JOIN_AND_LEAVE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
