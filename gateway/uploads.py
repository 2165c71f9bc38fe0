"""Uploads and deletions: what changes files.

The order is what makes an upload safe: the request is judged before a byte of it is read, the
contents are made durable before the one command that makes them visible, and the state machine
decides that command by preconditions, permission and quota as they are at that moment. Whatever
goes wrong before leaves nothing visible.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from gateway.authentication import Principal, verify, writable_bucket
from gateway.backends import Backends, Call, document_response, empty_response
from gateway.bodies import Body, declared_size, read_limited
from gateway.chunk_writer import ChunkWriter, Staged
from gateway.documents import UploadReceipt
from gateway.errors import ApiError
from gateway.interfaces import Snapshot
from gateway.multipart import FormFile, MultipartError
from gateway.paths import parse_query
from gateway.preconditions import MalformedConditionError, for_write
from gateway.restaging import submit_references
from gateway.upload_headers import (
    UploadHeaders,
    checked_content_type,
    idempotency,
    idempotency_key,
    parse_upload_headers,
)
from metadata_raft.apply_files import precondition_refusal
from metadata_raft.commands import DeleteFile, FilePut, Preconditions, PutFile, Result
from metadata_raft.request_ids import new_request_id

BULK_SIZE = 8 * 1024 * 1024
"""From here on a commit is repeated through a fail-over rather than the upload refused."""

_NO_PARAMETERS: frozenset[str] = frozenset()
_NO_PRECONDITIONS = Preconditions()


class _Pieces(Protocol):
    async def next(self) -> bytes:
        """The next bytes of the file; empty at the end, once the body was found whole."""


class Uploads:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def put(self, call: Call) -> web.StreamResponse:
        """PUT or POST of a file: 201 where it is new, 200 where it has a new version."""
        request = call.request
        bucket, path = call.target.name, call.target.path
        parse_query(call.target.query, _NO_PARAMETERS)
        presented = call.key()
        headers = parse_upload_headers(request.headers, declared_size(request))

        def admit(snapshot: Snapshot) -> Principal:
            principal = verify(snapshot, presented)
            writable_bucket(snapshot, principal, bucket)
            # With an Idempotency-Key this may be a repetition, which its first run made fail.
            if headers.preconditions != _NO_PRECONDITIONS and headers.idempotency_key is None:
                record = snapshot.file(bucket, path)
                etag = None if record is None else record.etag
                refusal = precondition_refusal(headers.preconditions, etag)
                if refusal is not None:
                    raise ApiError(
                        "precondition_failed", f"{refusal} doesn't hold for {bucket}/{path}"
                    )
            return principal

        principal = await self._backends.decided(admit)
        body = Body(request, self._backends.settings)
        await body.begin()
        writer = ChunkWriter(
            self._backends, bucket=bucket, actor=principal.actor, size_bytes=headers.size_bytes
        )
        try:
            content_type = await self._receive(body, headers, writer)
            staged = await writer.finish()
            _check_digest(headers, staged)
            result = await self._make_visible(
                call, principal, headers=headers, staged=staged, content_type=content_type
            )
        except BaseException:
            writer.abandon()
            raise
        if headers.idempotency_key is not None:
            # A remembered result has not used what was staged this time.
            writer.abandon()
        receipt = UploadReceipt(
            bucket=bucket,
            path=path,
            file_id=result.file_id,
            version_id=result.version_id,
            created=result.created,
            etag=result.etag,
            size_bytes=staged.size_bytes,
            modified_ms=result.modified_ms,
        )
        return document_response(
            receipt,
            status=201 if result.created else 200,
            headers={"ETag": f'"{result.etag}"'},
        )

    async def delete(self, call: Call) -> web.StreamResponse:
        """DELETE of a file: 204, or 404 where there is none."""
        request = call.request
        bucket, path = call.target.name, call.target.path
        parse_query(call.target.query, _NO_PARAMETERS)
        presented = call.key()
        key = idempotency_key(request.headers)
        try:
            preconditions = for_write(request.headers)
        except MalformedConditionError as error:
            raise ApiError("invalid_header", str(error)) from error

        def admit(snapshot: Snapshot) -> Principal:
            principal = verify(snapshot, presented)
            writable_bucket(snapshot, principal, bucket)
            return principal

        principal = await self._backends.decided(admit)
        if declared_size(request) != 0:
            await read_limited(Body(request, self._backends.settings))
        await self._backends.submit(
            DeleteFile(
                bucket=bucket, path=path, actor=principal.actor, preconditions=preconditions
            ),
            idempotency=idempotency(
                key,
                actor=principal.actor,
                bucket=bucket,
                request=("DELETE", bucket, path, preconditions),
            ),
        )
        return empty_response()

    async def _receive(self, body: Body, headers: UploadHeaders, writer: ChunkWriter) -> str:
        """Feed the body to the writer; returns the file's content type. Raises ApiError."""
        content_type = headers.content_type
        expected = headers.size_bytes
        if headers.boundary is not None:
            form = _FormPieces(body, headers.boundary)
            await _pump(form, writer, expected)
            content_type = checked_content_type(form.content_type or content_type)
        else:
            whole = body.whole()
            if whole is not None:
                _check_room(writer, whole, expected)
                await writer.feed(whole)
            else:
                await _pump(body, writer, expected)
        if expected is not None and writer.size_bytes != expected:
            raise ApiError(
                "size_mismatch", f"{expected} bytes were announced, {writer.size_bytes} came"
            )
        self._backends.metrics.received_bytes.inc(writer.size_bytes)
        return content_type

    async def _make_visible(
        self,
        call: Call,
        principal: Principal,
        *,
        headers: UploadHeaders,
        staged: Staged,
        content_type: str,
    ) -> FilePut:
        bucket, path = call.target.name, call.target.path
        etag = staged.digest.hex()
        command = PutFile(
            bucket=bucket,
            path=path,
            actor=principal.actor,
            size_bytes=staged.size_bytes,
            etag=etag,
            content_type=content_type,
            user_metadata=headers.user_metadata,
            tags=headers.tags,
            preconditions=headers.preconditions,
            inline=staged.inline,
            chunks=staged.chunks,
            upload_id=staged.upload_id,
            chunking=staged.chunking,
            generation=staged.generation,
            oldest_epoch=staged.oldest_epoch,
            content_checksum=staged.digest,
        )
        repetition = idempotency(
            headers.idempotency_key,
            actor=principal.actor,
            bucket=bucket,
            request=(
                "PUT",
                bucket,
                path,
                etag,
                content_type,
                sorted(headers.user_metadata.items()),
                headers.tags,
                headers.preconditions,
            ),
        )
        backends = self._backends

        async def submit(command: PutFile) -> Result:
            if staged.size_bytes > BULK_SIZE:
                return await backends.submit_patiently(
                    command, request_id=new_request_id(), idempotency=repetition
                )
            return await backends.submit(command, idempotency=repetition)

        result = await submit_references(backends, command, submit)
        assert isinstance(result, FilePut)
        return result


