"""What a `GatewayClient` raises, and how answers and broken connections become it.

ClientError
├── UnreachableError          no connection, or it broke; a repetition may help
├── SourceError               what was to be sent can't be read, or is less than announced
├── IntegrityError            the bytes are not the bytes; nothing of it must be used
└── RefusedError              the gateway answered with a problem: status, code, detail
    ├── NotFoundError         404, 410
    ├── AccessError           401, 403
    ├── PreconditionError     412
    └── TryAgainError         the gateway says that a repetition may help (429, 503, 504, …)
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl

import aiohttp

from gateway.documents import Problem
from gateway.json_documents import DocumentError, decode_document


class ClientError(Exception):
    """Base of all that a `GatewayClient` raises."""


class UnreachableError(ClientError):
    """No connection to the gateway, or it broke before the answer was whole."""


class SourceError(ClientError):
    """What was to be sent can't be read, or has become shorter; nothing was stored."""


class IntegrityError(ClientError):
    """What arrived is not what was sent; names the file and both digests."""


class RefusedError(ClientError):
    """The gateway answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.retryable = problem.retryable


class NotFoundError(RefusedError):
    """The bucket, file or key is not there."""


class AccessError(RefusedError):
    """No key, an unknown key, or one that may not do this."""


class PreconditionError(RefusedError):
    """If-Match or If-None-Match did not hold."""


class TryAgainError(RefusedError):
    """The same request may succeed later; with `code` outcome_unknown it may have happened."""


class translated:  # noqa: N801 - reads as a phrase: with translated()
    """Turns what aiohttp raises into UnreachableError, or SourceError where that is behind it."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is not None and isinstance(error.__cause__, SourceError):
            raise error.__cause__
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = _reason(error.os_error)
            raise UnreachableError(
                f"no connection to {error.host}:{error.port}: {reason}"
            ) from error
        if isinstance(error, aiohttp.ClientError | OSError | asyncio.TimeoutError):
            raise UnreachableError(str(error) or type(error).__name__) from error


def _reason(error: OSError) -> str:
    """What the system says; an event loop puts the address and its own words around that."""
    if isinstance(error, ssl.SSLError):
        # Its numbers are OpenSSL's own: as the system's they would mean something else.
        reason = str(error.reason or error).replace("_", " ").lower()
        hint = "; is it http://, not https://?" if "wrong version number" in reason else ""
        return f"TLS fails ({reason}){hint}"
    if error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    return error.strerror or str(error)


_NOT_OURS = "unknown"
"""The code of an answer that Holdfast did not give."""


def refusal(response: aiohttp.ClientResponse, body: bytes) -> RefusedError:
    """The error that a problem document stands for; a HEAD has none, its status must do."""
    try:
        problem = decode_document(body, Problem)
    except DocumentError:
        problem = Problem(
            type="about:blank",
            title=response.reason or "",
            status=response.status,
            code=response.headers.get("X-Error-Code", _NOT_OURS),
            detail=f"{response.method} {response.url.path}: {response.status} {response.reason}",
            retryable=response.status in (429, 503, 504),
        )
    # Another server, or another part of this one, knows nothing about what is there.
    if problem.status in (404, 410) and problem.code not in (_NOT_OURS, "no_such_route"):
        return NotFoundError(problem)
    if problem.status in (401, 403):
        return AccessError(problem)
    if problem.status == 412:
        return PreconditionError(problem)
    return TryAgainError(problem) if problem.retryable else RefusedError(problem)
