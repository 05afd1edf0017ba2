"""Short JSON messages between the processes of a job, over TCP connections of their own: no collective, no thread.

Rank 0 is connected with every other rank. A sender never waits: a message that does not fit into a socket's buffer is
lost.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import resource
import secrets
import selectors
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.exit_codes import RankLost
from openrlhf.parallel.collectives import gather_objects

SECONDS_TO_CONNECT = 30.0
_TOKEN_BYTES = 16
_OTHER_OPEN_FILES = 1024  # of data sets, libraries and process groups

Message = dict[str, Any]


@contextmanager
def joining_ranks(world_size: int) -> Iterator[None]:
    """Around code that connects this rank with the others, before the watchdog runs.

    Raises RankLost in place of errors of networks and collectives (torch's are RuntimeErrors), if there are others.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if world_size == 1:
            raise
        raise RankLost(
            "A rank has left, or cannot be reached, and not all ranks had joined yet: they wait for each other for "
            "--train.comm_timeout_minutes. Look for what the other ranks said, and start the run again. "
            f"Here the connection failed with: {error}\n{_how_to_reach_others()}"
        ) from error


def _how_to_reach_others() -> str:
    """Where ranks of several machines listen, as the machine's own name may lead to an address of its own."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        socket.getaddrinfo(master, None)
    except (OSError, UnicodeError):
        return f"MASTER_ADDR is {master}, a name that this machine does not know: set it to rank 0's machine."
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "no address"
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    listens = f"at the interface {interface} (GLOO_SOCKET_IFNAME)" if interface else f"at {name}, which is {address}"
    return (
        f"MASTER_ADDR is {master}; gloo listens {listens}. If machines cannot reach each other there, set "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that they share (`ip address` shows it)."
    )


class PeerConnections:
    """The open connections of this process, by the rank at the other end."""

    def __init__(self, sockets: dict[int, socket.socket]):
        self._sockets = dict(sockets)
        self._unread = dict.fromkeys(sockets, b"")
        self._selector = selectors.DefaultSelector()
        for rank, connection in sockets.items():
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, rank)

    @property
    def ranks(self) -> list[int]:
        """The ranks at the other ends."""
        return list(self._sockets)

    def send(self, message: Message) -> None:
        """To every peer. `receive` notices a peer that is gone; a peer that does not read loses messages."""
        line = json.dumps(message).encode() + b"\n"
        for connection in list(self._sockets.values()):  # a copy: another thread may be in `receive`
            with contextlib.suppress(OSError):
                connection.send(line)

    def receive(self, seconds: float) -> tuple[list[tuple[int, Message]], list[int]]:
        """Waits at most `seconds` until something comes.

        Returns: messages, each with the rank that sent it; ranks whose connection has ended.
        """
        messages: list[tuple[int, Message]] = []
        ended = []
        for key, _ in self._selector.select(seconds):
            rank = key.data
            data = _read(self._sockets[rank])
            *lines, self._unread[rank] = (self._unread[rank] + data).split(b"\n")
            messages += [(rank, message) for line in lines if (message := _parsed(line))]
            if not data:
                ended.append(rank)
                self._selector.unregister(key.fileobj)
                self._sockets.pop(rank).close()
        return messages, ended

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._selector.close()


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:  # reset: the process at the other end was killed
        return b""


def _parsed(line: bytes) -> Message | None:
    """None for a line that was cut because the peer's buffer was full."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def connect_peers(rank: int, world_size: int, control: ProcessGroup | None, master_address: str) -> PeerConnections:
    """Connects rank 0 with every other rank; all ranks call. Raises OSError where a connection cannot be made.

    Args:
        control: a group of all ranks; rank 0 tells its port and a secret over it.
        master_address: where the others reach the machine of rank 0.
    """
    if world_size == 1:
        return PeerConnections({})
    server = socket.create_server(("", 0), backlog=world_size) if rank == 0 else None
    mine = (server.getsockname()[1], secrets.token_hex(_TOKEN_BYTES)) if server else None
    port, token = gather_objects(mine, control)[0]
    if server is None:
        connection = socket.create_connection((master_address, port), timeout=SECONDS_TO_CONNECT)
        connection.sendall(f"{token}{rank:08d}".encode())
        return PeerConnections({0: connection})
    _allow_open_files(world_size + _OTHER_OPEN_FILES)
    with server:
        return PeerConnections(_accept(server, world_size, token))


def _allow_open_files(number: int) -> None:
    """Each connection is an open file, and many systems allow a process 1,024 until it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _accept(server: socket.socket, world_size: int, token: str) -> dict[int, socket.socket]:
    """Connections of all other ranks. One that does not begin with the secret is a stranger's, and is closed."""
    server.settimeout(SECONDS_TO_CONNECT)
    sockets: dict[int, socket.socket] = {}
    while len(sockets) < world_size - 1:
        connection, _ = server.accept()
        connection.settimeout(SECONDS_TO_CONNECT)
        greeting = connection.recv(len(token) + 8, socket.MSG_WAITALL)
        if hmac.compare_digest(greeting[: len(token)], token.encode()):
            sockets[int(greeting[len(token) :])] = connection
        else:
            connection.close()
    return sockets
