"""Mutual TLS between this node and the others, where it is wanted.

Made once per start from the cluster secret; the certificate code is imported only then, because a
node on loopback signs its requests instead and should not carry it.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

from ring.identity import ClusterIdentity


class PeerEncryption(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext
    member_name: str
    """The name in every member's certificate, for connections that prove the node id themselves."""


def make(identity: ClusterIdentity) -> PeerEncryption:
    from ring import tls  # noqa: PLC0415 - see above

    return PeerEncryption(
        tls.server_context(identity), tls.client_context(identity), tls.MEMBER_SERVER_NAME
    )
