"""Two machines on one: network namespaces with an address each, host names that lead to loopback as on Debian.

with TwoMachines(folder) as machines:
    done = machines.run([["hostname"], ["hostname"]])     # on both at once
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMES = ("machine-1", "machine-2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SECONDS_TO_END = 240
_NAMESPACES = ("--net", "--uts", "--mount")


@dataclass(frozen=True)
class Done:
    """What became of a command: its exit code, and all it said."""

    code: int
    said: str


def why_not() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if missing := [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]:
        return f"no {', '.join(missing)} here"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"],
        capture_output=True, text=True,
    )  # fmt: skip
    return tried.stderr.strip()


class TwoMachines:
    """While it lasts, two namespaces that reach each other, and nothing else, over `eth0`.

    Args: folder: for their files; `bin/` there has an ssh and a pdsh that reach them.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._holders: list[subprocess.Popen[str]] = []

    def __enter__(self) -> TwoMachines:
        try:
            for index in range(2):
                self._holders.append(self._hold(index))
            first, second = self._pids()
            link = ["ip", "link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns"]
            subprocess.run([*link, second], check=True)
            for index, address in enumerate(ADDRESSES):
                up = f"ip address add {address}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
                subprocess.run([*self.enter(index), "sh", "-c", up], check=True)
            self._write_remote_shells()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for holder in self._holders:
            holder.kill()
            holder.communicate()

    def enter(self, index: int) -> list[str]:
        """The words before a command that runs on a machine."""
        return ["nsenter", "--target", self._pids()[index], *_NAMESPACES]

    def run(self, commands: Sequence[Sequence[str]], env: Sequence[Mapping[str, str]] = ({}, {})) -> list[Done]:
        """A command on each machine, the first ones where there are fewer; all at once."""
        running = [
            subprocess.Popen(
                [*self.enter(index), *words], env=os.environ | env[index], text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )
            for index, words in enumerate(commands)
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=SECONDS_TO_END)[0] for process in running]
        finally:
            for process in running:
                process.kill()
        return [Done(process.returncode, text) for process, text in zip(running, said, strict=True)]

    def _hold(self, index: int) -> subprocess.Popen[str]:
        """A process that keeps a machine's namespaces."""
        hosts, other = self._folder / f"hosts-{index}", 1 - index
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {NAMES[index]}\n{ADDRESSES[other]} {NAMES[other]}\n")
        begin = f"mount --bind {hosts} /etc/hosts && hostname {NAMES[index]} && echo ready && exec sleep 3600"
        words = ["unshare", *_NAMESPACES, "sh", "-c", begin]
        holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        return holder

    def _pids(self) -> list[str]:
        return [str(holder.pid) for holder in self._holders]

    def _write_remote_shells(self) -> None:
        """Stand-ins for ssh and pdsh, as DeepSpeed's launcher calls them: the shell at the other end is a namespace."""
        folder = self._folder / "bin"
        folder.mkdir()
        cases = "\n".join(
            f'    {name}) {shlex.join(self.enter(index))} sh -c "$2" ;;' for index, name in enumerate(NAMES)
        )
        at = f'at() {{ case "$1" in\n{cases}\nesac; }}\n'
        ssh = 'while [ "${1#-}" != "$1" ]; do shift 2; done\nhost=$1; shift; at "$host" "$*"\n'
        pdsh = (
            'while [ "$1" != -w ]; do shift; done\nhosts=$2; shift 2\n'
            'case "$*" in pkill*) exit 0 ;; esac\n'  # how it ends what others run: here each ends by itself
            'n=0; for host in $(echo "$hosts" | tr , " "); do\n'
            '    at "$host" "$(echo "$*" | sed "s/%n/$n/g")" & pids="$pids $!"; n=$((n + 1))\n'
            'done\ncode=0; for pid in $pids; do wait "$pid" || code=$?; done; exit $code\n'
        )
        for name, text in {"ssh": ssh, "pdsh": pdsh}.items():
            (folder / name).write_text(f"#!/bin/sh\n{at}{text}")
            (folder / name).chmod(0o755)
