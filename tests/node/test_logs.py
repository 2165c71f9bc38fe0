"""Logs: one line per event, with its fields, in both forms."""

from __future__ import annotations

import json
import logging
import sys

from node import logs
from node.settings import Secret


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("node.peer", logging.INFO, __file__, 1, message, None, None)
    made.fields = fields
    return made


def test_a_text_line_holds_sentence_and_fields_and_stays_one_line() -> None:
    """Whatever a field contains, an event is one line."""
    line = logs.TextFormatter().format(record("a\nb", path="x y", count=3))
    assert line.endswith('info    node.peer a\\nb path="x y" count=3')
    assert "\n" not in line


def test_a_json_line_parses_and_carries_a_traceback() -> None:
    """Programs read every field, and an error's traceback, from one line."""
    made = record("failed", secret=Secret("hidden"))
    try:
        int("no")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = logs.JsonFormatter().format(made)
    parsed = json.loads(line)
    assert parsed["message"] == "failed"
    assert "ValueError: invalid literal" in parsed["traceback"]
    assert "hidden" not in line
    assert "\n" not in line
