"""A disk that is full, or closed to a stage, is told in words: what the stage has written so far counts."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from openrlhf.errors import UserError

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ("written", "make room")),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), ("opened", "let it be read and written")),
}
_Stage = TypeVar("_Stage", bound=Callable[..., Any])


def keeps_on_a_full_disk(stage: _Stage) -> _Stage:
    """A stage that raises UserError where the disk is full, or closed to it: what it has written so far counts."""

    @functools.wraps(stage)
    def run(*given: Any, **named: Any) -> Any:
        try:
            return stage(*given, **named)
        except OSError as error:
            if error.errno not in _REMEDIES:
                raise
            what, remedy = _REMEDIES[error.errno]
            raise UserError(
                f"{error.filename or 'A file'} cannot be {what}: {error.strerror}. All rows so far are kept: {remedy}, "
                "and start the same command again."
            ) from error

    return run  # type: ignore[return-value]
