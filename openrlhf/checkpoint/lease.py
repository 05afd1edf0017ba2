"""The lease on a folder: the run that holds it alone writes there; another one is told who holds it.

The lease is the file `.owner.json` in the folder. Its owner renews it by giving it a new modification time, which takes
no space. Nothing but exclusive creation and renaming is asked of the file system, so it works on NFS and Lustre, and
no clock is compared with another machine's:

- An owner on this machine whose process is gone is dead.
- Any other one is dead once its file has been watched for 30 seconds without a renewal.
- A live one is given 12 seconds to end: ranks whose launcher was killed end within ten. Then the second run is refused.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.distributed import ProcessGroup

from openrlhf.config.sources import with_secrets_hidden
from openrlhf.errors import UserError
from openrlhf.exit_codes import EXIT_CODE_STOPPED
from openrlhf.parallel.collectives import gather_objects, rank_in
from openrlhf.processes import start_of, this_machine

FILE_NAME = ".owner.json"
SECONDS_BETWEEN_RENEWALS = 4.0
SECONDS_UNTIL_REFUSED = 12.0
SECONDS_UNTIL_DEAD = 30.0
_SECONDS_BETWEEN_LOOKS = 0.25
_LONGEST_COMMAND = 300


class LeaseLost(OSError):
    """Another run has taken the folder: this process was stopped for longer than a lease lasts."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder.

    machine, started: see `openrlhf/processes.py`.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    command: str

    @classmethod
    def here(cls) -> Owner:
        """This process, with a token that no other has."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), this_machine(), pid, start_of(pid), since, _command())

    @property
    def is_near(self) -> bool:
        """Whether this process can see the owner's."""
        return self.machine == this_machine()

    @property
    def is_dead(self) -> bool:
        return self.is_near and start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"


def _command() -> str:
    """This process's command line, without secrets."""
    return shlex.join(with_secrets_hidden(sys.argv))[:_LONGEST_COMMAND]


@dataclass(frozen=True)
class _Found:
    """A lease's file as it stands: content, and the time of its last renewal."""

    content: bytes
    renewed_ns: int

    @property
    def owner(self) -> Owner | None:
        """None for a file that is being written, or damaged."""
        try:
            return Owner(**json.loads(self.content))
        except (ValueError, TypeError):
            return None


class Lease:
    """One folder's lease, of this process."""

    def __init__(self, folder: Path):
        self._path = folder / FILE_NAME
        self._owner = Owner.here()

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lease; from a live owner it waits a little for its end, and says so.

        Raises UserError where another run holds the folder, OSError where it cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        began_at = unchanged_since = time.monotonic()
        first = seen = None
        while not self._create():
            now, found = time.monotonic(), self.look()
            if found is None:
                continue
            if found != seen:
                unchanged_since, seen = now, found
            owner = found.owner
            if (owner and owner.is_dead) or now - unchanged_since > SECONDS_UNTIL_DEAD:
                self._take_over(found)
                continue
            if first is None:
                first = found
                say(f"{self._path.parent} is held by another run ({owner or 'unknown'}). Waiting for its end.")
            is_alive = found != first or (owner is not None and owner.is_near)
            if is_alive and now - began_at > SECONDS_UNTIL_REFUSED:
                raise UserError(
                    f"{self._path.parent} belongs to a run that is still going on: {owner or 'unknown'}. End that run, "
                    "or give this one folders of its own (--ckpt.output_dir and --ckpt.path)."
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def renew(self) -> None:
        """Raises LeaseLost where another run holds the folder now; a disk that is away for a moment is no loss."""
        found = None
        with suppress(OSError):
            found = self.look()
            if found is None:  # removed by the user
                self._create()
            elif found.owner == self._owner:
                os.utime(self._path)
        if found is not None and found.owner != self._owner:
            raise LeaseLost(
                f"{self._path.parent} was taken over by another run while this one stood still: "
                f"{found.owner or 'unknown'}"
            )

    def release(self) -> None:
        with suppress(OSError):
            found = self.look()
            if found is not None and found.owner == self._owner:
                self._path.unlink()

    def _create(self) -> bool:
        """False where there is one already. On a full disk nothing is left: an owner that is not told looks alive."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        content = json.dumps(asdict(self._owner), indent=1).encode()
        try:
            if os.write(file, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(file)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def look(self) -> _Found | None:
        """The file as it stands; None where there is none."""
        try:
            with open(self._path, "rb") as file:  # opening asks a file server anew; a bare stat may not
                return _Found(file.read(), os.fstat(file.fileno()).st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _take_over(self, dead: _Found) -> None:
        """Moves a dead owner's file away. Of several runs that try, renaming lets one win."""
        aside = self._path.with_name(f".owner-{self._owner.token}.json")
        with suppress(FileNotFoundError):
            os.rename(self._path, aside)
            if aside.read_bytes() == dead.content:
                aside.unlink()
            else:
                os.replace(aside, self._path)  # another run was quicker, and this is its own


# --- the leases of this process ---

_held: dict[Path, tuple[Lease, int]] = {}  # by folder; how often it is held, as parts of a run hold it on their own
_lock = threading.Lock()


def confirm(folder: Path) -> None:
    """Before a run's files are put in place in `folder`. Raises LeaseLost where another run has taken it."""
    held = _held.get(folder.resolve())
    if held:
        held[0].renew()


def other_holder_of(folder: Path) -> str | None:
    """Who holds `folder` and may be alive; None where nobody does, or this process."""
    found = None if folder.resolve() in _held else Lease(folder).look()
    owner = found and found.owner
    return None if found is None or (owner and owner.is_dead) else str(owner or "unknown")


@contextmanager
def owning(folder: Path | str, say: Callable[[str], None] = print) -> Iterator[None]:
    """While it lasts, this process holds `folder`, and renews its lease. See `Lease.acquire` for errors."""
    place = Path(folder).resolve()
    lease, times = _held.get(place, (None, 0))
    if lease is None:
        lease = Lease(place)
        lease.acquire(say)
    with _lock:
        is_first = not _held
        _held[place] = (lease, times + 1)
    if is_first:
        threading.Thread(target=_renew_all, name="lease", daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            times = _held.pop(place)[1] - 1
            if times:
                _held[place] = (lease, times)
        if not times:
            lease.release()


@contextmanager
def owning_together(
    folders: Iterable[Path | str], group: ProcessGroup | None, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Rank 0 holds the folders; all ranks call. Raises UserError on every rank where it cannot."""
    with ExitStack() as held:
        problems: list[str] = []
        for folder in folders if rank_in(group) == 0 else ():
            try:
                held.enter_context(owning(folder, say))
            except UserError as error:
                problems += error.problems
            except OSError as error:
                problems.append(f"{folder} cannot be written: {error.strerror}.")
        if problems := gather_objects(problems, group)[0]:
            raise UserError(*problems)
        yield


def _renew_all() -> None:
    """Until nothing is held. A process that has lost a folder ends at once: what it would save is not its own."""
    while True:
        time.sleep(SECONDS_BETWEEN_RENEWALS)
        with _lock:
            leases = [lease for lease, _ in _held.values()]
        if not leases:
            return
        try:
            for lease in leases:
                lease.renew()
        except LeaseLost as error:
            print(f"error: {error}. This run ends and saves nothing.", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE_STOPPED)
