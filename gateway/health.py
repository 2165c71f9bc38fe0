"""For load balancers and supervisors: whether this node lives, can serve, and has a quorum.

All three are open to everybody and answer within a second; with `maintenance`, the second asks the
other nodes and waits for the slowest, and calls at the same time share one round of questions.
"""

from __future__ import annotations

from aiohttp import web

from gateway.backends import Backends, Call, document_response
from gateway.documents import HealthDocument
from gateway.errors import PROTECTIVE_HEADERS, ApiError
from gateway.metrics import CONTENT_TYPE
from gateway.paths import parse_query
from gateway.queries import BOOLEANS

_READY = frozenset({"maintenance"})


class Health:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def live(self, _: Call) -> web.StreamResponse:
        """200 as long as the process answers at all."""
        return document_response(HealthDocument(status="ok", detail="the process answers"))

    async def ready(self, call: Call) -> web.StreamResponse:
        """200 when requests should be sent to this node; with `maintenance`, when it may stop."""
        maintenance = BOOLEANS.get(
            parse_query(call.target.query, _READY).get("maintenance", "false")
        )
        if maintenance is None:
            raise ApiError("invalid_parameter", "maintenance has to be true or false")
        reason = self._backends.cluster.unready()
        if reason is not None:
            raise ApiError("not_ready", reason)
        if maintenance:
            reasons = await self._backends.cluster.reasons_against_stopping()
            if reasons:
                raise ApiError("maintenance_unsafe", "; ".join(reasons))
            return document_response(
                HealthDocument(status="ok", detail="stopping this node now costs no availability")
            )
        return document_response(HealthDocument(status="ok", detail="requests are welcome"))

    async def cluster(self, _: Call) -> web.StreamResponse:
        """200 when a majority of the voters answers this node."""
        index = await self._backends.metadata.barrier()
        return document_response(
            HealthDocument(status="ok", detail=f"a majority answers; applied up to {index}")
        )

    async def metrics(self, _: Call) -> web.StreamResponse:
        return web.Response(
            body=self._backends.metrics.exposition(),
            headers={**PROTECTIVE_HEADERS, "Content-Type": CONTENT_TYPE},
        )
