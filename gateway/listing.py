"""What a client can learn of files without their contents: listings and metadata documents."""

from __future__ import annotations

from aiohttp import web

from gateway.authentication import readable_bucket, verify
from gateway.backends import Backends, Call, document_response
from gateway.documents import FileDocument, FilePage
from gateway.errors import ApiError
from gateway.interfaces import Snapshot
from gateway.paths import parse_query
from gateway.queries import parse_limit
from metadata_raft.names import PATH_SIZE_LIMIT
from metadata_raft.records import FileRecord

_LISTING = frozenset({"prefix", "delimiter", "cursor", "limit"})
_NONE: frozenset[str] = frozenset()


class Listings:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def list(self, call: Call) -> web.StreamResponse:
        """GET of a bucket's files: one page in key order, optionally folded at a delimiter."""
        parameters = parse_query(call.target.query, _LISTING)
        limit = parse_limit(parameters.get("limit"))
        prefix = _key("prefix", parameters.get("prefix", ""))
        delimiter = _key("delimiter", parameters.get("delimiter", ""))
        cursor = parameters.get("cursor")
        if cursor is not None:
            _key("cursor", cursor)
        presented = call.key()
        bucket = call.target.name

        def page(snapshot: Snapshot) -> FilePage:
            readable_bucket(snapshot, verify(snapshot, presented), bucket)
            listing = snapshot.files(bucket, prefix, delimiter, cursor, limit)
            return FilePage(
                files=[_document(record) for record in listing.files],
                prefixes=list(listing.prefixes),
                next_cursor=listing.next_cursor,
            )

        await self._backends.current(call.request)
        return document_response(await self._backends.in_worker(page))

    async def metadata(self, call: Call) -> web.StreamResponse:
        """GET of everything known of one file."""
        parse_query(call.target.query, _NONE)
        presented = call.key()
        bucket, path = call.target.name, call.target.path
        await self._backends.current(call.request)
        with self._backends.metadata.snapshot() as snapshot:
            readable_bucket(snapshot, verify(snapshot, presented), bucket)
            record = snapshot.file(bucket, path)
        if record is None:
            raise ApiError("no_such_file", f"there is no file {path} in bucket {bucket}")
        return document_response(_document(record), headers={"ETag": f'"{record.etag}"'})


def _key(parameter: str, value: str) -> str:
    """A piece of a key as a parameter: no longer than a whole key, and no NUL in it."""
    if len(value.encode()) > PATH_SIZE_LIMIT or "\0" in value:
        raise ApiError(
            "invalid_parameter",
            f"{parameter} can have {PATH_SIZE_LIMIT} bytes and no NUL character",
        )
    return value


def _document(record: FileRecord) -> FileDocument:
    checksum = record.content_checksum
    return FileDocument(
        bucket=record.bucket,
        path=record.path,
        file_id=record.file_id,
        version_id=record.version_id,
        size_bytes=record.size_bytes,
        etag=record.etag,
        content_type=record.content_type,
        user_metadata=record.user_metadata,
        tags=list(record.tags),
        owner=record.owner,
        created_ms=record.created_ms,
        modified_ms=record.modified_ms,
        content_blake3=None if checksum is None else checksum.hex(),
        chunk_size_bytes=record.chunking,
    )
