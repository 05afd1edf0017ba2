"""A job started by a real launcher, whose ranks a test can find, watch and break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.helpers.fork_server import PROJECT
from tests.helpers.ranks import _free_port

BIN = Path(sys.executable).parent
MODULE = "openrlhf.cli.train_sft"
SECONDS_BETWEEN_LOOKS = 0.01
_SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torchrun(num_ranks: int, max_restarts: int = 0, module: str = MODULE) -> list[str]:
    """Its words up to the flags of the run."""
    return [
        str(BIN / "torchrun"), "--nproc_per_node", str(num_ranks), "--max_restarts", str(max_restarts),
        "--master_port", str(_free_port()), "-m", module,
    ]  # fmt: skip


def deepspeed(num_ranks: int) -> list[str]:
    """Its words up to the flags of the run."""
    return [
        str(BIN / "deepspeed"), "--num_accelerators", str(num_ranks), "--master_port", str(_free_port()),
        "--module", MODULE,
    ]  # fmt: skip


class Launched:
    """While it lasts, the launcher runs; at its end all that it started is killed.

    Args:
        words: of the launcher.
        argv: of the run.
        log: file for all that is said.
    """

    def __init__(self, words: Sequence[str], argv: Sequence[str], log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._argv = log, b"\0".join(word.encode() for word in argv)
        env = {name: value for name, value in os.environ.items() if name not in _SET_BY_LAUNCHERS}
        env |= {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                [*words, *argv], env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def ranks(self) -> dict[int, int]:
        """Process id by rank, of the ranks that run now: processes with the run's flags that know their rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._argv not in (folder / "cmdline").read_bytes():
                    continue
                names = dict(line.partition(b"=")[::2] for line in (folder / "environ").read_bytes().split(b"\0"))
            except OSError:  # it has ended meanwhile
                continue
            if b"RANK" in names:
                found[int(names[b"RANK"])] = int(folder.name)
        return found

    def have_ranks_left(self, seconds: float) -> bool:
        """True where all ranks end within that long."""
        deadline = time.monotonic() + seconds
        while self.ranks() and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return not self.ranks()

    def wait_until(self, is_so: Callable[[], bool], seconds: float) -> None:
        """Until then; fails where the launcher has ended before, or after that long."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.launcher.poll() is None, f"the launcher ended with {self.launcher.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s:\n{self.said()}"
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def is_running(self) -> bool:
        return self.launcher.poll() is None

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pid in {*self.ranks().values(), self.launcher.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.launcher.wait()