class _FormPieces:
    """The one file of a multipart/form-data body."""

    def __init__(self, body: Body, boundary: bytes) -> None:
        self._body = body
        self._form = FormFile(boundary)

    @property
    def content_type(self) -> str | None:
        return self._form.content_type

    async def next(self) -> bytes:
        try:
            while piece := await self._body.next():
                if contents := self._form.feed(piece):
                    return contents
            self._form.finish()
        except MultipartError as error:
            raise ApiError("invalid_multipart", str(error)) from error
        return b""


async def _pump(source: _Pieces, writer: ChunkWriter, expected: int | None) -> None:
    while piece := await source.next():
        _check_room(writer, piece, expected)
        await writer.feed(piece)


def _check_room(writer: ChunkWriter, piece: bytes, expected: int | None) -> None:
    """Stop at the first byte too many, instead of storing what will be refused."""
    if expected is not None and writer.size_bytes + len(piece) > expected:
        raise ApiError("size_mismatch", f"{expected} bytes were announced, more came")


def _check_digest(headers: UploadHeaders, staged: Staged) -> None:
    if headers.digest is not None and headers.digest != staged.digest:
        raise ApiError(
            "digest_mismatch",
            f"the contents have BLAKE3 {staged.digest.hex()}, "
            f"X-Content-BLAKE3 says {headers.digest.hex()}",
        )
