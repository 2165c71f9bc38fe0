"""From the request target as it came over the wire to a route and its names. Pure.

The target is taken before any library normalises it: it is cut at its slashes, each name is decoded
once and strictly, and what remains is checked by the rules the state machine has as well
(`metadata_raft/names.py`). So a stored path is exactly the one given, and dot segments are refused
instead of being resolved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from gateway.errors import ApiError
from metadata_raft.names import bucket_name_problem, path_problem

API = "/api/v1/"

# The templates of all routes; handlers (app.py) and operations (openapi.py) are filed under them.
BUCKETS = "/api/v1/buckets"
BUCKET = "/api/v1/buckets/{bucket}"
LISTING = "/api/v1/files/{bucket}"
FILE = "/api/v1/files/{bucket}/{path}"
METADATA = "/api/v1/metadata/{bucket}/{path}"
BY_ID = "/api/v1/by-id/{file_id}"
KEYS = "/api/v1/keys"
KEY = "/api/v1/keys/{key_id}"
CLUSTER = "/api/v1/cluster"
RING = "/api/v1/cluster/ring"
TOKENS = "/api/v1/cluster/tokens"
JOIN = "/api/v1/cluster/join"
MEMBER = "/api/v1/cluster/members/{node_id}"
MEMBER_DRAIN = "/api/v1/cluster/members/{node_id}/drain"
MEMBER_UNDRAIN = "/api/v1/cluster/members/{node_id}/undrain"
MEMBER_LEAVE = "/api/v1/cluster/members/{node_id}/leave"
CLUSTER_SETTINGS = "/api/v1/cluster/settings"
COLLECTION_RESUME = "/api/v1/cluster/collection/resume"
SCRUB = "/api/v1/cluster/scrub"
BACKUP = "/api/v1/cluster/backup"
HEALTH_LIVE = "/health/live"
HEALTH_READY = "/health/ready"
HEALTH_CLUSTER = "/health/cluster"
METRICS = "/metrics"
OPENAPI = "/openapi.json"
DOCS = "/docs"

_LITERAL = frozenset(
    {
        BUCKETS,
        KEYS,
        CLUSTER,
        RING,
        TOKENS,
        JOIN,
        CLUSTER_SETTINGS,
        COLLECTION_RESUME,
        SCRUB,
        BACKUP,
        HEALTH_LIVE,
        HEALTH_READY,
        HEALTH_CLUSTER,
        METRICS,
        OPENAPI,
        DOCS,
    }
)
_ONE_NAME = {"buckets": BUCKET, "files": LISTING, "by-id": BY_ID, "keys": KEY}
_BUCKET_AND_PATH = {"files": FILE, "metadata": METADATA}
_MEMBERS = "/api/v1/cluster/members/"
_MEMBER_ACTIONS = {"drain": MEMBER_DRAIN, "undrain": MEMBER_UNDRAIN, "leave": MEMBER_LEAVE}

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = "/~!$&'()*+,;=:@"
"""What a path component keeps as it is (RFC 3986 §3.3), and the slash between them."""

_PARAMETER_LIMIT = 16
"""Parameters in one query; no route has more than five."""


class Target(NamedTuple):
    """Where a request goes. `name` is the bucket, or the id of a file, key or node; all but `query`
    is decoded."""

    route: str
    name: str = ""
    path: str = ""
    query: str = ""


def parse_target(raw: str) -> Target:
    """Split and decode a request target in origin or absolute form (RFC 9112 §3.2).

    Raises ApiError: no_such_route, invalid_path, invalid_bucket_name.
    """
    if not raw.startswith("/"):
        raw = _origin_form(raw)
    if "#" in raw:
        raise ApiError("invalid_path", "a request target has no fragment; encode '#' as %23")
    location, _, query = raw.partition("?")
    if location.startswith("/api/v1/"):
        collection, slash, rest = location[8:].partition("/")
        if slash and rest and collection != "cluster":
            name, slash, path = rest.partition("/")
            if slash:
                route = _BUCKET_AND_PATH.get(collection)
                if route is not None:
                    return Target(route, _bucket(name), _path(path), query)
            elif (route := _ONE_NAME.get(collection)) is not None:
                if route is BUCKET or route is LISTING:
                    return Target(route, _bucket(name), "", query)
                return Target(route, decoded(name), "", query)
    if location in _LITERAL:
        return Target(location, "", "", query)
    if location.startswith(_MEMBERS):
        name, slash, action = location.removeprefix(_MEMBERS).partition("/")
        member_route = _MEMBER_ACTIONS.get(action) if slash else MEMBER
        if name and member_route is not None:
            return Target(member_route, decoded(name), "", query)
    raise ApiError("no_such_route", f"nothing is served at {_shown(location)}")


def decoded(raw: str) -> str:
    """Decode %-escapes once, strictly: UTF-8, no stray '%', no encoded slash."""
    if "%" not in raw and raw.isascii():
        return raw
    if _BAD_ESCAPE.search(raw):
        raise ApiError("invalid_path", f"{_shown(raw)} has a '%' that begins no escape")
    if "%2f" in raw or "%2F" in raw:
        raise ApiError("invalid_path", f"{_shown(raw)} has an encoded slash in a component")
    try:
        # Bytes beyond ASCII came in as surrogates (aiohttp's parser); they count as themselves.
        return unquote_to_bytes(raw.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("invalid_path", f"{_shown(raw)} is not valid UTF-8") from error


def file_target(bucket: str, path: str) -> str:
    """The request target of a file: the inverse of `parse_target`."""
    return f"/api/v1/files/{bucket}/{quote(path, safe=_UNRESERVED)}"


def parse_query(query: str, allowed: frozenset[str]) -> Mapping[str, str]:
    """The parameters of a query, each at most once, only such as the route knows.

    Raises ApiError(invalid_parameter): a parameter that is silently ignored may have been meant to
    limit what the request does.
    """
    if not query:
        return {}
    if _BAD_ESCAPE.search(query):
        raise ApiError("invalid_parameter", "the query has a '%' that begins no escape")
    try:
        pairs = parse_qsl(
            query.encode("utf-8", "surrogateescape").decode("utf-8"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_PARAMETER_LIMIT,
        )
    except ValueError as error:
        raise ApiError(
            "invalid_parameter", "the query is not valid UTF-8 or has too many parameters"
        ) from error
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise ApiError("invalid_parameter", f"there is no parameter {_shown(name)} here")
        if name in parameters:
            raise ApiError("invalid_parameter", f"the parameter {name} is given twice")
        parameters[name] = value
    return parameters


def _origin_form(raw: str) -> str:
    scheme, separator, rest = raw.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        _, slash, path = rest.partition("/")
        return slash + path
    raise ApiError("invalid_path", f"{_shown(raw)} is no request target for a file store")


def _bucket(raw: str) -> str:
    name = decoded(raw)
    problem = bucket_name_problem(name)
    if problem is not None:
        raise ApiError("invalid_bucket_name", f"the bucket name {_shown(name)} {problem}")
    return name


def _path(raw: str) -> str:
    path = decoded(raw)
    problem = path_problem(path)
    if problem is not None:
        raise ApiError("invalid_path", f"the path {_shown(path)} {problem}")
    return path


def _shown(text: str) -> str:
    """A name as it may stand in a sentence: quoted, printable, not too long."""
    shown = ascii(text)
    return shown if len(shown) <= 120 else f"{shown[:100]}…'"
