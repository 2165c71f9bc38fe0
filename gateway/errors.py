"""The one table from error codes to HTTP, and the one translation of what other layers raise.

A code is stable and for programs; a detail is a sentence that names the thing. Everything that
fails in the gateway ends as an `ApiError`, and every `ApiError` as a problem document (RFC 9457).
`CODES` is also where `openapi.py` takes the statuses from.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web

from gateway.documents import Problem
from gateway.json_documents import encode_document
from metadata_raft.commands import Failure
from metadata_raft.errors import (
    CommandTooLargeError,
    MetadataError,
    NotSubmittedError,
    OutcomeUnknownError,
)
from metadata_raft.errors import OverloadedError as MetadataOverloadedError
from ring.errors import OverloadedError, RingError, StoreFullError

RETRY_AFTER_SECONDS = 1
"""What a 503 suggests: elections and full queues are over within about a second."""


class Code(NamedTuple):
    status: int
    retryable: bool = False


CODES: Mapping[str, Code] = {
    # The request itself.
    "invalid_request": Code(400),
    "invalid_path": Code(400),
    "invalid_bucket_name": Code(400),
    "invalid_parameter": Code(400),
    "invalid_header": Code(400),
    "invalid_document": Code(400),
    "invalid_multipart": Code(400),
    "invalid_command": Code(400),
    "size_mismatch": Code(400),
    "digest_mismatch": Code(400),
    "body_incomplete": Code(400),
    "unauthenticated": Code(401),
    "forbidden": Code(403),
    "token_invalid": Code(403),
    "no_such_route": Code(404),
    "no_such_bucket": Code(404),
    "no_such_file": Code(404),
    "no_such_key": Code(404),
    "no_such_upload": Code(404),
    "no_such_member": Code(404),
    "method_not_allowed": Code(405),
    "body_timeout": Code(408, retryable=True),
    "bucket_exists": Code(409),
    "bucket_not_empty": Code(409),
    "already_bootstrapped": Code(409),
    "too_many_keys": Code(409),
    "node_is_alive": Code(409),
    "address_taken": Code(409),
    "too_few_nodes": Code(409),
    "stale_expectation": Code(409, retryable=True),
    "member_removed": Code(410),
    "precondition_failed": Code(412),
    "maintenance_unsafe": Code(412, retryable=True),
    "body_too_large": Code(413),
    "unsupported_media_type": Code(415),
    "range_not_satisfiable": Code(416),
    "expectation_failed": Code(417),
    "idempotency_key_reused": Code(422),
    "header_too_large": Code(431),
    # The cluster.
    "internal_error": Code(500),
    "content_damaged": Code(500),
    "no_quorum": Code(503, retryable=True),
    "overloaded": Code(503, retryable=True),
    "not_ready": Code(503, retryable=True),
    "restage": Code(503, retryable=True),
    "cluster_version_too_old": Code(503, retryable=True),
    "request_expired": Code(503, retryable=True),
    "idempotency_keys_full": Code(503, retryable=True),
    "chunks_unavailable": Code(503, retryable=True),
    "outcome_unknown": Code(504, retryable=True),
    "storage_full": Code(507),
    "quota_exceeded": Code(507),
}


class ApiError(Exception):
    """A refusal on its way to the client."""

    def __init__(self, code: str, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status, self.retryable = CODES[code]
        self.headers = headers or {}


def from_failure(failure: Failure) -> ApiError:
    """The state machine's refusal as one of ours; it uses the same codes."""
    if failure.code not in CODES:
        return ApiError("internal_error", f"{failure.code}: {failure.detail}")
    return ApiError(failure.code, failure.detail)


def translated(error: Exception) -> ApiError | None:
    """What another layer raised, as an ApiError; None for what nobody foresaw."""
    match error:
        case ApiError():
            return error
        case MetadataOverloadedError() | OverloadedError():
            return ApiError("overloaded", str(error))
        case CommandTooLargeError():
            return ApiError("invalid_command", str(error))
        case NotSubmittedError():
            return ApiError("no_quorum", str(error))
        case OutcomeUnknownError():
            return ApiError("outcome_unknown", str(error))
        case MetadataError():
            return ApiError("overloaded", str(error))
        case StoreFullError():
            return ApiError("storage_full", str(error))
        case RingError() if error.retryable:
            return ApiError("chunks_unavailable", str(error))
        case RingError():
            return ApiError("content_damaged", str(error))
    return None


PROTECTIVE_HEADERS: Mapping[str, str] = {
    "Server": "Holdfast",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
}
"""On every answer: stored bytes must never act in a browser with the gateway's authority."""


def problem_response(error: ApiError) -> web.Response:
    """The problem document of an error, with the headers its status asks for."""
    status = HTTPStatus(error.status)
    problem = Problem(
        type=f"urn:holdfast:problem:{error.code}",
        title=status.phrase,
        status=error.status,
        code=error.code,
        detail=error.detail,
        retryable=error.retryable,
    )
    headers = {
        **PROTECTIVE_HEADERS,
        "Content-Type": "application/problem+json",
        "X-Error-Code": error.code,
        **error.headers,
    }
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    elif status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    return web.Response(status=status, body=encode_document(problem), headers=headers)
