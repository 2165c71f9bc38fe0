"""A file store in memory with just enough of the API for a load test, and defects on request."""

from __future__ import annotations

import re
from typing import Literal

from aiohttp import web

Defect = Literal["none", "flipped byte", "stale version", "lost from listing", "undead", "short"]


class FakeStore:
    """Serves `/api/v1/files/default/...`; with a defect, lies in that one way."""

    def __init__(self, defect: Defect = "none") -> None:
        self._defect = defect
        self._files: dict[str, list[bytes]] = {}
        self.requests = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/api/v1/files/default", self._list)
        application.router.add_put("/api/v1/files/default/{path:.+}", self._put)
        application.router.add_get("/api/v1/files/default/{path:.+}", self._get)
        application.router.add_delete("/api/v1/files/default/{path:.+}", self._delete)
        return application

    async def _put(self, request: web.Request) -> web.Response:
        self.requests += 1
        self._files.setdefault(request.match_info["path"], []).append(await request.read())
        return web.Response(status=201)

    async def _get(self, request: web.Request) -> web.Response:
        self.requests += 1
        versions = self._files.get(request.match_info["path"])
        if not versions:
            raise web.HTTPNotFound
        contents = versions[0 if self._defect == "stale version" else -1]
        if self._defect == "flipped byte" and contents:
            contents = contents[:-1] + bytes([contents[-1] ^ 1])
        if self._defect == "short":
            contents = contents[:-1]
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", "")):
            return web.Response(status=206, body=contents[int(match[1]) : int(match[2]) + 1])
        # Said outright: aiohttp says nothing in the answer to a HEAD of an empty file.
        return web.Response(body=contents, headers={"Content-Length": str(len(contents))})

    async def _delete(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self._defect != "undead":
            del self._files[request.match_info["path"]]
        return web.Response(status=204)

    async def _list(self, request: web.Request) -> web.Response:
        self.requests += 1
        after, limit = request.query.get("cursor", ""), int(request.query["limit"])
        paths = sorted(
            path
            for path in self._files
            if path.startswith(request.query["prefix"]) and path > after
        )
        more = len(paths) > limit
        if self._defect == "lost from listing":
            paths = paths[1:]
        page = paths[:limit]
        return web.json_response(
            {
                "files": [
                    {"path": path, "size_bytes": len(self._files[path][-1])} for path in page
                ],
                "prefixes": [],
                "next_cursor": page[-1] if more else None,
            }
        )
