"""The network interface for gloo, which listens where the machine's own name leads: often 127.0.1.1, out of reach."""

from __future__ import annotations

import os
import socket

from openrlhf.engine.launchers import num_local_ranks

_NAME = "GLOO_SOCKET_IFNAME"
_ANYWHERE = "192.0.2.1"  # an address for documentation (RFC 5737): nothing is sent to it, its route is looked up


def choose_gloo_interface() -> None:
    """Names the interface that leads to the other machines, where ranks would listen at a loopback address.

    A variable that the user has set stays.
    """
    if _NAME in os.environ or _is_one_machine() or not leads_to_loopback(socket.gethostname()):
        return
    interface = _interface_towards(os.environ["MASTER_ADDR"]) or _interface_towards(_ANYWHERE) or _only_interface()
    if interface:
        os.environ[_NAME] = interface


def leads_to_loopback(name: str) -> bool:
    """Whether a host name means this machine alone, or is not known."""
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except OSError:
        return True
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _is_one_machine() -> bool:
    master = os.environ["MASTER_ADDR"]
    all_are_here = num_local_ranks(os.environ) == int(os.environ["WORLD_SIZE"])
    return all_are_here or master == "localhost" or _is_loopback(master)


def _interface_towards(host: str) -> str:
    """The interface that has this machine's address on the way to `host`; empty where that is a loopback address."""
    own = _own_address_towards(host)
    return next((name for name, addresses in _interfaces().items() if own in addresses), "")


def _own_address_towards(host: str) -> str:
    """Empty where there is no way. Nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _only_interface() -> str:
    names = list(_interfaces())
    return names[0] if len(names) == 1 else ""


def _interfaces() -> dict[str, list[str]]:
    """The IP addresses of each interface that reaches other machines."""
    import psutil  # DeepSpeed needs it too

    found = {
        name: [one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)]
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: ips for name, ips in found.items() if ips and not any(map(_is_loopback, ips))}


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
