"""Buckets: create, list, show, change, delete."""

from __future__ import annotations

from typing import cast

from aiohttp import web

from gateway.authentication import Principal, denied, readable_bucket, verify
from gateway.backends import Backends, Call, document_response, empty_response
from gateway.bodies import Body, read_document
from gateway.documents import BucketChange, BucketCreation, BucketDocument, BucketPage
from gateway.errors import ApiError
from gateway.interfaces import Snapshot
from gateway.paths import parse_query
from gateway.queries import BOOLEANS, parse_limit
from metadata_raft import access
from metadata_raft.commands import BucketDone, CreateBucket, DeleteBucket, UpdateBucket
from metadata_raft.names import bucket_name_problem
from metadata_raft.records import BucketRecord

_PAGE = frozenset({"cursor", "limit"})
_CASCADE = frozenset({"cascade"})
_NONE: frozenset[str] = frozenset()


class Buckets:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def create(self, call: Call) -> web.StreamResponse:
        """POST: 201, or 200 with the bucket that was there already."""
        parse_query(call.target.query, _NONE)
        principal = await self._backends.principal(call)
        if not access.may_create_buckets(principal.role):
            raise denied(principal, "creating buckets")
        body = Body(call.request, self._backends.settings)
        wanted = await read_document(body, BucketCreation)
        problem = bucket_name_problem(wanted.name)
        if problem is not None:
            raise ApiError("invalid_bucket_name", f"the bucket name {wanted.name!a} {problem}")
        done = await self._backends.submit(
            CreateBucket(
                name=wanted.name,
                actor=principal.actor,
                visibility=wanted.visibility,
                hidden=wanted.hidden,
                quota_bytes=wanted.quota_bytes,
            )
        )
        created = cast(BucketDone, done).created
        return document_response(self._applied(wanted.name), status=201 if created else 200)

    async def list(self, call: Call) -> web.StreamResponse:
        """GET of the collection: the buckets this client may read, hidden ones for admins only."""
        parameters = parse_query(call.target.query, _PAGE)
        limit = parse_limit(parameters.get("limit"))
        after = parameters.get("cursor", "")
        presented = call.key()

        def page(snapshot: Snapshot) -> BucketPage:
            principal = verify(snapshot, presented)
            shown: list[BucketDocument] = []
            position = after
            while True:
                records = snapshot.buckets(position, limit)
                for record in records:
                    if len(shown) == limit:
                        return BucketPage(buckets=shown, next_cursor=shown[-1].name)
                    if _is_listed(principal, record):
                        shown.append(_document(record))
                if len(records) < limit:
                    return BucketPage(buckets=shown, next_cursor=None)
                position = records[-1].name

        await self._backends.current(call.request)
        return document_response(await self._backends.in_worker(page))

    async def get(self, call: Call) -> web.StreamResponse:
        parse_query(call.target.query, _NONE)
        presented = call.key()
        await self._backends.current(call.request)
        with self._backends.metadata.snapshot() as snapshot:
            principal = verify(snapshot, presented)
            record = readable_bucket(snapshot, principal, call.target.name)
        return document_response(_document(record))

    async def change(self, call: Call) -> web.StreamResponse:
        """PATCH: the settings that the body names; answers with all of them."""
        parse_query(call.target.query, _NONE)
        name = call.target.name
        principal = await self._changer(call)
        body = Body(call.request, self._backends.settings)
        change = await read_document(body, BucketChange)
        await self._backends.submit(
            UpdateBucket(
                name=name,
                actor=principal.actor,
                visibility=change.visibility,
                hidden=change.hidden,
                quota_bytes=change.quota_bytes,
            )
        )
        return document_response(self._applied(name))

    async def delete(self, call: Call) -> web.StreamResponse:
        """DELETE: 204; 409 unless it is empty or `cascade` is true."""
        parameters = parse_query(call.target.query, _CASCADE)
        cascade = BOOLEANS.get(parameters.get("cascade", "false"))
        if cascade is None:
            raise ApiError("invalid_parameter", "cascade has to be true or false")
        principal = await self._changer(call)
        await self._backends.submit(
            DeleteBucket(name=call.target.name, actor=principal.actor, cascade=cascade)
        )
        return empty_response()

    async def _changer(self, call: Call) -> Principal:
        """Who asks, if the bucket is there and theirs to change."""
        presented = call.key()
        name = call.target.name

        def admit(snapshot: Snapshot) -> Principal:
            principal = verify(snapshot, presented)
            bucket = readable_bucket(snapshot, principal, name)
            is_owner = bucket.owner == principal.actor
            if not access.may_change_bucket(principal.role, is_owner=is_owner):
                raise denied(principal, f"changing bucket {name}")
            return principal

        return await self._backends.decided(admit)

    def _applied(self, name: str) -> BucketDocument:
        """The bucket as this node has just applied it."""
        with self._backends.metadata.snapshot() as snapshot:
            record = snapshot.bucket(name)
        if record is None:
            raise ApiError("no_such_bucket", f"bucket {name} was deleted meanwhile")
        return _document(record)


def _is_listed(principal: Principal, record: BucketRecord) -> bool:
    if record.hidden and not access.may_administer(principal.role):
        return False
    return access.may_read(principal.role, record.visibility)


def _document(record: BucketRecord) -> BucketDocument:
    return BucketDocument(
        name=record.name,
        owner=record.owner,
        visibility=record.visibility,
        hidden=record.hidden,
        quota_bytes=record.quota_bytes,
        created_ms=record.created_ms,
        file_count=record.file_count,
        size_bytes=record.size_bytes,
    )
