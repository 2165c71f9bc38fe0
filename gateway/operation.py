"""The form in which an operation of the HTTP API is described, and the refusals that many share.

The operations themselves stand in `operations.py` (files, buckets, keys, health) and in
`cluster_operations.py`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

BINARY = "application/octet-stream"


class Parameter(NamedTuple):
    name: str
    location: Literal["path", "query", "header"]
    schema: dict[str, Any]
    description: str


class Operation(NamedTuple):
    method: str
    template: str
    operation_id: str
    summary: str
    answers: dict[int, type[msgspec.Struct] | str | None]
    """By status: a document, a media type of raw bytes, or None for no body."""
    refusals: tuple[str, ...]
    """Codes beyond those that every operation has."""
    parameters: tuple[Parameter, ...] = ()
    body: type[msgspec.Struct] | str | None = None
    body_required: bool = True
    is_open: bool = False
    """Needs no key, whatever it is asked for."""


COMMON_REFUSALS = (
    "invalid_request",
    "invalid_parameter",
    "header_too_large",
    "internal_error",
    "overloaded",
    "not_ready",
)
KEYED = ("unauthenticated", "forbidden", "no_quorum")
WRITE = (
    *KEYED,
    "invalid_command",
    "expectation_failed",
    "body_timeout",
    "body_incomplete",
    "request_expired",
    "outcome_unknown",
)
DOCUMENT = (*WRITE, "invalid_document", "body_too_large")
