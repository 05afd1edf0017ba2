"""What stopped or harmed a run on GPU machines at commit 063792e: a case for each finding, without CUDA.

A case drives the package by what it has had since then: its command line, `Actor`, `DeepspeedStrategy`. So it runs on
an earlier tree as well (`python -m tests.cuda.against_old`). Runs inside ranks: nothing here imports the package first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.cuda.group_rules import NcclRules
from tests.cuda.stand_ins import HOPPER, gpu_machine, reference
from tests.helpers.tiny_models import tiny_model
from tests.helpers.two_machines import ADDRESSES, TwoMachines, why_not
from tests.helpers.workbench import flags, save_model, save_rows
from tests.models.batches import make_samples

PIP = (sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check")
PACKAGING = ("pyproject.toml", "requirements.txt", "setup.py", "LICENSE", "openrlhf/__init__.py")
TRAIN = [sys.executable, "-m", "openrlhf.cli.train_sft"]
SECONDS_TO_JOIN = 30


class NotShownHere(Exception):  # noqa: N818
    """This machine lacks what the case needs, which the text names."""


def no_nvcc(scratch: Path) -> None:
    """With a driver and without a toolkit, the optimizer is made and steps."""
    import torch.utils.cpp_extension as cpp_extension
    from deepspeed.ops.adam import fused_adam
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder

    from openrlhf.utils.deepspeed import DeepspeedStrategy

    layer = nn.Linear(3, 2, bias=False)
    layer.weight.grad, before = torch.ones_like(layer.weight), layer.weight.detach().clone()
    with (
        gpu_machine(scratch / "site"),
        patch.dict(os.environ, TORCH_EXTENSIONS_DIR=str(scratch / "builds")),
        patch.object(OpBuilder, "_loaded_ops", {}),
        patch.object(fused_adam, "FusedAdamBuilder", FusedAdamBuilder),  # of CUDA
        patch.object(torch.version, "cuda", "13.0"),
        patch.object(cpp_extension, "CUDA_HOME", None),
    ):
        DeepspeedStrategy().create_optimizer(layer, lr=0.1).step()
    assert (layer.weight < before).all(), "the optimizer does not move the weights against their gradient"


def flash_attn_4_alone(scratch: Path) -> None:
    """Where flash-attn-4 is all there is, `auto` packs by something that loads."""
    with gpu_machine(scratch / "site", "flash-attn-4", capability=HOPPER):
        _packing_actor(scratch)


def extras(scratch: Path) -> None:
    """pip can install the extras for flash attention and the ring."""
    import openrlhf

    problem = why_not_installed(Path(openrlhf.__file__).parents[1], scratch / "copy", "flash,ring")
    assert not problem, _line_of(problem, "Error")


def torch_2_11(scratch: Path) -> None:
    """A pack is computed by the variable-length attention of torch 2.11, which knows no `enable_gqa`."""
    import torch.nn.attention.varlen as torch_varlen

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
    ):
        return reference.varlen(query, key, value, cu_seq_q, max_q, scale=scale, causal=True, window=window_size)

    with gpu_machine(scratch / "site"), patch.object(torch_varlen, "varlen_attn", varlen_attn):
        _packing_actor(scratch).score_targets(**make_samples().packed())


def gpus_that_torch_cannot_use(scratch: Path) -> None:
    """On a machine whose GPU torch cannot use, a run ends with 2 and says so."""
    if why_not() or torch.cuda.is_available():
        raise NotShownHere(why_not() or "torch can use this machine's GPUs")
    kept = ("null", "zero", "random", "urandom", "shm")  # /dev of a machine with one GPU
    lines = ["set -e", f"cd {scratch}", "mkdir dev", "touch dev/nvidia0 dev/nvidiactl", "mkdir dev/shm"]
    lines += [f"[ -e dev/{name} ] || touch dev/{name}; mount --bind /dev/{name} dev/{name}" for name in kept]
    lines += ["mount --rbind dev /dev", 'exec "$@"']
    with_gpu = ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh"]
    done = _run([*with_gpu, *TRAIN, *_words(scratch)])
    assert done.returncode == 2, f"a run on a machine with a GPU trains on the CPU, and ends with {done.returncode}"
    assert "This machine has GPUs (nvidia0), and torch cannot use them" in done.stderr, done.stderr


def task_of_mpirun(scratch: Path) -> None:
    """A task of mpirun that cannot find the others says so. It does not train alone in the folder of all."""
    task = {"RANK": "4", "SIZE": "8", "LOCAL_RANK": "0", "LOCAL_SIZE": "4"}
    done = _run([*TRAIN, *_words(scratch)], {f"OMPI_COMM_WORLD_{name}": value for name, value in task.items()})
    is_alone = (scratch / "out/metrics.jsonl").exists()
    assert not is_alone, f"rank 4 of 8 trained alone in the folder of all, and ended with {done.returncode}"
    assert done.returncode == 2, done.stderr
    assert "mpirun has started 8 ranks, and MASTER_ADDR is not set" in done.stderr, done.stderr


def ring_flash_attn(scratch: Path) -> None:
    """The package ring-flash-attn loads, and a model takes it."""
    with gpu_machine(scratch / "site", "flash-attn", "ring-flash-attn"):
        _packing_actor(scratch, "ring_flash_attn", ring_attn_size=2)


def export_along_the_way(scratch: Path) -> None:
    """The watchdog is told of each export: however long one takes, it does not end the job."""
    from openrlhf.checkpoint import export
    from openrlhf.cli import train_sft
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    kind, phases, exported = type(DeepspeedStrategy().watchdog), [], []
    long_phase = kind.long_phase

    @contextmanager
    def noted_phase(self: Any, what: str, **options: Any) -> Iterator[None]:
        phases.append(what)
        with long_phase(self, what, **options):
            yield
        phases.pop()

    def noted_point(name: str) -> None:
        exported.extend([list(phases)] if name == "export.begun" else [])

    words = _words(scratch, ckpt__save_hf=True, ckpt__save_steps=1)
    with (
        patch.object(kind, "long_phase", noted_phase),
        patch.object(export, "fault_point", noted_point),
        _quiet(),
    ):
        train_sft.main(words)
    assert len(exported) > 2, f"{len(exported)} exports, and there are two along the way and one at the end"
    unknown = sum(not phases for phases in exported)
    assert not unknown, f"{unknown} of {len(exported)} exports are no long phase: the watchdog would end the job"


def compiled_layers_with_checkpointing(scratch: Path) -> None:
    """Compiled layers are compiled under gradient checkpointing, too."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    num_graphs = counters["stats"]["unique_graphs"]
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        actor = _packing_actor(scratch, param_dtype="fp32").train()
        actor.gradient_checkpointing_enable()
        actor.compile_layers()
        actor.score_targets(**make_samples().packed()).log_probs.sum().backward()
    made = counters["stats"]["unique_graphs"] - num_graphs
    assert made, f"torch.compile made {made} graphs of the model's layers"


