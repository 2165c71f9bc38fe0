"""What an administrator does about members, the ring, and the settings of the whole cluster.

The state machine decides again on all of it; what only a running node knows (who answers, what is
where) it is asked for through `gateway.interfaces.MembershipControl`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web

from gateway.backends import Backends, Call, document_response, empty_response
from gateway.bodies import Body, read_document
from gateway.documents import RingPreviewDocument, SettingsChange
from gateway.errors import ApiError
from gateway.interfaces import Intent
from gateway.paths import parse_query
from gateway.queries import BOOLEANS

CAPACITY_MAX = 1_000_000
"""Gigabytes, and so the largest weight (metadata_raft/apply_members.py)."""

ZONE_LENGTH_MAX = 64
"""As in node/settings.py."""

_NONE: frozenset[str] = frozenset()
_NODE = frozenset({"node"})
_FORCE = frozenset({"force"})
_REDUCE = frozenset({"reduce_copies"})
_PREVIEW = frozenset({"preview", "capacity", "zone", "node"})


class MembershipRoutes:
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def drain(self, call: Call) -> web.StreamResponse:
        """POST: the member gives its chunks away and stays; 200 with the member."""
        return await self._intend(call, "drain", "draining a node")

    async def undrain(self, call: Call) -> web.StreamResponse:
        """POST: the member belongs in the ring again; 200 with the member."""
        return await self._intend(call, "stay", "putting a node back to use")

    async def leave(self, call: Call) -> web.StreamResponse:
        """POST: the member gives its chunks away and then goes for good; 200 with the member."""
        return await self._intend(call, "leave", "making a node leave")

    async def remove(self, call: Call) -> web.StreamResponse:
        """DELETE of a dead member: 204 once it is recorded; a living one needs `force`."""
        force = _flag(parse_query(call.target.query, _FORCE), "force")
        principal = await self._backends.administrator(call, "removing a node")
        await self._backends.cluster.membership.remove(
            call.target.name, actor=principal.actor, force=force
        )
        return empty_response()

    async def ring(self, call: Call) -> web.StreamResponse:
        """GET of the ring's current epoch; with `preview` also of what a change would move."""
        parameters = parse_query(call.target.query, _PREVIEW)
        await self._backends.reader(call, "seeing the ring")
        preview = await self._preview(parameters)
        ring = self._backends.cluster.ring()
        return document_response(msgspec.structs.replace(ring, preview=preview))

    async def change_settings(self, call: Call) -> web.StreamResponse:
        """PATCH of the settings of the whole cluster: 200 with all of them."""
        parse_query(call.target.query, _NONE)
        principal = await self._backends.administrator(call, "changing the cluster's settings")
        body = Body(call.request, self._backends.settings)
        change = await read_document(body, SettingsChange)
        named = {
            name: value
            for name, value in msgspec.structs.asdict(change).items()
            if value is not msgspec.UNSET
        }
        document = await self._backends.cluster.membership.change_settings(
            named, actor=principal.actor
        )
        return document_response(document)

    async def resume_collection(self, call: Call) -> web.StreamResponse:
        """POST: space is reclaimed again after a restore from a backup; 204."""
        parse_query(call.target.query, _NONE)
        principal = await self._backends.administrator(call, "resuming collection")
        await self._backends.cluster.membership.resume_collection(actor=principal.actor)
        return empty_response()

    async def scrub(self, call: Call) -> web.StreamResponse:
        """POST: `node`, or every node, rereads all its chunks; 202 with who has been told."""
        parameters = parse_query(call.target.query, _NODE)
        await self._backends.administrator(call, "scrubbing")
        document = await self._backends.cluster.scrub(parameters.get("node"))
        return document_response(document, status=202)

    async def _intend(self, call: Call, intent: Intent, deed: str) -> web.StreamResponse:
        allowed = _NONE if intent == "stay" else _REDUCE
        reduce_copies = _flag(parse_query(call.target.query, allowed), "reduce_copies")
        principal = await self._backends.administrator(call, deed)
        member = await self._backends.cluster.membership.set_intent(
            call.target.name, intent, actor=principal.actor, reduce_copies=reduce_copies
        )
        return document_response(member)

    async def _preview(self, parameters: Mapping[str, str]) -> RingPreviewDocument | None:
        membership = self._backends.cluster.membership
        match parameters.get("preview"), set(parameters) - {"preview"}:
            case None, others if not others:
                return None
            case "join", others if others <= {"capacity", "zone"}:
                weight = _capacity(parameters.get("capacity"))
                zone = parameters.get("zone", "")
                if len(zone) > ZONE_LENGTH_MAX or not zone.isprintable():
                    raise ApiError(
                        "invalid_parameter",
                        f"a zone has at most {ZONE_LENGTH_MAX} characters, in one line",
                    )
                return await membership.preview_join(weight=weight, zone=zone)
            case "leave", others if others == {"node"}:
                return await membership.preview_leave(parameters["node"])
        raise ApiError(
            "invalid_parameter",
            "a preview is preview=join with capacity (and zone), or preview=leave with node",
        )


def _capacity(text: str | None) -> int:
    if (
        text is None
        or not (text.isascii() and text.isdecimal() and len(text) <= len(str(CAPACITY_MAX)))
        or not 1 <= int(text) <= CAPACITY_MAX
    ):
        raise ApiError(
            "invalid_parameter",
            f"capacity has to be a whole number of gigabytes from 1 to {CAPACITY_MAX:,}",
        )
    return int(text)


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    text = parameters.get(name, "false")
    if text not in BOOLEANS:
        raise ApiError("invalid_parameter", f"{name} has to be true or false")
    return BOOLEANS[text]
