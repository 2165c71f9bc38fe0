"""The asynchronous client of a Holdfast gateway, as the `holdfast` commands use it.

Contents stream both ways and are verified end to end: an upload's BLAKE3 is computed while it is
sent and compared with the one the gateway answers; a download's is compared with the one the
gateway announced when the last byte has come. Every failure is one of `client_errors.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from blake3 import blake3
from yarl import URL

from gateway.client_errors import (
    AccessError,
    ClientError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    SourceError,
    TryAgainError,
    UnreachableError,
    refusal,
    translated,
)
from gateway.client_source import Progress, Source, pieces, size_of
from gateway.documents import (
    BucketChange,
    BucketCreation,
    BucketDocument,
    BucketPage,
    ClusterDocument,
    FileDocument,
    FilePage,
    HealthDocument,
    KeyCreation,
    KeyDocument,
    KeyList,
    MemberDocument,
    NewKey,
    NewToken,
    RingDocument,
    RingPreviewDocument,
    Role,
    ScrubDocument,
    SettingsChange,
    SettingsDocument,
    TokenCreation,
    UploadReceipt,
    Visibility,
)
from gateway.json_documents import DocumentError, decode_document, encode_document

__all__ = [
    "AccessError",
    "ClientError",
    "Download",
    "GatewayClient",
    "IntegrityError",
    "NotFoundError",
    "PreconditionError",
    "RefusedError",
    "Source",
    "SourceError",
    "TryAgainError",
    "UnreachableError",
]

EXPECT_CONTINUE_FROM = 1024 * 1024
"""From this size on the gateway is asked first, so that a refusal doesn't cost the transfer."""

CONNECT_TIMEOUT_SECONDS = 10.0
SILENCE_TIMEOUT_SECONDS = 90.0
"""No byte from the gateway for this long: longer than any wait the gateway allows itself."""


class Download:
    """A download that has begun: iterate it once, the digest is checked at the end.

    Raises UnreachableError if it breaks off, IntegrityError if the bytes are wrong.
    """

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self._name = name
        headers = response.headers
        self.size_bytes = int(headers.get("Content-Length", "0"))
        """The bytes of this body: of the range, where one was asked for."""
        self.etag = headers.get("ETag", "").strip('"')
        self.content_type = headers.get("Content-Type", "")
        self.content_blake3 = headers.get("X-Content-BLAKE3") if response.status == 200 else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        hasher = blake3()
        received = 0
        with translated():
            async for piece in self._response.content.iter_any():
                hasher.update(piece)
                received += len(piece)
                yield piece
        if received != self.size_bytes:
            raise UnreachableError(
                f"{self._name} broke off after {received} of {self.size_bytes} bytes"
            )
        if self.content_blake3 is not None and hasher.hexdigest() != self.content_blake3:
            raise IntegrityError(
                f"{self._name} arrived with BLAKE3 {hasher.hexdigest()}, "
                f"the gateway announced {self.content_blake3}"
            )

    async def read(self) -> bytes:
        """The whole body, verified."""
        return b"".join([piece async for piece in self])


