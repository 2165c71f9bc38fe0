"""Downloads: the bytes of a file, by path or by id, whole or a range.

What is sent is what the file is: the length is announced beforehand and always kept, contents are
verified before they leave, and where they can't be had in full the connection is aborted, so that
no client takes a part for the whole. A few chunks are read ahead of the client, within a budget of
bytes that all downloads share.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from aiohttp import web
from blake3 import blake3

from gateway.authentication import denied, readable_bucket, verify
from gateway.backends import Backends, Call
from gateway.errors import PROTECTIVE_HEADERS, ApiError
from gateway.interfaces import ReadOnlyBuffer, Snapshot
from gateway.paths import file_target, parse_query
from gateway.preconditions import (
    MalformedConditionError,
    Verdict,
    for_read,
    format_date,
    range_applies,
)
from gateway.ranges import Piece, Span, UnsatisfiableRangeError, parse_range, pieces
from gateway.upload_headers import header_text
from metadata_raft.records import FileRecord, SegmentRecord

_log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 16 * 1024 * 1024
"""Of one download, besides what is being sent: two chunks hide the latency of one."""

READ_AHEAD_PIECES = 16
"""The same bound for small chunks, where each costs a request to a peer."""

WHOLE_BODY_LIMIT = 1024 * 1024
"""Up to here a body from one chunk goes out in one piece with its headers."""

FIRST_SIZE = 256 * 1024
"""Bytes that a longer body begins with: a few blocks of a chunk are read and verified by themselves
in less than a millisecond, the whole chunk in ten."""

SEND_SIZE = 1024 * 1024
"""Bytes handed to the connection at a time; each has the full time-out for its way out."""

SEGMENTS_AT_ONCE = 8
"""Segments looked up at a time: 288 KiB. The first page, taken with the file's record, covers
64 GiB of full chunks, which therefore can't be pulled away by an overwrite."""

_NO_PARAMETERS: frozenset[str] = frozenset()


class _Found(NamedTuple):
    record: FileRecord
    segments: Sequence[SegmentRecord]
    """The first ones of the version; none for a file that lives in the metadata."""


class _ContentsGoneError(Exception):
    """The version was removed while it was being read."""


