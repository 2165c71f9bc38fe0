"""What the headers of an upload say, checked as a whole before anything is read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec
from blake3 import blake3
from multidict import CIMultiDictProxy

from gateway.errors import ApiError
from gateway.multipart import MultipartError, boundary_of
from gateway.preconditions import MalformedConditionError, for_write
from metadata_raft.commands import USER_METADATA_SIZE_LIMIT, IdempotencyKey, Preconditions

DEFAULT_CONTENT_TYPE = "application/octet-stream"

_META_PREFIX = "x-meta-"
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,255}")
_META_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_SIZE = re.compile(r"[0-9]{1,18}")
_TAG_LIMIT = 100

_HEADER_SAFE = " !#$&'()*+-./:;<=>?@[]^_`{|}~"
"""What a value keeps as it is in a header; the rest, the comma and the percent sign are encoded."""


class UploadHeaders(NamedTuple):
    content_type: str
    user_metadata: dict[str, str]
    tags: tuple[str, ...]
    preconditions: Preconditions
    size_bytes: int | None
    """Of the contents, where a header says it."""
    digest: bytes | None
    """The BLAKE3-256 the contents must have."""
    idempotency_key: str | None
    boundary: bytes | None
    """Of a multipart/form-data body; None where the body is the file."""


def parse_upload_headers(headers: CIMultiDictProxy[str], body_size: int | None) -> UploadHeaders:
    """Raises ApiError: invalid_header, invalid_multipart, size_mismatch, unsupported_media_type."""
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError(
            "unsupported_media_type",
            "a Content-Encoding is not kept; send the bytes that are to be stored without it",
        )
    if "Content-Range" in headers:
        raise ApiError("invalid_header", "a part of a file can't be uploaded (Content-Range)")
    content_type = checked_content_type(headers.get("Content-Type", DEFAULT_CONTENT_TYPE))
    boundary: bytes | None = None
    if content_type[:19].lower() == "multipart/form-data":
        try:
            boundary = boundary_of(content_type)
        except MultipartError as error:
            raise ApiError("invalid_multipart", str(error)) from error
        content_type = DEFAULT_CONTENT_TYPE
    try:
        preconditions = for_write(headers)
    except MalformedConditionError as error:
        raise ApiError("invalid_header", str(error)) from error
    user_metadata = dict(_user_metadata(headers))
    tags = _tags(headers.get("X-Tags", ""))
    if user_metadata or tags:
        texts = [*user_metadata, *user_metadata.values(), *tags]
        if sum(len(text.encode()) for text in texts) > USER_METADATA_SIZE_LIMIT:
            raise ApiError(
                "header_too_large",
                f"user metadata and tags may have {USER_METADATA_SIZE_LIMIT} bytes together",
            )
    return UploadHeaders(
        content_type,
        user_metadata,
        tags,
        preconditions,
        _size(headers.get("X-File-Size"), None if boundary else body_size),
        _digest(headers.get("X-Content-BLAKE3")),
        idempotency_key(headers),
        boundary,
    )


def checked_content_type(value: str) -> str:
    """The value, if it can go back into a header one day. Raises ApiError(invalid_header)."""
    if not _CONTENT_TYPE.fullmatch(value):
        raise ApiError("invalid_header", "Content-Type has to be 1 to 255 printable characters")
    return value


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    key = headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ApiError(
            "invalid_header", "Idempotency-Key has to be 1 to 255 visible ASCII characters"
        )
    return key


def idempotency(
    key: str | None, *, actor: str, bucket: str, request: tuple[object, ...]
) -> IdempotencyKey | None:
    """The key in its scope, with the fingerprint of what makes two requests the same."""
    if key is None:
        return None
    fingerprint = blake3(msgspec.msgpack.encode(request)).digest()
    return IdempotencyKey(scope=f"{actor}/{bucket}", key=key, fingerprint=fingerprint)


def header_text(value: str) -> str:
    """A stored value as it may stand in a header: visible ASCII, the rest percent-encoded."""
    return quote(value, safe=_HEADER_SAFE)


def _user_metadata(headers: CIMultiDictProxy[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for name, value in headers.items():
        lowered = name.lower()
        if not lowered.startswith(_META_PREFIX):
            continue
        key = lowered[len(_META_PREFIX) :]
        if not _META_NAME.fullmatch(key):
            raise ApiError(
                "invalid_header",
                "a metadata name has to be 1 to 128 letters, digits, '-', '_' and '.'",
            )
        if key in seen:
            raise ApiError("invalid_header", f"X-Meta-{key} is given twice")
        seen.add(key)
        yield key, _decoded(f"X-Meta-{key}", value)


def _tags(value: str) -> tuple[str, ...]:
    if not value:
        return ()
    tags = tuple(_decoded("X-Tags", tag.strip(" \t")) for tag in value.split(","))
    if len(tags) > _TAG_LIMIT or "" in tags:
        raise ApiError("invalid_header", f"X-Tags holds 1 to {_TAG_LIMIT} non-empty tags")
    return tags


def _decoded(header: str, value: str) -> str:
    """Percent-decode a header value; bytes beyond ASCII count as UTF-8."""
    if "%" not in value and value.isascii():
        return value
    try:
        text = unquote_to_bytes(value.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError("invalid_header", f"{header} is not valid UTF-8") from error
    if "\0" in text:
        raise ApiError("invalid_header", f"{header} holds a NUL character")
    return text


def _size(value: str | None, body_size: int | None) -> int | None:
    if value is None:
        return body_size
    if not _SIZE.fullmatch(value):
        raise ApiError("invalid_header", "X-File-Size has to be a number of bytes")
    size = int(value)
    if body_size is not None and body_size != size:
        raise ApiError(
            "size_mismatch", f"X-File-Size says {size} bytes, Content-Length {body_size}"
        )
    return size


def _digest(value: str | None) -> bytes | None:
    if value is None:
        return None
    if not _DIGEST.fullmatch(value):
        raise ApiError("invalid_header", "X-Content-BLAKE3 has to be 64 hex digits")
    return bytes.fromhex(value)