class GatewayClient:
    """Talks to one gateway; an asynchronous context manager that keeps connections alive."""

    def __init__(
        self, base_url: str, key: str | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._base = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._tls: ssl.SSLContext | bool = tls if tls is not None else True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- files -------------------------------------------------------------------------------

    async def put(
        self,
        bucket: str,
        path: str,
        source: Source,
        *,
        content_type: str = "application/octet-stream",
        user_metadata: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
        if_match: str | None = None,
        if_none_match: str | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
    ) -> UploadReceipt:
        """Store a file; returns once it is durable and visible.

        The entity tags are given without quotes, or as `*`. Raises ClientError; the contents
        that the gateway stored are compared with those that were sent (IntegrityError).
        """
        headers = {"Content-Type": content_type}
        for name, value in (user_metadata or {}).items():
            headers[f"X-Meta-{name}"] = quote(value, safe=_HEADER_SAFE)
        if tags:
            headers["X-Tags"] = ",".join(quote(tag, safe=_HEADER_SAFE) for tag in tags)
        if if_match is not None:
            headers["If-Match"] = _quoted(if_match)
        if if_none_match is not None:
            headers["If-None-Match"] = _quoted(if_none_match)
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        size_bytes = size_of(source)
        if size_bytes is not None:
            headers["Content-Length"] = str(size_bytes)
        hasher = blake3()
        receipt = await self._call(
            UploadReceipt,
            "PUT",
            _file_path(bucket, path),
            headers=headers,
            body=pieces(source, hasher, size_bytes, progress),
            expect_continue=size_bytes is None or size_bytes >= EXPECT_CONTINUE_FROM,
        )
        if receipt.etag != hasher.hexdigest():
            raise IntegrityError(
                f"{bucket}/{path} was stored with BLAKE3 {receipt.etag}, "
                f"sent was {hasher.hexdigest()}"
            )
        return receipt

    @asynccontextmanager
    async def get(
        self,
        bucket: str,
        path: str,
        *,
        start: int = 0,
        end: int | None = None,
        local: bool = False,
    ) -> AsyncIterator[Download]:
        """Begin a download of bytes `start` up to `end` (exclusive; None is the end of the file).

        `local` accepts a stale answer, which a node can give without a quorum.
        """
        headers = {"X-Consistency": "local"} if local else {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        async with self._request("GET", _file_path(bucket, path), headers=headers) as response:
            yield Download(response, f"{bucket}/{path}")

    async def head(self, bucket: str, path: str) -> Mapping[str, str]:
        """The headers of a file (case-insensitive mapping)."""
        async with self._request("HEAD", _file_path(bucket, path)) as response:
            return response.headers

    async def metadata(self, bucket: str, path: str) -> FileDocument:
        return await self._call(
            FileDocument, "GET", f"/api/v1/metadata/{_segment(bucket)}/{_path(path)}"
        )

    async def delete(self, bucket: str, path: str, *, if_match: str | None = None) -> None:
        headers = {} if if_match is None else {"If-Match": _quoted(if_match)}
        async with self._request("DELETE", _file_path(bucket, path), headers=headers):
            pass

    async def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        cursor: str | None = None,
        limit: int = 1000,
    ) -> FilePage:
        """One page of a bucket's files in key order."""
        query = {"prefix": prefix, "delimiter": delimiter, "cursor": cursor, "limit": limit}
        return await self._call(FilePage, "GET", f"/api/v1/files/{_segment(bucket)}{_query(query)}")

    async def list_all(
        self, bucket: str, *, prefix: str = "", delimiter: str = ""
    ) -> AsyncIterator[FilePage]:
        """All pages of a listing, one at a time."""
        cursor: str | None = None
        while True:
            page = await self.list(bucket, prefix=prefix, delimiter=delimiter, cursor=cursor)
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    # --- buckets -----------------------------------------------------------------------------

    async def create_bucket(
        self,
        name: str,
        *,
        visibility: Visibility = "private",
        hidden: bool = False,
        quota_bytes: int | None = None,
    ) -> BucketDocument:
        """Make a bucket; the one that is there already is an answer as well."""
        creation = BucketCreation(
            name=name, visibility=visibility, hidden=hidden, quota_bytes=quota_bytes
        )
        return await self._call(BucketDocument, "POST", "/api/v1/buckets", document=creation)

    async def bucket(self, name: str) -> BucketDocument:
        return await self._call(BucketDocument, "GET", f"/api/v1/buckets/{_segment(name)}")

    async def buckets(self, *, cursor: str | None = None, limit: int = 1000) -> BucketPage:
        query = _query({"cursor": cursor, "limit": limit})
        return await self._call(BucketPage, "GET", f"/api/v1/buckets{query}")

    async def change_bucket(self, name: str, change: BucketChange) -> BucketDocument:
        return await self._call(
            BucketDocument, "PATCH", f"/api/v1/buckets/{_segment(name)}", document=change
        )

    async def delete_bucket(self, name: str, *, cascade: bool = False) -> None:
        """Remove a bucket; `cascade` also removes its files."""
        query = "?cascade=true" if cascade else ""
        async with self._request("DELETE", f"/api/v1/buckets/{_segment(name)}{query}"):
            pass

    # --- keys, tokens, the cluster -----------------------------------------------------------

    async def create_key(self, *, role: Role = "writer", description: str = "") -> NewKey:
        creation = KeyCreation(role=role, description=description)
        return await self._call(NewKey, "POST", "/api/v1/keys", document=creation)

    async def keys(self) -> Sequence[KeyDocument]:
        return (await self._call(KeyList, "GET", "/api/v1/keys")).keys

    async def revoke_key(self, key_id: str) -> None:
        async with self._request("DELETE", f"/api/v1/keys/{_segment(key_id)}"):
            pass

    async def cluster(self) -> ClusterDocument:
        return await self._call(ClusterDocument, "GET", "/api/v1/cluster")

    async def ring(self) -> RingDocument:
        return await self._call(RingDocument, "GET", "/api/v1/cluster/ring")

    async def drain(self, node_id: str, *, reduce_copies: bool = False) -> MemberDocument:
        """Let a node give its chunks away and stay a member."""
        return await self._intend(node_id, "drain", reduce_copies=reduce_copies)

    async def undrain(self, node_id: str) -> MemberDocument:
        """Put a node back to use that drains, or is about to leave."""
        return await self._intend(node_id, "undrain")

    async def leave(self, node_id: str, *, reduce_copies: bool = False) -> MemberDocument:
        """Let a node give its chunks away and then go for good."""
        return await self._intend(node_id, "leave", reduce_copies=reduce_copies)

    async def remove(self, node_id: str, *, force: bool = False) -> None:
        """Remove a dead node for good; `force` removes one that answers as well."""
        query = "?force=true" if force else ""
        async with self._request("DELETE", f"{_member_path(node_id)}{query}"):
            pass

    async def preview_join(self, *, weight: int, zone: str = "") -> RingPreviewDocument:
        """What would move if a node of this weight (gigabytes) joined."""
        return await self._preview({"preview": "join", "capacity": weight, "zone": zone})

    async def preview_leave(self, node_id: str) -> RingPreviewDocument:
        """What would move if a node left the ring."""
        return await self._preview({"preview": "leave", "node": node_id})

    async def change_settings(self, change: SettingsChange) -> SettingsDocument:
        """Change settings of the whole cluster; returns all of them."""
        return await self._call(
            SettingsDocument, "PATCH", "/api/v1/cluster/settings", document=change
        )

    async def resume_collection(self) -> None:
        """Let space be reclaimed again after a restore from a backup."""
        async with self._request("POST", "/api/v1/cluster/collection/resume"):
            pass

    async def scrub(self, node_id: str | None = None) -> ScrubDocument:
        """Let one node, or all, reread their chunks."""
        query = _query({"node": node_id}) if node_id is not None else ""
        return await self._call(ScrubDocument, "POST", f"/api/v1/cluster/scrub{query}")

    async def _intend(
        self, node_id: str, action: str, *, reduce_copies: bool = False
    ) -> MemberDocument:
        query = "?reduce_copies=true" if reduce_copies else ""
        return await self._call(MemberDocument, "POST", f"{_member_path(node_id)}/{action}{query}")

    async def _preview(self, query: Mapping[str, str | int | None]) -> RingPreviewDocument:
        ring = await self._call(RingDocument, "GET", f"/api/v1/cluster/ring{_query(query)}")
        if ring.preview is None:
            raise UnreachableError("the node answers without the preview: it runs an older version")
        return ring.preview

    async def create_token(self, *, lifetime_seconds: int = 3600) -> NewToken:
        """A one-use token with which a node joins the cluster."""
        creation = TokenCreation(lifetime_seconds=lifetime_seconds)
        return await self._call(NewToken, "POST", "/api/v1/cluster/tokens", document=creation)

    async def join(self, sealed: bytes) -> bytes:
        """Hand a sealed request to join to the cluster; returns its sealed answer."""
        async with self._request("POST", "/api/v1/cluster/join", body=sealed) as response:
            with translated():
                return await response.read()

    @asynccontextmanager
    async def backup(self) -> AsyncIterator[AsyncIterator[bytes]]:
        """The metadata of the node as a backup file, in pieces; whether it is whole, its digest
        tells."""
        async with self._request("GET", "/api/v1/cluster/backup") as response:
            yield _pieces_of(response)

    async def health(self, aspect: str = "ready") -> HealthDocument:
        """`live`, `ready` or `cluster`; TryAgainError where the answer is no."""
        return await self._call(HealthDocument, "GET", f"/health/{aspect}")

    # --- the wire ----------------------------------------------------------------------------

    async def _call(
        self,
        kind: type[_T],
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterable[bytes] | None = None,
        document: msgspec.Struct | None = None,
        expect_continue: bool = False,
    ) -> _T:
        if document is not None:
            body = encode_document(document)
            headers = {**(headers or {}), "Content-Type": "application/json"}
        async with self._request(
            method, path, headers=headers, body=body, expect_continue=expect_continue
        ) as response:
            with translated():
                answer = await response.read()
        try:
            return decode_document(answer, kind)
        except DocumentError as error:
            raise UnreachableError(
                f"{method} {path} was not answered by Holdfast: {error}"
            ) from error

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterable[bytes] | None = None,
        expect_continue: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(ssl=self._tls),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=CONNECT_TIMEOUT_SECONDS,
                    sock_read=SILENCE_TIMEOUT_SECONDS,
                ),
            )
        with translated():
            response = await self._session.request(
                method,
                URL(self._base + path, encoded=True),
                headers=headers,
                data=body,
                expect100=expect_continue,
                allow_redirects=False,
            )
        async with response:
            if response.status >= 300:
                with translated():
                    raise refusal(response, await response.read())
            yield response


_T = TypeVar("_T")

_HEADER_SAFE = " !#$&'()*+-./:;<=>?@[]^_`{|}~"
"""What a metadata value keeps as it is; the rest, and the comma between tags, is %-encoded."""


async def _pieces_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    with translated():
        async for piece in response.content.iter_any():
            yield piece


def _quoted(tag: str) -> str:
    return tag if tag == "*" else f'"{tag}"'


def _segment(name: str) -> str:
    return quote(name, safe="")


def _path(path: str) -> str:
    return quote(path, safe="/~!$&'()*+,;=:@")


def _file_path(bucket: str, path: str) -> str:
    return f"/api/v1/files/{_segment(bucket)}/{_path(path)}"


def _member_path(node_id: str) -> str:
    return f"/api/v1/cluster/members/{_segment(node_id)}"


def _query(parameters: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return f"?{urlencode(given)}" if given else ""
