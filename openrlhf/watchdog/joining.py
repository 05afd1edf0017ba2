"""While ranks join, nobody watches over them yet: what a lost rank looks like then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from openrlhf.exit_codes import RankLost


@contextmanager
def joining_ranks(world_size: int) -> Iterator[None]:
    """Around what connects this rank with the others.

    Raises RankLost in place of the errors of networks and collectives (torch's are RuntimeErrors), if there are others.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if world_size == 1:
            raise
        raise RankLost(
            "A rank has left, or cannot be reached, and not all ranks had joined yet. Look for what the other ranks "
            f"said, and start the run again. Here the connection failed with: {error}"
        ) from error
