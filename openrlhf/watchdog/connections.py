"""Short JSON messages between the processes of a job, over TCP connections of their own: no collective, no thread.

Rank 0 is connected with every other rank. Nobody waits for anybody: what does not fit into a socket's buffer is lost.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import selectors
import socket
from typing import Any

from torch.distributed import ProcessGroup

from openrlhf.parallel.collectives import gather_objects

SECONDS_TO_CONNECT = 30.0
_TOKEN_BYTES = 16


class PeerLines:
    """The open connections of this process, by the rank at the other end."""

    def __init__(self, sockets: dict[int, socket.socket]):
        self._selector = selectors.DefaultSelector()
        self._unread = dict.fromkeys(sockets, b"")
        for rank, connection in sockets.items():
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, rank)

    @property
    def ranks(self) -> list[int]:
        """The ranks at the other ends."""
        return [key.data for key in self._selector.get_map().values()]

    def send(self, message: dict[str, Any]) -> None:
        """To every peer. One that is gone is noticed by `receive`; one that does not read loses lines."""
        line = json.dumps(message).encode() + b"\n"
        for key in list(self._selector.get_map().values()):
            with contextlib.suppress(OSError):
                key.fileobj.send(line)  # type: ignore[union-attr]

    def receive(self, seconds: float) -> tuple[list[tuple[int, dict[str, Any]]], list[int]]:
        """Waits until something comes, at most that long: (messages by rank, ranks whose connection has ended)."""
        messages: list[tuple[int, dict[str, Any]]] = []
        ended = []
        for key, _ in self._selector.select(seconds):
            connection, rank = key.fileobj, key.data
            data = _read(connection)  # type: ignore[arg-type]
            *lines, self._unread[rank] = (self._unread[rank] + data).split(b"\n")
            messages += [(rank, message) for line in lines if (message := _parsed(line))]
            if not data:
                ended.append(rank)
                self._selector.unregister(connection)
                connection.close()  # type: ignore[union-attr]
        return messages, ended

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:  # reset: the process at the other end was killed
        return b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for a line that was cut because the peer's buffer was full."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def connect_peers(rank: int, world_size: int, control: ProcessGroup | None, master_address: str) -> PeerLines:
    """Connects rank 0 with every other rank; all ranks call. Raises OSError where a connection cannot be made.

    Args:
        master_address: where the others reach the machine of rank 0.
    """
    if world_size == 1:
        return PeerLines({})
    server = socket.create_server(("", 0), backlog=world_size) if rank == 0 else None
    mine = (server.getsockname()[1], secrets.token_hex(_TOKEN_BYTES)) if server else None
    port, token = gather_objects(mine, control)[0]
    if server is None:
        connection = socket.create_connection((master_address, port), timeout=SECONDS_TO_CONNECT)
        connection.sendall(f"{token}{rank:08d}".encode())
        return PeerLines({0: connection})
    with server:
        return PeerLines(_accept(server, world_size, token))


def _accept(server: socket.socket, world_size: int, token: str) -> dict[int, socket.socket]:
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
