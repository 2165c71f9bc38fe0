"""The gateway as a server: one dispatch from request target to handler, one place for its errors.

aiohttp's low-level server is used without `web.Application`: its router works on normalised paths,
and its stack of middlewares costs more than a small request does here. What is left per request is
a dictionary look-up, the handler, and a count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from time import monotonic
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from prometheus_client import CollectorRegistry

from gateway import paths
from gateway.administration import Administration
from gateway.backends import Backends, Call
from gateway.bodies import ClientGoneError, declared_size
from gateway.buckets import Buckets
from gateway.budget import ByteBudget
from gateway.downloads import Downloads
from gateway.errors import ApiError, problem_response, translated
from gateway.health import Health
from gateway.interfaces import Buffers as BufferSource
from gateway.interfaces import Chunks, Cluster, GatewaySettings, Metadata
from gateway.listing import Listings
from gateway.membership import MembershipRoutes
from gateway.metrics import Metrics
from gateway.openapi import Documentation
from gateway.uploads import Uploads
from metadata_raft.errors import FatalRaftError

_log = logging.getLogger(__name__)

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

READ_BUFFER_BYTES = 256 * 1024
"""What a connection takes in before it stops reading; as much as uvloop reads at once."""

HEADER_LINE_LIMIT = 8190
"""Bytes of a request line or of one header; three times the longest path, fully escaped."""

KEEP_ALIVE_SECONDS = 75.0
LINGERING_SECONDS = 5.0
"""How long the rest of a refused body is read, so that the client gets to see the answer."""

BACKGROUND_SECONDS = 5.0
"""What uploads left behind may take to be cleared away at a shutdown."""


def routes(backends: Backends) -> Mapping[str, Mapping[str, Handler]]:
    """Every route: template → method → handler. GET answers HEAD as well."""
    uploads, downloads = Uploads(backends), Downloads(backends)
    buckets, listings = Buckets(backends), Listings(backends)
    administration, health = Administration(backends), Health(backends)
    membership, documentation = MembershipRoutes(backends), Documentation()
    return {
        paths.FILE: {
            "GET": downloads.get,
            "PUT": uploads.put,
            "POST": uploads.put,
            "DELETE": uploads.delete,
        },
        paths.BY_ID: {"GET": downloads.get_by_id},
        paths.LISTING: {"GET": listings.list},
        paths.METADATA: {"GET": listings.metadata},
        paths.BUCKETS: {"GET": buckets.list, "POST": buckets.create},
        paths.BUCKET: {
            "GET": buckets.get,
            "PATCH": buckets.change,
            "DELETE": buckets.delete,
        },
        paths.KEYS: {"GET": administration.list_keys, "POST": administration.create_key},
        paths.KEY: {"DELETE": administration.revoke_key},
        paths.CLUSTER: {"GET": administration.cluster},
        paths.RING: {"GET": membership.ring},
        paths.MEMBER: {"DELETE": membership.remove},
        paths.MEMBER_DRAIN: {"POST": membership.drain},
        paths.MEMBER_UNDRAIN: {"POST": membership.undrain},
        paths.MEMBER_LEAVE: {"POST": membership.leave},
        paths.CLUSTER_SETTINGS: {"PATCH": membership.change_settings},
        paths.COLLECTION_RESUME: {"POST": membership.resume_collection},
        paths.SCRUB: {"POST": membership.scrub},
        paths.TOKENS: {"POST": administration.create_token},
        paths.JOIN: {"POST": administration.join},
        paths.BACKUP: {"GET": administration.backup},
        paths.HEALTH_LIVE: {"GET": health.live},
        paths.HEALTH_READY: {"GET": health.ready},
        paths.HEALTH_CLUSTER: {"GET": health.cluster},
        paths.METRICS: {"GET": health.metrics},
        paths.OPENAPI: {"GET": documentation.openapi},
        paths.DOCS: {"GET": documentation.page},
    }


_VITAL = frozenset({paths.HEALTH_LIVE, paths.HEALTH_READY, paths.METRICS})
"""Answered however many requests there are: a node under load must not look dead."""


def _is_steering(template: str) -> bool:
    """Whether it is asked by who watches or steers the cluster: that is no traffic which background
    work has to yield to."""
    return template in _VITAL or template.startswith((paths.CLUSTER, paths.HEALTH_CLUSTER))


class _Route(NamedTuple):
    handler: Handler
    operation: str
    """Its label in the metrics."""
    is_vital: bool
    is_steering: bool


class Gateway:
    """Answers one request after another; the same object serves all connections."""

    def __init__(
        self, backends: Backends, in_progress: list[int], on_request: Callable[[], None]
    ) -> None:
        self._backends = backends
        self._on_request = on_request
        self._requests_max = backends.settings.requests_max
        self._in_progress = in_progress
        self._routes = {
            template: {
                method: _Route(
                    handler, f"{method} {template}", template in _VITAL, _is_steering(template)
                )
                for method, handler in methods.items()
            }
            for template, methods in routes(backends).items()
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        started = monotonic()
        operation = "unrouted"
        response: web.StreamResponse
        progress = self._in_progress
        progress[0] += 1
        try:
            target = paths.parse_target(request.raw_path)
            route = self._route(request.method, target.route)
            operation = route.operation
            if not route.is_steering:
                self._on_request()
            if progress[0] > self._requests_max and not route.is_vital:
                response = problem_response(
                    ApiError("overloaded", f"{progress[0]} requests are in progress already")
                )
            else:
                response = await route.handler(Call(request, target))
        except ApiError as error:
            response = self._refusal(request, error)
        except (ConnectionError, ClientGoneError) as error:
            # Nobody is there to be answered; aiohttp closes what is left of the connection.
            self._backends.metrics.observe(operation, 499, monotonic() - started)
            raise ConnectionResetError(str(error)) from error
        except Exception as error:
            response = self._refusal(request, _unforeseen(error))
        finally:
            progress[0] -= 1
        self._backends.metrics.observe(operation, response.status, monotonic() - started)
        return response

    def _route(self, method: str, template: str) -> _Route:
        methods = self._routes[template]
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
            raise ApiError(
                "method_not_allowed",
                f"{template} answers {allowed}, not {method}",
                headers={"Allow": allowed},
            )
        return route

    def _refusal(self, request: web.BaseRequest, error: ApiError) -> web.StreamResponse:
        response = problem_response(error)
        if declared_size(request) != 0 and not request.content.is_eof():
            # The rest of the body may never come (`Expect: 100-continue`), or be long.
            response.force_close()
        return response


class GatewayConnection(web.RequestHandler):
    """One client connection; answers what aiohttp's parser refuses as a problem, too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for requests that it could not parse."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            # aiohttp ends the connection without a word.
            raise ConnectionResetError("nobody is left to be answered") from exc
        if status >= 500:
            _log.error("a connection failed unexpectedly", exc_info=exc)
            error = ApiError("internal_error", "the request failed unexpectedly")
        elif isinstance(exc, LineTooLong):
            error = ApiError(
                "header_too_large", f"no line of a request may exceed {HEADER_LINE_LIMIT} bytes"
            )
        else:
            first_line = (message or "").partition("\n")[0].rstrip(":")
            error = ApiError("invalid_request", f"this is no valid HTTP request: {first_line!a}")
        response = problem_response(error)
        response.force_close()
        return response


