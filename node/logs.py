"""Logs: one line per event on standard error, as text or as JSON, with fields beside the sentence.

    2026-11-20T09:00:00.123Z info  node.peer the node is ready url=http://127.0.0.1:7070

Fields are given as `extra={"fields": {...}}` by `event`. A secret has no way in: keys, tokens and
the cluster secret are `Secret` or never handed to a logger.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson


def configure(*, log_format: str, level: str) -> None:
    """Send everything to standard error, in the given form; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per request is the operator's choice, and asyncio's slow-callback notes are ours.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR if level != "debug" else logging.DEBUG)


def event(logger: logging.Logger, level: int, sentence: str, /, **fields: object) -> None:
    """Log a sentence with fields."""
    logger.log(level, sentence, extra={"fields": fields}, stacklevel=2)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        pieces = [
            _timestamp(record),
            f"{record.levelname.lower():<7}",
            record.name,
            _one_line(record.getMessage()),
        ]
        pieces.extend(f"{name}={_quoted(value)}" for name, value in _fields(record).items())
        if record.exc_info:
            pieces.append(_quoted(self.formatException(record.exc_info)))
        return " ".join(pieces)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(character in text for character in ' "\n='):
        return text
    return '"' + _one_line(text.replace('"', '\\"')) + '"'
