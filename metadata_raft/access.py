"""Who may do what: one pure decision table, shared by the state machine and the gateway.

A role comes from the API key of a request; an anonymous request, or one whose key has been revoked,
has none. What a role doesn't give, the visibility of a bucket may. Everything else is denied.

    role      files                buckets                          keys, cluster
    admin     read, write          all                              all
    writer    read, write          create; change and delete own    -
    reader    read                 -                                -
    none      as the visibility    -                                -
"""

from __future__ import annotations

ROLES = frozenset({"admin", "writer", "reader"})
VISIBILITIES = frozenset({"private", "public-read", "public-read-write"})


def may_read(role: str | None, visibility: str) -> bool:
    """Whether files of a bucket with this visibility may be read and listed."""
    return role is not None or visibility != "private"


def may_write(role: str | None, visibility: str) -> bool:
    """Whether files of a bucket with this visibility may be written and deleted."""
    return role in {"admin", "writer"} or visibility == "public-read-write"


def may_create_buckets(role: str | None) -> bool:
    return role in {"admin", "writer"}


def may_change_bucket(role: str | None, *, is_owner: bool) -> bool:
    """Whether a bucket's settings may be changed, or the bucket deleted."""
    return role == "admin" or (role == "writer" and is_owner)


def may_administer(role: str | None) -> bool:
    """Whether keys, join tokens and the cluster may be changed."""
    return role == "admin"
