"""API keys, join tokens, and what the cluster says about itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable

from aiohttp import web

from gateway.authentication import Principal, new_key, require_administrator, verify
from gateway.backends import Backends, Call, document_response, empty_response
from gateway.bodies import Body, read_document, read_limited
from gateway.documents import KeyCreation, KeyDocument, KeyList, NewKey, TokenCreation
from gateway.errors import PROTECTIVE_HEADERS, ApiError
from gateway.interfaces import Snapshot
from gateway.paths import parse_query
from metadata_raft.commands import CreateKey, RevokeKey

_log = logging.getLogger(__name__)

_NONE: frozenset[str] = frozenset()

BACKUP_SECONDS_LIMIT = 6 * 3600.0
"""How long a backup may take: a copy of the state takes space on the node's disk meanwhile."""

BACKUP_HEADERS = {
    **PROTECTIVE_HEADERS,
    "Content-Type": "application/octet-stream",
    "Cache-Control": "no-store",
}


class Administration:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def create_key(self, call: Call) -> web.StreamResponse:
        """POST of a key: 201 with the whole key, this once."""
        principal = await self._administrator(call, "creating API keys")
        wanted = await read_document(
            Body(call.request, self._backends.settings), KeyCreation, default=KeyCreation()
        )
        key = new_key()
        await self._backends.submit(
            CreateKey(
                key_id=key.key_id,
                secret_hash=key.secret_hash,
                actor=principal.actor,
                role=wanted.role,
                description=wanted.description,
            )
        )
        document = NewKey(
            key_id=key.key_id, role=wanted.role, description=wanted.description, key=key.text
        )
        return document_response(document, status=201)

    async def list_keys(self, call: Call) -> web.StreamResponse:
        """GET of the keys, without their secrets."""
        presented = call.key()
        parse_query(call.target.query, _NONE)

        def all_keys(snapshot: Snapshot) -> KeyList:
            require_administrator(verify(snapshot, presented), "listing API keys")
            return KeyList(
                keys=[
                    KeyDocument(
                        key_id=record.key_id,
                        role=record.role,
                        description=record.description,
                        created_ms=record.created_ms,
                    )
                    for record in snapshot.keys()  # noqa: SIM118 - a method of ours
                ]
            )

        await self._backends.current(call.request)
        return document_response(await self._backends.in_worker(all_keys))

    async def revoke_key(self, call: Call) -> web.StreamResponse:
        """DELETE of a key: it is worthless as soon as this has answered 204."""
        principal = await self._administrator(call, "revoking API keys")
        await self._backends.submit(RevokeKey(key_id=call.target.name, actor=principal.actor))
        return empty_response()

    async def create_token(self, call: Call) -> web.StreamResponse:
        """POST of a join token: 201 with the token, this once."""
        principal = await self._administrator(call, "creating join tokens")
        wanted = await read_document(
            Body(call.request, self._backends.settings), TokenCreation, default=TokenCreation()
        )
        token = await self._backends.cluster.create_token(
            actor=principal.actor, lifetime_seconds=wanted.lifetime_seconds
        )
        return document_response(token, status=201)

    async def join(self, call: Call) -> web.StreamResponse:
        """POST of a sealed request to join; the token inside is what authorises it."""
        parse_query(call.target.query, _NONE)
        sealed = await read_limited(Body(call.request, self._backends.settings))
        if not sealed:
            raise ApiError("invalid_request", "a request to join has a sealed body")
        answer = await self._backends.cluster.join(sealed)
        return web.Response(
            body=answer,
            headers={**PROTECTIVE_HEADERS, "Content-Type": "application/octet-stream"},
        )

    async def cluster(self, call: Call) -> web.StreamResponse:
        """GET of the cluster as this node sees it; needs any key, but no quorum."""
        parse_query(call.target.query, _NONE)
        await self._backends.reader(call, "seeing the cluster")
        return document_response(self._backends.cluster.status())

    async def _administrator(self, call: Call, deed: str) -> Principal:
        parse_query(call.target.query, _NONE)
        return await self._backends.administrator(call, deed)

    async def backup(self, call: Call) -> web.StreamResponse:
        """GET of the metadata as a backup file; without quorum too, with `X-Consistency: local`."""
        await self._administrator(call, "backing up the metadata")
        if call.request.method == "HEAD":
            return web.Response(headers=BACKUP_HEADERS)
        async with self._backends.cluster.backup() as pieces:
            return await send_backup(
                call.request, pieces, self._backends.settings.body_silence_seconds
            )


async def send_backup(
    request: web.BaseRequest, pieces: AsyncIterable[bytes], silence_seconds: float
) -> web.StreamResponse:
    """Answer with the pieces of a backup; a reader that takes none for so long is cut off.

    What fails on the way breaks the connection off, and the digest at the end never comes.
    """
    response = web.StreamResponse(headers=BACKUP_HEADERS)
    await response.prepare(request)
    try:
        async with asyncio.timeout(BACKUP_SECONDS_LIMIT):
            async for piece in pieces:
                async with asyncio.timeout(silence_seconds):
                    await response.write(piece)
            await response.write_eof()
    except ConnectionError:
        raise
    except Exception as error:
        _log.warning("a backup was broken off: %s", error)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the backup could not be sent in full") from error
    return response
