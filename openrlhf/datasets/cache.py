"""The folder of prepared data: who makes it, how others wait for it, and that a half-made one is never seen.

A prepared data set lies in `<cache>/<key>/`. Whoever takes the lock file `<key>.lock` first makes it, aside, and puts
it in place by one rename. Others poll the disk until the folder is there; they wait in no collective, so no rank times
out while another tokenizes, and ranks that share no disk simply each make their own. A lock whose maker died (its
process is gone, or the file has not been touched for a minute) is taken over. A maker that fails leaves its message,
so that everyone who waited fails with it at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from openrlhf.atomic_file import replace_file
from openrlhf.config.disk import local_path
from openrlhf.errors import UserError
from openrlhf.processes import has_ended, is_near, this_process

logger = logging.getLogger(__name__)

MAKING = ".making-"  # the key stands before it, and behind it the process of the maker
POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
TELL_SECONDS = 5.0


def open_cache_dir(cache_dir: str | Path | None) -> Path:
    """The cache folder, made if need be: the given one, else `$OPENRLHF_CACHE`, else one in the user's cache folder.

    Raises UserError if it cannot be written.
    """
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    usual = os.environ.get("OPENRLHF_CACHE") or user_cache / "openrlhf" / "datasets"
    folder = local_path(usual if cache_dir is None else cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be written ({error.strerror}): choose one by --data.cache_dir."
        ) from error
    return folder


def prepared_folder(cache_dir: Path, key: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
    """The folder of `key`, made now unless it is whole already.

    Args:
        make: fills an empty folder; may raise UserError, which every waiting process raises too.
        is_whole: whether a folder holds all that `make` writes; one that is not is made anew.

    Raises UserError where the cache cannot be written.
    """
    try:
        _remove_leftovers(cache_dir)
        return _prepared_folder(cache_dir, key, make, is_whole)
    except OSError as error:
        raise UserError(
            f"The prepared data cannot be written to {cache_dir} ({error.strerror or error}): make room there, or "
            "choose another folder by --data.cache_dir."
        ) from error


def _prepared_folder(cache_dir: Path, key: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool]) -> Path:
    folder, waiting = cache_dir / key, _Wait(cache_dir / f"{key}.lock", cache_dir / f"{key}.failed")
    while not is_whole(folder):
        if _take_lock(waiting.lock):
            with _held(waiting.lock):
                if not is_whole(folder):  # another process may have made it just before
                    _make_aside(folder, make, waiting.failure)
            break
        waiting.once()
    return folder


def _make_aside(folder: Path, make: Callable[[Path], None], failure: Path) -> None:
    """Makes the folder under another name and puts it in place when it is whole."""
    failure.unlink(missing_ok=True)
    if folder.exists():
        logger.warning("%s is damaged: it is prepared anew.", folder)
    aside = folder.with_name(f"{folder.name}{MAKING}{this_process()}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        make(aside)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    except UserError as error:
        with contextlib.suppress(OSError):  # a full disk
            replace_file(failure, json.dumps(error.problems))
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(cache_dir: Path) -> None:
    """Removes what killed makers have left: their process is gone; where it cannot be seen, nobody has the lock."""
    for aside in cache_dir.glob(f"*{MAKING}*"):
        key, _, made_by = aside.name.rpartition(MAKING)
        maker = made_by.rpartition("-")[0]
        if has_ended(maker) if is_near(maker) else not (cache_dir / f"{key}.lock").exists():
            shutil.rmtree(aside, ignore_errors=True)


class _Wait:
    """One process's wait for another's work."""

    def __init__(self, lock: Path, failure: Path):
        self.lock, self.failure = lock, failure
        self._seen: tuple[int, int] | None = None
        self._seen_since = time.monotonic()
        self._first_failure = _modified_ns(failure)
        self._tell_at: float | None = time.monotonic() + TELL_SECONDS

    def once(self) -> None:
        """Sleeps a moment; raises the maker's UserError if it failed meanwhile; removes a dead maker's lock."""
        time.sleep(POLL_SECONDS)
        self._tell()
        failed = _modified_ns(self.failure)
        if failed is not None and failed != self._first_failure:
            raise UserError(*json.loads(self.failure.read_text(encoding="utf-8")))
        if self._is_stale():
            stale = self.lock.with_name(f"{self.lock.name}.stale-{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                self.lock.rename(stale)
                stale.unlink()

    def _tell(self) -> None:
        """Says once, by the first rank alone, what takes so long."""
        if self._tell_at is not None and time.monotonic() >= self._tell_at:
            self._tell_at = None
            if os.environ.get("RANK", "0") == "0":
                logger.warning("Another process prepares the data (%s): this one waits for it.", self.lock)

    def _is_stale(self) -> bool:
        """Judged by what this process saw change, never by comparing two machines' clocks."""
        try:
            stat = self.lock.stat()
            owner = self.lock.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        if (stat.st_mtime_ns, stat.st_ino) != self._seen:
            self._seen, self._seen_since = (stat.st_mtime_ns, stat.st_ino), time.monotonic()
        return has_ended(owner) or time.monotonic() - self._seen_since > STALE_SECONDS


def _take_lock(lock: Path) -> bool:
    """Makes the lock file; False if there is one."""
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(this_process())
    except FileExistsError:
        return False
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    return True


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Keeps touching the lock so that others see its maker live; removes it at the end."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(lock)

    heart = threading.Thread(target=touch, daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()
        lock.unlink(missing_ok=True)


def _modified_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
