"""A process that judges answers and can be killed, `python -m openrlhf.rejection.rewards.process FD FD`; who starts it.

The two sides send each other JSON over a socket. The process leads a group of its own, so that what the function starts
dies with it. A second process of the group waits for the end of a pipe that the parent alone holds: then all of it is
killed, whatever the function is at. Where memory runs out, the kernel ends the process rather than the run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from openrlhf.errors import UserError, first_line_of
from openrlhf.rejection.records import Row
from openrlhf.rejection.rewards.reward import CallFailed, NoReward, RewardVerdict

_SECONDS_TO_START = 600.0  # a user's file may load a model
_KILLED_FIRST = "1000"  # Linux: the highest score of who is to be killed when memory runs out


class RewardProcess:
    """One process, started again after it has been killed or has died."""

    def __init__(self, name: str, timeout_seconds: float):
        self._name, self._timeout_seconds = name, timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()  # the stage may end while a thread starts the process, or finds it dead
        self._has_ended = False

    def start(self) -> None:
        """Raises UserError where the function cannot be loaded, or the stage has ended."""
        with self._turn:  # else one that is being started while the stage ends would be left
            self._check_stage()
            self._start_process()
        try:
            problem = self._ask(self._name, _SECONDS_TO_START)
        except CallFailed as error:
            problem = str(error)
        if problem:
            self._kill()
            raise UserError(f"--score.reward {self._name}: {problem}.")

    def call(self, rows: Sequence[Row]) -> list[RewardVerdict]:
        """Raises CallFailed: an exception, no end within the time limit, a death."""
        self._check_stage()
        if self._process is None:
            self.start()
        answer = self._ask(list(rows), self._timeout_seconds)
        if isinstance(answer, str):
            raise CallFailed(answer)
        return [RewardVerdict(*one) for one in answer]

    def end(self) -> None:
        """Kills the process for good; a thread that waits for it, or starts it, is told so."""
        self._has_ended = True
        self._kill()

    def _check_stage(self) -> None:
        if self._has_ended:
            raise UserError(f"--score.reward {self._name}: the stage has ended.")

    def _start_process(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._connection = Connection(os.dup(self._ours.fileno()))
        of_parent, self._held = os.pipe()
        with theirs, open(of_parent, "rb"):
            given = [theirs.fileno(), of_parent]
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, given)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a function prints belongs to no output of ours
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def _kill(self) -> None:
        """Kills the process and all that it has started; the next call starts another.

        A thread that waits for an answer is woken by the shutdown, even where a process that has left the group holds
        the other side. The connection is closed by whoever drops it last: a number that is closed under a thread which
        is about to wait may by then be another file's.
        """
        with self._turn:
            if self._process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                with suppress(OSError), self._ours:
                    self._ours.shutdown(socket.SHUT_RDWR)
                os.close(self._held)
                del self._connection
                self._process = None

    def _ask(self, question: Any, timeout_seconds: float) -> Any:
        with self._turn:
            self._check_stage()
            process, connection = self._process, self._connection
        assert process is not None
        try:
            connection.send_bytes(json.dumps(question).encode())
            if connection.poll(timeout_seconds):
                return json.loads(connection.recv_bytes())
            reason = f"no verdict within {timeout_seconds:g} s"
        except (OSError, EOFError):
            reason = _how_it_died(process)
        self._kill()
        raise CallFailed(reason)


def _how_it_died(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "its process has closed its connection"
    if code == -signal.SIGKILL:
        return "its process was killed, as when memory runs out"
    return f"its process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def _serve(connection: Connection) -> None:
    """The process's side: the function's name first, then answers, until the parent hangs up."""
    from openrlhf.rejection.rewards.functions import load_function

    process = os.getpid()

    def send(answer: Any) -> None:
        if os.getpid() != process:  # a fork of the user's code, which has come back from it
            os._exit(0)
        connection.send_bytes(json.dumps(answer).encode())

    try:
        judge = load_function(json.loads(connection.recv_bytes()))
    except NoReward as error:
        send(str(error))
        return
    send(None)
    while True:
        rows = json.loads(connection.recv_bytes())
        try:
            answer: Any = judge(rows)
        except CallFailed as error:
            answer = str(error)
        except Exception as error:
            answer = f"{type(error).__name__}: {first_line_of(error)}"
        send(answer)


def _end_with_parent(socket_fd: int, of_parent: int) -> None:
    """A thread could not: a function that keeps the interpreter to itself, as a regular expression does, stops it."""
    if os.fork() == 0:
        os.close(socket_fd)
        os.read(of_parent, 1)
        os.killpg(0, signal.SIGKILL)
    os.close(of_parent)


def main() -> None:
    socket_fd, of_parent = map(int, sys.argv[1:])
    _end_with_parent(socket_fd, of_parent)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_KILLED_FIRST)
    with suppress(EOFError, ConnectionError):
        _serve(Connection(socket_fd))


if __name__ == "__main__":
    main()
