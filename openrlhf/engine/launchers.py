"""Which rank this process is, whoever started it: torchrun's variables, derived from those of srun, mpirun and others.

torchrun and DeepSpeed's launcher set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The others set
names of their own; without a translation every task would be a run of one rank, all of them in one folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openrlhf.errors import UserError
from openrlhf.processes import parent_of, start_of

DEFAULT_PORT = 29500  # torchrun's and DeepSpeed's
ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ACCELERATORS = ("cpu", "cuda")
_READ_HERE = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "SLURM_CPUS_PER_TASK",
)
_ADDRESSES_OF_THIS_MACHINE = ("127.", "localhost", "::1")
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # below the ports that Linux gives to connections


@dataclass(frozen=True)
class _Launcher:
    """The variables of a launcher; the first of each that is set counts."""

    name: str
    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world_size: tuple[str, ...] = ()
    job: tuple[str, ...] = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")  # the same on all ranks of a job, of no other
    num_machines: tuple[str, ...] = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")


_SRUN = _Launcher(
    "srun",
    ("SLURM_PROCID",),
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
    ("SLURM_LOCALID",),
    job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
)
# mpirun inside a SLURM job starts its helpers with srun, whose variables then say nothing of the ranks: it comes first.
# jsrun starts Spectrum MPI's ranks, and Flux those of MPICH: their own names come before those of the MPI.
_LAUNCHERS = (
    _Launcher(
        "jsrun",
        ("JSM_NAMESPACE_RANK",),
        ("JSM_NAMESPACE_SIZE", "OMPI_COMM_WORLD_SIZE"),
        ("JSM_NAMESPACE_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("JSM_NAMESPACE_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    _Launcher(
        "mpirun",  # Open MPI, Spectrum MPI
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "mpirun",  # MVAPICH2
        ("MV2_COMM_WORLD_RANK",),
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "flux run",
        ("FLUX_TASK_RANK",),
        ("FLUX_JOB_SIZE",),
        ("FLUX_TASK_LOCAL_ID",),
        job=("FLUX_JOB_ID",),
        num_machines=("FLUX_JOB_NNODES",),
    ),
    _Launcher(
        "mpirun",  # MPICH, Intel MPI (both by hydra), Cray PALS
        ("PMI_RANK",),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
        job=("PMI_JOBID",),
    ),
    _SRUN,
)
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_NODEID", *(name for one in _LAUNCHERS for name in one.rank + one.local_rank))
_COUNTS = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_CPUS_PER_TASK"),
    *(name for one in _LAUNCHERS for name in one.world_size + one.local_world_size),
)
_PROXY_OF_HYDRA = "hydra_pmi_proxy"  # the ranks of one machine descend from one


def adopt_launcher() -> None:
    """Sets torchrun's variables where another launcher started several ranks. Variables that are set stay.

    Those that are empty go, for all that reads them: `LOCAL_RANK=` in a script says no rank.

    Raises UserError where the ranks cannot find each other, for a number that is none or a rank beyond the last, and
    for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):  # transformers would load no weights by it
        raise UserError("accelerate launch asks for FSDP, not known here: let it ask for DeepSpeed, or use torchrun.")
    for name in _READ_HERE:
        if not os.environ.get(name):
            os.environ.pop(name, None)
    for name in (*_RANKS, *_COUNTS):
        value = os.environ.get(name) or "1"
        if not value.isdecimal() or (name in _COUNTS and int(value) == 0):
            kind = "number above 0" if name in _COUNTS else "number of a rank"
            raise UserError(f"{name}={value} is no {kind}: mend what sets it, or unset it where no launcher does.")
    os.environ.update(derived_variables(os.environ))
    _check_ranks(os.environ)


def _check_ranks(environ: Mapping[str, str]) -> None:
    """Raises UserError where a rank is beyond the last of them, or a machine has more of them than there are."""
    if "RANK" not in environ:  # this process is alone, whatever else is set
        return
    for one, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        if one in environ and size in environ:
            most = int(environ[size]) - (1 if one in _RANKS else 0)
            if int(environ[one]) > most:
                raise UserError(f"{one}={environ[one]} cannot be where {size}={environ[size]}: it is {most} at most.")