def timeouts_of_groups(scratch: Path) -> None:
    """Each group of ranks waits as long as was asked for."""
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    with NcclRules() as rules:
        DeepspeedStrategy().setup_distributed(timeout=timedelta(minutes=45))
    without = [text for text in rules.broken if "no timeout" in text]
    assert not without, f"{without[0]} of its own: with nccl it waits 10 minutes, not 45"


def host_names_that_lead_to_loopback(scratch: Path) -> None:
    """Two machines join though each one's own name leads to 127.0.1.1."""
    if why_not():
        raise NotShownHere(why_not())
    code = (
        "import datetime, torch; from openrlhf.utils.deepspeed import DeepspeedStrategy\n"
        f"DeepspeedStrategy().setup_distributed(timeout=datetime.timedelta(seconds={SECONDS_TO_JOIN}))\n"
        "torch.distributed.all_reduce(one := torch.ones(1)); print('joined', int(one))\n"
    )
    env = dict(PYTHONPATH=os.pathsep.join(sys.path), MASTER_ADDR=ADDRESSES[0], MASTER_PORT="29412", WORLD_SIZE="2")
    env |= dict(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    with TwoMachines(scratch) as machines:
        done = machines.run([[sys.executable, "-c", code]] * 2, [env | {"RANK": rank} for rank in "01"])
    for one in done:
        assert "joined 2" in one.said, _line_of(one.said, "Gloo")


def first_exchange_of_a_ring(scratch: Path) -> None:
    """A tiny first window: no ring begins with an exchange that only some of its ranks take part in."""
    from deepspeed.utils import groups

    from openrlhf.cli import train_sft

    groups._release_process_group_references()  # of an engine made before in this process
    (scratch / "short.jsonl").write_text(json.dumps({"input_ids": [5, 6], "labels": [5, 6]}))
    short = dict(data__dataset=scratch / "short.jsonl", data__input_key=None, data__output_key=None)
    words = _words(scratch, **short, ds__packing_samples=True, ds__ring_attn_size=4, train__batch_size=1)
    with NcclRules() as rules, _quiet():
        train_sft.main(words)
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, sum("first of its group" in text for text in rules.broken))
    assert len(set(parts)) == 1, f"a ring begins with an exchange of some ranks: {parts} sends and receipts by rank"