class Downloads:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def get(self, call: Call) -> web.StreamResponse:
        """GET or HEAD of a file by its path."""
        parse_query(call.target.query, _NO_PARAMETERS)
        presented = call.key()
        bucket, path = call.target.name, call.target.path

        def find(snapshot: Snapshot) -> _Found:
            readable_bucket(snapshot, verify(snapshot, presented), bucket)
            record = snapshot.file(bucket, path)
            if record is None:
                raise ApiError("no_such_file", f"there is no file {path} in bucket {bucket}")
            return _with_segments(snapshot, record)

        await self._backends.current(call.request)
        with self._backends.metadata.snapshot() as snapshot:
            found = find(snapshot)
        return await self._answer(call.request, found, _headers_of(found.record))

    async def get_by_id(self, call: Call) -> web.StreamResponse:
        """GET or HEAD of a file by the id that stays with it; Content-Location says its path."""
        parse_query(call.target.query, _NO_PARAMETERS)
        presented = call.key()
        text = call.target.name
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise ApiError("no_such_file", "a file id is a decimal number")

        def find(snapshot: Snapshot) -> _Found:
            principal = verify(snapshot, presented)
            record = snapshot.file_by_id(int(text))
            if record is None:
                # Somebody without a key can't probe which ids are taken.
                if principal.role is None:
                    raise denied(principal, f"reading file {text}")
                raise ApiError("no_such_file", f"there is no file with the id {text}")
            readable_bucket(snapshot, principal, record.bucket)
            return _with_segments(snapshot, record)

        await self._backends.current(call.request)
        with self._backends.metadata.snapshot() as snapshot:
            found = find(snapshot)
        headers = _headers_of(found.record)
        headers["Content-Location"] = file_target(found.record.bucket, found.record.path)
        return await self._answer(call.request, found, headers)

    async def _answer(
        self, request: web.BaseRequest, found: _Found, headers: dict[str, str]
    ) -> web.StreamResponse:
        record = found.record
        try:
            verdict = for_read(request.headers, record.etag, record.modified_ms)
        except MalformedConditionError as error:
            raise ApiError("invalid_header", str(error)) from error
        if verdict is Verdict.NOT_MODIFIED:
            return web.Response(status=304, headers=headers)
        if verdict is Verdict.FAILED:
            raise ApiError(
                "precondition_failed",
                f"{record.bucket}/{record.path} is not what the request's conditions ask for",
            )
        span, status = Span(0, record.size_bytes), 200
        wanted = request.headers.get("Range")
        if (
            wanted is not None
            and request.method == "GET"
            and range_applies(request.headers.get("If-Range"), record.etag)
        ):
            try:
                part = parse_range(wanted, record.size_bytes)
            except UnsatisfiableRangeError:
                raise ApiError(
                    "range_not_satisfiable",
                    f"{record.bucket}/{record.path} has {record.size_bytes} bytes",
                    headers={"Content-Range": f"bytes */{record.size_bytes}"},
                ) from None
            if part is not None:
                span, status = part, 206
                headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{record.size_bytes}"
        headers["Content-Length"] = str(span.end - span.start)
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        if record.inline is not None:
            body = _verified_inline(record)
            if status == 206:
                body = body[span.start : span.end]
            self._backends.metrics.sent_bytes.inc(len(body))
            return web.Response(status=status, body=body, headers=headers)
        return await self._send_chunks(request, found, span, status, headers)

    async def _send_chunks(
        self,
        request: web.BaseRequest,
        found: _Found,
        span: Span,
        status: int,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        reader = _ReadAhead(self._backends, short_first(self._pieces(found, span)))
        try:
            # The first piece comes before the headers go, so that its failure can still be told.
            buffer = await reader.next()
            if len(buffer) == span.end - span.start and len(buffer) <= WHOLE_BODY_LIMIT:
                response: web.StreamResponse = web.Response(
                    status=status, body=bytes(buffer), headers=headers
                )
                self._backends.metrics.sent_bytes.inc(len(buffer))
                return response
            response = web.StreamResponse(status=status, headers=headers)
            await response.prepare(request)
            first = deque([buffer])
            del buffer
            await self._stream(request, response, reader, first, span)
            return response
        finally:
            reader.close()

    async def _stream(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        reader: _ReadAhead,
        ready: deque[ReadOnlyBuffer],
        span: Span,
    ) -> None:
        # A piece has one holder at a time, as its buffer returns to the pool with the last: a
        # download that waits for its next piece while it keeps the one it has sent, or the first,
        # can stand in its own way, and eight of them in everybody's.
        left = span.end - span.start
        try:
            while True:
                left -= await self._send(response, ready.popleft())
                if left <= 0:
                    break
                ready.append(await reader.next())
            await response.write_eof()
        except ConnectionError:
            raise
        except Exception as error:
            self._backends.metrics.aborted_downloads.inc()
            _log.warning("download aborted %d bytes before its end: %s", left, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the contents could not be had in full") from error

    async def _send(self, response: web.StreamResponse, buffer: ReadOnlyBuffer) -> int:
        """Send one piece; returns its size."""
        silence_seconds = self._backends.settings.body_silence_seconds
        view = memoryview(buffer)
        for start in range(0, len(view), SEND_SIZE):
            async with asyncio.timeout(silence_seconds):
                await response.write(view[start : start + SEND_SIZE])
        self._backends.metrics.sent_bytes.inc(len(view))
        return len(view)

    def _pieces(self, found: _Found, span: Span) -> Iterator[Piece]:
        """The pieces of the span, looking segments up a page at a time."""
        segments = found.segments
        while True:
            yield from pieces(segments, span)
            covered = segments[-1].start + segments[-1].size_bytes if segments else 0
            if covered >= span.end:
                return
            with self._backends.metadata.snapshot() as snapshot:
                segments = snapshot.segments(
                    found.record.version_id, max(covered, span.start), SEGMENTS_AT_ONCE
                )
            if not segments:
                raise _ContentsGoneError(
                    f"version {found.record.version_id} of {found.record.bucket}/"
                    f"{found.record.path} was removed while it was read"
                )


class _ReadAhead:
    """Reads the next pieces while one is being sent, in order, within the shared budget."""

    def __init__(self, backends: Backends, wanted: Iterator[Piece]) -> None:
        self._chunks = backends.chunks
        self._budget = backends.read_budget
        self._wanted = wanted
        self._held = 0
        """Bytes of the budget taken for the piece given out last."""
        self._ahead: deque[tuple[int, asyncio.Task[ReadOnlyBuffer]]] = deque()
        self._ahead_bytes = 0
        self._next: Piece | None = next(wanted, None)

    async def next(self) -> ReadOnlyBuffer:
        """The next piece, verified; the one before it counts as sent.

        Raises what `Chunks.read` raises, ApiError(overloaded), and StopAsyncIteration never: who
        asks counts the bytes.
        """
        self._budget.give_back(self._held)
        self._held = 0
        if not self._ahead:
            piece = self._next
            if piece is None:
                raise _ContentsGoneError("the segments hold less than the file's size")
            size = piece.end - piece.start
            # Nothing is held while waiting here, so that waiting downloads can't block each other.
            await self._budget.take(size)
            self._held = size
            self._next = next(self._wanted, None)
            if self._next is None:
                return await self._read(piece)
            if self._next.chunk_id == piece.chunk_id:
                # A short one, for which a client waits: large reads would be in its way.
                buffer = await self._read(piece)
                self._fill()
                return buffer
            self._start(piece)
            self._held = 0
        self._fill()
        size, task = self._ahead.popleft()
        self._ahead_bytes -= size
        self._held = size
        buffer = await task
        self._fill()
        return buffer

    def close(self) -> None:
        """Stop reading and give the budget back."""
        self._budget.give_back(self._held + self._ahead_bytes)
        self._held = self._ahead_bytes = 0
        for _, task in self._ahead:
            task.cancel()
            task.add_done_callback(_swallow)
        self._ahead.clear()

    def _fill(self) -> None:
        while (
            self._next is not None
            and len(self._ahead) < READ_AHEAD_PIECES
            and self._ahead_bytes + (size := self._next.end - self._next.start) <= READ_AHEAD_BYTES
            and self._budget.try_take(size)
        ):
            # Started first: looking up the piece behind it may fail, and this one must be counted.
            self._start(self._next)
            self._next = next(self._wanted, None)

    def _start(self, piece: Piece) -> None:
        size = piece.end - piece.start
        self._ahead.append((size, asyncio.ensure_future(self._read(piece))))
        self._ahead_bytes += size

    async def _read(self, piece: Piece) -> ReadOnlyBuffer:
        buffer = await self._chunks.read(
            piece.chunk_id, length=piece.length, start=piece.start, end=piece.end
        )
        assert len(buffer) == piece.end - piece.start, "a chunk has another length than its row"
        return buffer


def short_first(wanted: Iterator[Piece]) -> Iterator[Piece]:
    """Cut a first piece that does not go out at once in two, so that the answer begins soon."""
    first = next(wanted, None)
    if first is None:
        return
    if first.end - first.start > WHOLE_BODY_LIMIT:
        middle = first.start + FIRST_SIZE
        yield first._replace(end=middle)
        yield first._replace(start=middle)
    else:
        yield first
    yield from wanted


def _swallow(task: asyncio.Task[ReadOnlyBuffer]) -> None:
    """Take note of a result nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _with_segments(snapshot: Snapshot, record: FileRecord) -> _Found:
    if record.inline is not None:
        return _Found(record, ())
    return _Found(record, snapshot.segments(record.version_id, 0, SEGMENTS_AT_ONCE))


def _verified_inline(record: FileRecord) -> bytes:
    contents = record.inline
    assert contents is not None
    expected = record.content_checksum
    if expected is not None and blake3(contents).digest() != expected:
        raise ApiError(
            "content_damaged",
            f"the contents of {record.bucket}/{record.path} on this node are damaged",
        )
    return contents


def _headers_of(record: FileRecord) -> dict[str, str]:
    headers = {
        **PROTECTIVE_HEADERS,
        "Content-Type": record.content_type,
        "ETag": f'"{record.etag}"',
        "Last-Modified": format_date(record.modified_ms // 1000),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "X-File-Id": str(record.file_id),
        "X-Version-Id": str(record.version_id),
    }
    if record.content_checksum is not None:
        headers["X-Content-BLAKE3"] = record.content_checksum.hex()
    for name, value in record.user_metadata.items():
        headers[f"X-Meta-{name}"] = header_text(value)
    if record.tags:
        headers["X-Tags"] = ",".join(map(header_text, record.tags))
    return headers
