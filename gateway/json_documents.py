"""JSON over HTTP: orjson reads and writes it, msgspec holds it to its type."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import orjson

_T = TypeVar("_T")


class DocumentError(ValueError):
    """No JSON, or not of the type expected; the text says where."""


def encode_document(document: Any) -> bytes:
    return orjson.dumps(msgspec.to_builtins(document))


def decode_document(data: bytes, kind: type[_T]) -> _T:
    """Raises DocumentError."""
    try:
        return msgspec.convert(orjson.loads(data), kind)
    except (orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise DocumentError(str(error)) from error