def determinism(scratch: Path) -> None:
    """A run that asks for determinism gets flash attention's deterministic kernel."""
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    kept = dict(os.environ)
    DeepspeedStrategy(full_determinism=True).setup_distributed()
    try:
        with gpu_machine(scratch / "site", "flash-attn"):
            _packing_actor(scratch).score_targets(**make_samples().packed())
            found = {call["deterministic"] for call in reference.CALLS}
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.clear()
        os.environ.update(kept)
    assert found == {True}, f"flash attention is called with deterministic in {found}"


def old_kernels(scratch: Path) -> None:
    """Kernels of the hub are refused in words where the package `kernels` is not of transformers' versions."""
    from openrlhf.errors import UserError

    told = pytest.raises(UserError, match=r"kernels 0\.12\.0 is installed")
    with gpu_machine(scratch / "site", "kernels==0.12.0"), told:
        _packing_actor(scratch, "kernels-community/flash-attn2")


@dataclass(frozen=True)
class Case:
    """A finding, and what says at 063792e that it is this one."""

    number: int
    run: Callable[[Path], None]
    seen: str
    ranks: int = 1

    def __str__(self) -> str:
        return f"{self.number}-{self.run.__name__}"

    def why_not_shown(self, scratch: Path, root: Path) -> str:
        """Runs the case with the package below `root`; what this machine lacks for it, or an empty text."""
        import openrlhf

        assert openrlhf.__file__ == str(root / "openrlhf/__init__.py"), f"{openrlhf.__file__} is not below {root}"
        try:
            self.run(scratch)
        except NotShownHere as reason:
            return str(reason)
        return ""


CASES = [
    Case(1, no_nvcc, "CUDA_HOME"),
    Case(2, flash_attn_4_alone, "FlashAttention2 has been toggled on"),
    Case(3, extras, "No module named 'torch'"),
    Case(4, torch_2_11, "unexpected keyword argument 'enable_gqa'"),
    Case(5, gpus_that_torch_cannot_use, "trains on the CPU, and ends with 0"),
    Case(6, task_of_mpirun, "rank 4 of 8 trained alone"),
    Case(7, ring_flash_attn, "importing ring_flash_attn fails"),
    Case(8, export_along_the_way, "exports are no long phase"),
    Case(9, compiled_layers_with_checkpointing, "made 0 graphs"),
    Case(10, timeouts_of_groups, "it waits 10 minutes, not 45", ranks=4),
    Case(11, host_names_that_lead_to_loopback, "Gloo connectFullMesh failed"),
    Case(12, first_exchange_of_a_ring, "begins with an exchange of some ranks", ranks=4),
    Case(13, determinism, "deterministic in {False}"),
    Case(14, old_kernels, "kernels"),
]


def why_not_installed(root: Path, copy: Path, extras: str) -> str:
    """What pip says where it cannot install the extras of the tree at `root`; empty where it can.

    Raises NotShownHere where pip reaches no package registry.
    """
    for file in PACKAGING:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / file, copy / file)
    done = subprocess.run([*PIP, f"{copy}[{extras}]"], capture_output=True, text=True, check=False)
    one = [*PIP, "--no-deps", "--ignore-installed", "wheel"]
    if done.returncode and subprocess.run(one, capture_output=True, check=False).returncode:
        raise NotShownHere("pip reaches no package registry: whether the extras can be installed is not known")
    return done.stderr if done.returncode else ""


def _packing_actor(scratch: Path, attention: str = "auto", param_dtype: str = "bf16", **options: Any) -> Any:
    from openrlhf.models import Actor

    tiny_model("llama").save_pretrained(scratch / "model")
    return Actor(str(scratch / "model"), attention, param_dtype=param_dtype, packing_samples=True, **options)


def _words(scratch: Path, **changes: Any) -> list[str]:
    """Of a run of two steps. Its ranks may all call."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_model(scratch / "model")
        save_rows(scratch / "rows.jsonl", 8)
    if dist.is_initialized():
        dist.barrier()
    return flags(scratch / "model", scratch / "rows.jsonl", scratch / "out", **changes)


def _run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A process that no launcher has started, except `env` says so."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(command, env=kept | (env or {}), cwd="/", capture_output=True, text=True, check=False)


@contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _line_of(said: str, word: str) -> str:
    """The last line with a word; the last of all where none has it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if word in line), lines[-1])
