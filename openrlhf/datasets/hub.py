"""Whether the model hub can be asked at all: without a network its client tries again for most of a minute."""

from __future__ import annotations

import functools
import os
import socket
from urllib.parse import urlsplit


def is_offline_by_choice() -> bool:
    """Whether the user asked for what was fetched before, and nothing else."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


@functools.cache
def hub_can_be_asked() -> bool:
    """False offline: as the user says (`HF_HUB_OFFLINE`), or because the hub's name has no address.

    Behind a proxy names need not be known here, so the client is left to find out.
    """
    if is_offline_by_choice():
        return False
    if any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
