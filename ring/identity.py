"""Who belongs to the cluster: one secret, and the keys that follow from it.

Every node of a cluster holds the same 32 random bytes. Keys for requests, for Raft and for the
certificate authority are derived from them (HKDF-SHA256, RFC 5869), bound to their purpose and to
the cluster's id, so that none of them tells anything about another. The secret itself crosses the
network once, sealed with a join token, when a node is admitted. Certificates are in `ring/tls.py`,
the signatures of requests in `ring/signatures.py`; all bytes are described in docs/format.md.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ring.members import NodeId

SECRET_SIZE = 32
KEY_SIZE = 32
_NONCE_SIZE = 12


class SealedError(Exception):
    """Sealed bytes that were not sealed with this key, for this purpose, or were changed since."""


def new_cluster_secret() -> bytes:
    return secrets.token_bytes(SECRET_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterIdentity:
    """A node of a cluster, with all it can prove. Never printed: `repr` holds no secret."""

    cluster_id: str
    node_id: NodeId
    secret: bytes = field(repr=False)
    incarnation: int = 1
    """Of the cluster; nodes of another one are refused (rule M7)."""

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_SIZE:
            raise ValueError(f"a cluster secret has {SECRET_SIZE} bytes, not {len(self.secret)}")

    def cluster_name(self) -> str:
        """What requests between peers name: the cluster in this incarnation."""
        return f"{self.cluster_id}/{self.incarnation}"

    def request_key(self) -> bytes:
        """Signs requests between peers where TLS is off."""
        return self._derive(b"peer requests")

    def raft_key(self) -> bytes:
        """What members of the Raft group prove to each other that they know."""
        return self._derive(b"raft")

    def authority_seed(self) -> bytes:
        """The Ed25519 seed of the cluster's certificate authority (RFC 8032)."""
        return self._derive(b"certificate authority")

    def _derive(self, purpose: bytes) -> bytes:
        salt = b"holdfast 1 " + self.cluster_id.encode()
        return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=purpose).derive(
            self.secret
        )


def seal(key: bytes, plaintext: bytes, purpose: bytes) -> bytes:
    """Encrypt and authenticate under a 32-byte key (ChaCha20-Poly1305, RFC 8439).

    `purpose` is bound to the result, which opens only for the same one. The nonce is random and
    comes first: a key may seal many messages, but not billions.
    """
    nonce = secrets.token_bytes(_NONCE_SIZE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, purpose)


def unseal(key: bytes, sealed: bytes, purpose: bytes) -> bytes:
    """Return what was sealed. Raises SealedError."""
    nonce, ciphertext = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
    if len(nonce) < _NONCE_SIZE:
        raise SealedError("sealed bytes are too short")
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, purpose)
    except InvalidTag:
        raise SealedError("not sealed with this key for this purpose, or changed since") from None