class GatewayServer(web.Server):
    """What `make_server` returns: hand it to a `web.ServerRunner`."""

    def __init__(
        self, gateway: Gateway, backends: Backends, in_progress: list[int], **options: Any
    ) -> None:
        super().__init__(gateway, **options)
        self._in_progress = in_progress
        self.backends = backends
        self._options = options

    def __call__(self) -> web.RequestHandler:
        return GatewayConnection(self, loop=self._loop, **self._options)

    @property
    def requests_in_progress(self) -> int:
        return self._in_progress[0]

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let requests in progress finish, then what they left behind."""
        await super().shutdown(timeout)
        await self.backends.background.settle(BACKGROUND_SECONDS)


def make_server(
    metadata: Metadata,
    chunks: Chunks,
    buffers: BufferSource,
    cluster: Cluster,
    *,
    settings: GatewaySettings,
    workers: Executor,
    registry: CollectorRegistry | None = None,
    on_request: Callable[[], None] = lambda: None,
) -> GatewayServer:
    """Put a gateway together; the event loop must be running.

    `workers` runs hashing and listings. `registry` is what /metrics shows; one of its own if None.
    `on_request` is called as requests of clients come; who watches or steers the cluster is none.
    """
    in_progress = [0]
    metrics = Metrics(registry or CollectorRegistry(), in_progress=lambda: in_progress[0])
    backends = Backends(
        metadata=metadata,
        chunks=chunks,
        buffers=buffers,
        cluster=cluster,
        settings=settings,
        workers=workers,
        metrics=metrics,
        read_budget=ByteBudget(settings.read_budget_bytes),
    )
    return GatewayServer(
        Gateway(backends, in_progress, on_request),
        backends,
        in_progress,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        lingering_time=LINGERING_SECONDS,
        max_field_size=HEADER_LINE_LIMIT,
        max_line_size=HEADER_LINE_LIMIT,
        read_bufsize=READ_BUFFER_BYTES,
    )


def _unforeseen(error: Exception) -> ApiError:
    known = translated(error)
    if known is not None:
        return known
    if isinstance(error, FatalRaftError):
        # The node has to end; its exception handler knows how.
        asyncio.get_running_loop().call_exception_handler(
            {"message": "a request met damaged metadata", "exception": error}
        )
        return ApiError("not_ready", "this node has to stop")
    _log.exception("a request failed unexpectedly", exc_info=error)
    return ApiError("internal_error", "the request failed unexpectedly; the log says why")
