"""Logs: one line per event, with its fields, in both forms."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from node import logs
from node.settings import Secret

NODE_ID = "1c2d3e4f-0000-4000-8000-000000000001"
CHUNK_ID = "ab" * 32


@pytest.fixture
def identified() -> Iterator[None]:
    """A process that knows who it is, and forgets it again."""
    logs.identify(node_id=NODE_ID, epoch=lambda: 7)
    yield
    logs._context.node = logs._context.epoch = None


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


@pytest.mark.usefixtures("identified")
def test_every_line_says_which_node_wrote_it_and_at_which_epoch() -> None:
    """In both forms; an event that is about an epoch keeps its own."""
    plain = logging.LogRecord("ring.repair", logging.INFO, __file__, 1, "no copy", None, None)
    assert logs.TextFormatter().format(plain).endswith("ring.repair no copy node=1c2d3e4f epoch=7")
    parsed = json.loads(logs.JsonFormatter().format(plain))
    assert (parsed["node"], parsed["epoch"]) == ("1c2d3e4f", 7)
    settled = json.loads(logs.JsonFormatter().format(record("settled", epoch=6)))
    assert (settled["node"], settled["epoch"]) == ("1c2d3e4f", 6)


def test_ids_in_a_sentence_are_fields_for_programs() -> None:
    """Whoever looks for what happened to a chunk, or with a node, need not parse words."""
    sentence = f"node {NODE_ID} has no copy of chunk {CHUNK_ID} yet: it is down"
    parsed = json.loads(logs.JsonFormatter().format(record(sentence)))
    assert parsed["chunks"] == [CHUNK_ID]
    assert parsed["nodes"] == [NODE_ID]


def test_what_comes_again_and_again_is_counted_rather_than_written() -> None:
    """A failure that repeats fills no disk; the next line of its kind says how many it follows."""
    now = [0.0]
    restraint = logs.Restraint(debug=False, clock=lambda: now[0])

    def passed(name: str, sentence: str, level: int = logging.WARNING) -> logging.LogRecord | None:
        made = logging.LogRecord(name, level, __file__, 1, sentence, None, None)
        return made if restraint.filter(made) else None

    own = [passed("ring.replicator", "node %s has no copy") for _ in range(500)]
    assert sum(each is not None for each in own) == logs.REPEATS_MAX
    assert passed("ring.replicator", "another sentence") is not None
    library = [passed("aiohttp.server", f"error {number}") for number in range(500)]
    assert sum(each is not None for each in library) == logs.LIBRARY_LINES_MAX
    now[0] = logs.REPEAT_WINDOW_SECONDS
    again = passed("ring.replicator", "node %s has no copy")
    assert again is not None
    assert "left_out=400" in logs.TextFormatter().format(again)
    for number in range(3 * logs.KINDS_MAX):
        passed("ring.replicator", f"kind {number}")
    assert len(restraint._counts) == logs.KINDS_MAX


def test_libraries_speak_from_warnings_on() -> None:
    """What a library tells of its daily life is for those who debug it."""
    chatter = logging.LogRecord("pysyncobj", logging.INFO, __file__, 1, "tick", None, None)
    assert not logs.Restraint(debug=False).filter(chatter)
    assert logs.Restraint(debug=True).filter(chatter)
    own = logging.LogRecord("metadata_raft.group", logging.INFO, __file__, 1, "x", None, None)
    assert logs.Restraint(debug=False).filter(own)
