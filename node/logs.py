"""Logs: one line per event on standard error, as text or as JSON, with fields beside the sentence.

    2026-11-20T09:00:00.123Z info    node.peer ready url=http://127.0.0.1:7070 node=1c2d3e4f epoch=3

Every line says which node wrote it, and at which epoch of the ring, once these are known. Fields
are given by `event`; as JSON, ids of chunks and nodes that stand in a sentence are fields as well.
A secret has no way in: keys, tokens, the cluster secret are `Secret` or never handed to a logger.

What a library logs is let through from warnings on, and what comes again and again is counted
rather than written, so that no failure fills a disk with its own description.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

OWN_PACKAGES = frozenset({"node", "ring", "metadata_raft", "gateway", "__main__"})

REPEAT_WINDOW_SECONDS = 10.0
REPEATS_MAX = 100
"""Lines of one kind within a window: enough to see what is going on, some 2 KB/s at most."""

LIBRARY_LINES_MAX = 20
"""The same for all lines of a library's logger: nobody runs Holdfast to read those."""

KINDS_MAX = 1024
"""Kinds of lines counted at a time; there are some two hundred in the program."""

SHORT_ID_LENGTH = 8
"""The first group of a node id, as all screens show it."""

_CHUNK = re.compile(r"\b[0-9a-f]{64}\b")
_NODE = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


class _Context:
    """What every line of this process says of it."""

    node: str | None = None
    epoch: Callable[[], int] | None = None


_context = _Context()


def configure(*, log_format: str, level: str) -> None:
    """Send everything to standard error, in the given form; replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(Restraint(debug=level == "debug"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line per request is the operator's choice, and asyncio's slow-callback notes are ours.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR if level != "debug" else logging.DEBUG)
    # What Python itself would write on several lines.
    logging.captureWarnings(True)
    threading.excepthook = _failed_thread
    sys.unraisablehook = _unraisable


def identify(*, node_id: str, epoch: Callable[[], int] | None = None) -> None:
    """From here on every line says that this node wrote it, and at which epoch."""
    _context.node = node_id[:SHORT_ID_LENGTH]
    _context.epoch = epoch


def event(logger: logging.Logger, level: int, sentence: str, /, **fields: object) -> None:
    """Log a sentence with fields."""
    logger.log(level, sentence, extra={"fields": fields}, stacklevel=2)


class Restraint(logging.Filter):
    """Lets through what is worth a line; a record that follows others left out has their number."""

    def __init__(self, *, debug: bool, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._debug = debug
        self._clock = clock
        self._counts: dict[object, tuple[float, int]] = {}
        """By kind: the beginning of its window, and the lines since."""
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        own = record.name.partition(".")[0] in OWN_PACKAGES
        if not own and record.levelno < logging.WARNING and not self._debug:
            return False
        # A library may put what varies into the sentence itself.
        kind: object = (record.name, record.msg) if own else record.name
        limit = REPEATS_MAX if own else LIBRARY_LINES_MAX
        now = self._clock()
        with self._lock:
            begun, count = self._counts.get(kind, (now, 0))
            if now - begun >= REPEAT_WINDOW_SECONDS:
                if count > limit:
                    record.left_out = count - limit
                begun, count = now, 0
            if kind not in self._counts and len(self._counts) >= KINDS_MAX:
                del self._counts[next(iter(self._counts))]
            self._counts[kind] = (begun, count + 1)
        return count < limit


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
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **_fields(record),
        }
        for name, pattern in (("chunks", _CHUNK), ("nodes", _NODE)):
            if found := pattern.findall(message):
                line.setdefault(name, found)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The event's own fields, then what every line has; an `epoch` of its own is the one meant."""
    given = getattr(record, "fields", None)
    fields: dict[str, object] = dict(given) if isinstance(given, dict) else {}
    left_out = getattr(record, "left_out", None)
    if left_out is not None:
        fields["left_out"] = left_out
    if _context.node is not None:
        fields["node"] = _context.node
    if _context.epoch is not None:
        fields.setdefault("epoch", _context.epoch())
    return fields


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _quoted(value: object) -> str:
    text = str(value)
    if text and not any(character in text for character in ' "\r\n='):
        return text
    return '"' + _one_line(text.replace('"', '\\"')) + '"'


def _failed_thread(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else "?"
    logging.getLogger(__name__).error(
        "thread %s failed: %r", name, arguments.exc_value, exc_info=arguments.exc_value
    )


def _unraisable(arguments: UnraisableHookArgs) -> None:
    logging.getLogger(__name__).error(
        "an error that nobody could be told: %r", arguments.exc_value, exc_info=arguments.exc_value
    )
