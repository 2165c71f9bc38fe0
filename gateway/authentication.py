"""Who is asking: API keys, and whether what they ask for is theirs to ask.

A key reads `hfk_<key id>_<secret>`. The state holds the BLAKE3 of the secret only; with 256 random
bits in it, a slow hash would add nothing. Roles and visibilities are judged by the one table in
`metadata_raft/access.py`. The gateway refuses early, before a body is read and before
`100 Continue`; the state machine judges every change again, at its place in the order of changes.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from blake3 import blake3

from gateway.errors import ApiError
from gateway.interfaces import Snapshot
from metadata_raft import access
from metadata_raft.commands import ANONYMOUS
from metadata_raft.records import BucketRecord

_KEY = re.compile(r"hfk_([0-9a-f]{16})_([0-9a-f]{64})", re.ASCII)

KEY_ID_BYTES = 8
SECRET_BYTES = 32


class NewApiKey(NamedTuple):
    text: str
    """The whole key, for its owner."""
    key_id: str
    secret_hash: bytes
    """For the `CreateKey` or `BootstrapCluster` command."""


class PresentedKey(NamedTuple):
    """A key as a request carried it, not verified yet."""

    key_id: str
    secret: str


class Principal(NamedTuple):
    """Who asks, verified. `role` is None without a key."""

    actor: str
    role: str | None


NOBODY = Principal(ANONYMOUS, None)


def new_key() -> NewApiKey:
    """Mint an API key from the system's randomness; nothing is stored."""
    key_id = secrets.token_hex(KEY_ID_BYTES)
    secret = secrets.token_hex(SECRET_BYTES)
    return NewApiKey(f"hfk_{key_id}_{secret}", key_id, secret_hash(secret))


def secret_hash(secret: str) -> bytes:
    """What the state keeps of a key: BLAKE3-256 of the secret's hex text."""
    return blake3(secret.encode()).digest()


def presented_key(headers: Mapping[str, str]) -> PresentedKey | None:
    """The key in `Authorization: Bearer` or `X-Api-Key`; None where a request has neither.

    Raises ApiError(unauthenticated) for anything that can't be a key.
    """
    text = headers.get("Authorization")
    if text is not None:
        scheme, _, text = text.partition(" ")
        if scheme.lower() != "bearer":
            raise ApiError("unauthenticated", "the Authorization header has to be: Bearer <key>")
    else:
        text = headers.get("X-Api-Key")
        if text is None:
            return None
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise ApiError("unauthenticated", "the API key does not have the form hfk_<id>_<secret>")
    return PresentedKey(match[1], match[2])


def verify(snapshot: Snapshot, presented: PresentedKey | None) -> Principal:
    """Who presented this key. Raises ApiError(unauthenticated) for an unknown or wrong one."""
    if presented is None:
        return NOBODY
    record = snapshot.key(presented.key_id)
    known = record.secret_hash if record is not None else bytes(32)
    matches = hmac.compare_digest(secret_hash(presented.secret), known)
    if record is None or not matches:
        raise ApiError("unauthenticated", f"the API key {presented.key_id} is not valid")
    return Principal(record.key_id, record.role)


def readable_bucket(snapshot: Snapshot, principal: Principal, name: str) -> BucketRecord:
    """The bucket, if it is there and its files may be read.

    Somebody without a key can't tell a private bucket from one that does not exist.
    """
    bucket = snapshot.bucket(name)
    if not access.may_read(principal.role, "private" if bucket is None else bucket.visibility):
        raise denied(principal, f"reading bucket {name}")
    if bucket is None:
        raise ApiError("no_such_bucket", f"there is no bucket {name}")
    return bucket


def writable_bucket(snapshot: Snapshot, principal: Principal, name: str) -> BucketRecord:
    """The bucket, if it is there and its files may be written and deleted."""
    bucket = snapshot.bucket(name)
    if not access.may_write(principal.role, "private" if bucket is None else bucket.visibility):
        raise denied(principal, f"writing to bucket {name}")
    if bucket is None:
        raise ApiError("no_such_bucket", f"there is no bucket {name}")
    return bucket


def require_administrator(principal: Principal, deed: str) -> None:
    if not access.may_administer(principal.role):
        raise denied(principal, deed)


def denied(principal: Principal, deed: str) -> ApiError:
    """401 for somebody without a key, who could come back with one; else 403."""
    if principal.role is None:
        return ApiError("unauthenticated", f"{deed} needs an API key")
    return ApiError("forbidden", f"{deed} is not allowed for a {principal.role} key")