def derived_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun that follow from another launcher's; empty where there is nothing to derive."""
    if environ.get("RANK"):
        return _local_world_size_of_rank(environ)
    launcher = _launcher_of(environ)
    if launcher is None:
        return {}
    found = {
        "RANK": _first(environ, launcher.rank),
        "WORLD_SIZE": _first(environ, launcher.world_size),
        "LOCAL_RANK": _first(environ, launcher.local_rank),
        "LOCAL_WORLD_SIZE": _local_world_size(launcher, environ),
    }
    known = dict(environ)
    derived = {name: value for name, value in found.items() if value and not environ.get(name)}
    known |= derived
    if "LOCAL_RANK" not in known:
        raise UserError(f"{launcher.name} does not say which of its machine's ranks this is: set LOCAL_RANK for each.")
    if not environ.get("MASTER_ADDR"):
        derived["MASTER_ADDR"] = _master_address(launcher, known)
    if not environ.get("MASTER_PORT"):
        derived["MASTER_PORT"] = str(_port(launcher, environ))
    return derived


def prepare_cuda() -> None:
    """Variables that torch reads when CUDA is first used: call it before.

    With DS_ACCELERATOR=cpu all that asks torch for GPUs finds none. Memory grows in segments, as packs differ in size:
    freed blocks that fit no other pack would pile up.

    Raises UserError for an accelerator of DeepSpeed's that is not here.
    """
    if not (accelerator := os.environ.get("DS_ACCELERATOR")):
        os.environ.pop("DS_ACCELERATOR", None)
    elif accelerator not in _ACCELERATORS:
        raise UserError(f"DS_ACCELERATOR={accelerator} is not here: set cpu or cuda, or unset it.")
    if accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not any(name in os.environ for name in ALLOCATOR_NAMES):
        os.environ[ALLOCATOR_NAMES[0]] = "expandable_segments:True"


def one_process_starts_local_ranks(environ: Mapping[str, str]) -> bool:
    """True under torchrun and DeepSpeed's launcher: a machine's ranks share that process's list of GPUs and its cores.

    srun and mpirun may give each task GPUs and cores of its own.
    """
    return "TORCHELASTIC_RUN_ID" in environ or "LOCAL_SIZE" in environ


def num_local_ranks(environ: Mapping[str, str]) -> int:
    """As torchrun names it, as DeepSpeed's launcher does. Raises UserError where one of several ranks does not say."""
    if not says_local_ranks(environ):
        raise UserError(
            f"RANK={environ['RANK']} of WORLD_SIZE={environ['WORLD_SIZE']} is set, and LOCAL_WORLD_SIZE not: set it to "
            "the number of ranks on this machine, which share its memory and its cores."
        )
    known = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", *(["WORLD_SIZE"] if environ.get("RANK") else []))
    return int(_first(environ, known) or 1)


def says_local_ranks(environ: Mapping[str, str]) -> bool:
    """Whether it is known how many ranks this machine has: all that meet at its own address; without a rank, one."""
    says = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or not environ.get("RANK")
    meets_here = environ.get("MASTER_ADDR", "").startswith(_ADDRESSES_OF_THIS_MACHINE)
    return bool(says) or meets_here or environ.get("WORLD_SIZE", "1") == "1"


def sign_of_other_ranks(environ: Mapping[str, str]) -> str:
    """A scheduler's variable that speaks of more ranks, though it does not say which one this is; empty without one."""
    machines = [int(number) for number in re.findall(r"\d+", environ.get("PET_NNODES", ""))]  # Kubeflow: 4, or 1:4
    signs = {
        "PET_NNODES": max(machines, default=1) > 1,
        "SM_HOSTS": environ.get("SM_HOSTS", "").count(",") > 0,  # SageMaker: ["algo-1","algo-2"]
        "PALS_RANKID": "PALS_RANKID" in environ and "PMI_SIZE" not in environ,
    }
    return next((f"{name}={environ[name]}" for name, speaks in signs.items() if speaks), "")


def _launcher_of(environ: Mapping[str, str]) -> _Launcher | None:
    """None where there is one rank."""
    for launcher in _LAUNCHERS:
        rank, size = _rank_and_size(launcher, environ)
        if rank and size and not (launcher is _SRUN and _is_batch_script(environ)):
            if int(size) == 1:
                return None
            return _SRUN if _is_task_of_srun(environ, rank, size) else launcher
    return None


