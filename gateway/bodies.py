"""Request bodies: read in pieces as they arrive, never slower than allowed, never cut short unseen.

A body may pause for `body_silence_seconds` and has to keep up `body_rate_bytes_min` on average, so
that a client that trickles can't hold buffers for ever.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from gateway.errors import ApiError
from gateway.interfaces import GatewaySettings
from gateway.json_documents import DocumentError, decode_document

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

DOCUMENT_SIZE_LIMIT = 64 * 1024
"""Bytes of a JSON or sealed body; the largest real one has a few hundred."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGoneError(Exception):
    """The connection broke while the body was coming: there is nobody left to answer."""


def declared_size(request: web.BaseRequest) -> int | None:
    """Content-Length, or None for a chunked body. A request with neither has no body: 0."""
    text = request.headers.get("Content-Length")
    if text is not None:
        return int(text)  # aiohttp's parser has checked its form
    return None if "Transfer-Encoding" in request.headers else 0


class Body:
    """One request's body, read once."""

    def __init__(self, request: web.BaseRequest, settings: GatewaySettings) -> None:
        self._request = request
        self._content = request.content
        self._silence_seconds = settings.body_silence_seconds
        self._rate = settings.body_rate_bytes_min
        self._started = monotonic()
        self.received = 0

    async def begin(self) -> None:
        """Tell a client that waits for `100 Continue` to go on; called after authorisation.

        Raises ApiError(expectation_failed) for any other expectation.
        """
        expectation = self._request.headers.get("Expect")
        if expectation is None:
            return
        if expectation.lower() != "100-continue":
            raise ApiError("expectation_failed", f"nothing here can meet {expectation!r}")
        writer = self._request.writer
        await writer.write(_CONTINUE)
        # aiohttp counts bytes sent to know whether an answer has begun: this was none.
        writer.output_size = 0

    def whole(self) -> bytes | None:
        """The rest of the body, if all of it has arrived already; costs no waiting."""
        if not self._content.is_eof():
            return None
        piece = self._content.read_nowait()
        self.received += len(piece)
        return piece

    async def next(self) -> bytes:
        """The next piece, as it comes; empty at the end.

        Raises ApiError(body_timeout, body_incomplete), ClientGoneError.
        """
        earned = self._started + self._silence_seconds + self.received / self._rate
        patience = min(self._silence_seconds, earned - monotonic())
        try:
            async with asyncio.timeout(patience):
                while True:
                    piece, ends_chunk = await self._content.readchunk()
                    # A lone end of an HTTP chunk means nothing; an empty body ends for ever.
                    if piece or not ends_chunk or self._content.at_eof():
                        break
        except TimeoutError:
            raise ApiError(
                "body_timeout",
                f"the body stopped or trickled after {self.received} bytes; at least "
                f"{self._rate} bytes per second are expected",
            ) from None
        except ConnectionError as error:
            raise ClientGoneError(f"gone after {self.received} bytes") from error
        except (RequestPayloadError, HttpProcessingError, web.PayloadAccessError) as error:
            raise ApiError(
                "body_incomplete", f"the body broke off after {self.received} bytes"
            ) from error
        self.received += len(piece)
        return piece


async def read_limited(body: Body, limit: int = DOCUMENT_SIZE_LIMIT) -> bytes:
    """The whole of a small body. Raises ApiError(body_too_large)."""
    await body.begin()
    collected = bytearray()
    while piece := await body.next():
        collected += piece
        if len(collected) > limit:
            raise ApiError("body_too_large", f"the body may have {limit} bytes at most")
    return bytes(collected)


async def read_document(body: Body, kind: type[_T], *, default: _T | None = None) -> _T:
    """A JSON body as `kind`; an empty one as `default`, where there is one.

    Raises ApiError(invalid_document) saying what is wrong where.
    """
    data = await read_limited(body)
    if not data and default is not None:
        return default
    try:
        return decode_document(data, kind)
    except DocumentError as error:
        raise ApiError("invalid_document", f"the body is not as expected: {error}") from error
