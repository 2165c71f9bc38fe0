"""Ports: which are free, and whether one can be had, said in one sentence."""

from __future__ import annotations

import errno
import random
import socket

from node.errors import PortTakenError

_RANGE = range(20_000, 32_000)
"""Below the range that Linux takes outgoing connections from, so that nothing slips in between."""


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """`count` distinct ports that nobody listens on now, chosen at random."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
        if len(chosen) == count:
            break
        if _available(host, port):
            chosen.append(port)
    return chosen


def check_available(host: str, port: int, purpose: str) -> None:
    """Raise PortTakenError if `host:port` can't be listened on."""
    try:
        _bind(host, port)
    except OSError as error:
        raise PortTakenError(sentence(host, port, purpose, error)) from error


def sentence(host: str, port: int, purpose: str, error: OSError) -> str:
    """What to tell the operator about a failed bind."""
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} ({purpose}) is taken by another process."
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} ({purpose}) needs privileges this process does not have."
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} ({purpose}, port {port}) is not an address of this machine."
    return f"Port {port} on {host} ({purpose}) can't be listened on: {error.strerror}."


def _available(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen(1)