def _local_world_size_of_rank(environ: Mapping[str, str]) -> dict[str, str]:
    """Of a rank that a script has set to what its launcher says: `srun bash -c 'RANK=$SLURM_PROCID …'`."""
    if says_local_ranks(environ) or _is_batch_script(environ):
        return {}
    known = (environ["RANK"], environ.get("WORLD_SIZE", ""))
    said = (_local_world_size(one, environ) for one in _LAUNCHERS if _rank_and_size(one, environ) == known)
    found = next(filter(None, said), "")
    return {"LOCAL_WORLD_SIZE": found} if found else {}


def _local_world_size(launcher: _Launcher, environ: Mapping[str, str]) -> str:
    """Empty where the launcher does not say it."""
    if said := _first(environ, launcher.local_world_size):
        return said
    if _first(environ, launcher.num_machines) == "1":
        return _first(environ, launcher.world_size)
    return _tasks_on_this_slurm_node(environ) if launcher is _SRUN else ""


def _is_task_of_srun(environ: Mapping[str, str], rank: str, size: str) -> bool:
    """srun --mpi=pmi2 gives its tasks PMI's names as well: the same rank, without the names of hydra's mpirun."""
    is_of_hydra = "MPI_LOCALRANKID" in environ
    return _has_step(environ) and not is_of_hydra and (rank, size) == _rank_and_size(_SRUN, environ)


def _is_batch_script(environ: Mapping[str, str]) -> bool:
    """sbatch's script has the variables of rank 0 of all tasks, but is one process; srun's tasks have a step too."""
    return environ.get("ENVIRONMENT") == "BATCH" and not _has_step(environ)


def _has_step(environ: Mapping[str, str]) -> bool:
    return bool(_first(environ, ("SLURM_STEP_ID", "SLURM_STEPID")))


def _rank_and_size(launcher: _Launcher, environ: Mapping[str, str]) -> tuple[str, str]:
    return _first(environ, launcher.rank), _first(environ, launcher.world_size)


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def _master_address(launcher: _Launcher, environ: Mapping[str, str]) -> str:
    """Where rank 0 is: this machine if all ranks are here, else the first of SLURM's machines."""
    if environ.get("LOCAL_WORLD_SIZE") == environ["WORLD_SIZE"]:
        return "127.0.0.1"
    nodes = _first(environ, ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"))
    if launcher.name == "srun" and nodes:
        return first_slurm_node(nodes)
    by_flags = f" (mpirun -x MASTER_ADDR=10.0.0.1 -x MASTER_PORT={DEFAULT_PORT} …)" if launcher.name == "mpirun" else ""
    raise UserError(
        f"{launcher.name} has started {environ['WORLD_SIZE']} ranks, and MASTER_ADDR is not set: set it for all "
        f"of them to the address of rank 0's machine, and MASTER_PORT to a free port there{by_flags}."
    )


def first_slurm_node(nodes: str) -> str:
    """gpu-07 for SLURM's list `gpu-[07,12-15],login1`; a name may have several brackets."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def _tasks_on_this_slurm_node(environ: Mapping[str, str]) -> str:
    """SLURM's list `2(x3),1` says it for each machine in turn."""
    tasks = _first(environ, ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    counts = [count for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    node = int(environ.get("SLURM_NODEID") or 0)
    return counts[node] if node < len(counts) else ""


def _port(launcher: _Launcher, environ: Mapping[str, str]) -> int:
    """One for each job, as two on one machine must not meet; torchrun's where nothing names the job."""
    job = _job_of_hydra(environ) or [environ[name] for name in launcher.job if environ.get(name)]
    if not job:
        return DEFAULT_PORT
    digest = hashlib.blake2b(" ".join(job).encode(), digest_size=4).digest()
    return _FIRST_PORT + int.from_bytes(digest, "little") % _NUM_PORTS


def _job_of_hydra(environ: Mapping[str, str]) -> list[str]:
    """Hydra names no job: its process on this machine stands for it. Empty where other machines have others."""
    if environ.get("MPI_LOCALNRANKS", "") != environ.get("PMI_SIZE"):
        return []
    pid = os.getppid()
    while pid > 0:
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == _PROXY_OF_HYDRA:
                return [str(pid), start_of(pid)]
        pid = parent_of(pid)
    return []
