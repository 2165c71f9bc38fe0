"""Asks a node how it is, with nothing but the standard library: for starters and supervisors."""

from __future__ import annotations

import enum
import http.client
import urllib.parse

_TIMEOUT_SECONDS = 2.0


class Health(enum.Enum):
    READY = "ready"
    NOT_READY = "not ready"
    UNREACHABLE = "unreachable"


def probe(url: str) -> Health:
    """Ask `/health/ready` of the node at `url` (plain HTTP)."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS
    )
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return Health.UNREACHABLE
    finally:
        connection.close()
    return Health.READY if response.status == http.client.OK else Health.NOT_READY
