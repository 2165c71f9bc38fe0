"""A node: the one place where ring, metadata and gateway are put together, and their life cycle.

Started in the order in which they need each other, stopped in the opposite one. Whatever makes it
unsafe to go on (a failed write, damaged metadata, being removed, a restored disk) ends up in
`_Fate`, which `run` waits on besides the stop signal; the process then ends with that sentence.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging

from node.errors import NodeError

logger = logging.getLogger(__name__)

SOFTWARE_VERSION = importlib.metadata.version("holdfast")

WORKER_THREADS = 4
"""Hashing, compression, volume reads, listings: more than the cores of a small machine, because
half of them wait for a disk; few, because each takes its turn at the interpreter."""

_ANNOUNCE_PAUSE_SECONDS = 0.5
_NO_QUORUM_LOG_SECONDS = 10.0


class Fate:
    """The first reason to end; `reason` is set once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason: NodeError | None = None

    def decide(self, reason: NodeError) -> None:
        if self.reason is None:
            self.reason = reason
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
