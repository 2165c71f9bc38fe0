"""Rereading a store's records as the disk has them, in the order in which they lie there.

What is found bad is quarantined, as a bad read would do it, and so reported for healing. Beside the
records the files themselves are looked at: a volume or an index that was removed under a running
store can be read and written as if nothing had happened, until the process ends and all is gone.
When and how fast is decided in `ring/scrub.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ring.chunk_index import ChunkIndex, IndexRow
from ring.chunk_reader import ChunkReader
from ring.errors import StoreFailedError
from ring.filesystem import FileSystem
from ring.record import RECORD_SIZE_MAX
from ring.store_writer import StoreWriter
from ring.volume import Volume

SPAN_BYTES_LIMIT = RECORD_SIZE_MAX
"""Read at once: the largest record, or as many small ones."""

SPAN_ROWS_LIMIT = 256
"""Records verified in one unit of work: some 10 ms of a worker thread if they are small."""

GAP_LIMIT = 64 * 1024
"""A hole longer than this ends a span: to read it would only cost time."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """A place in the volumes: all records before it have been verified."""

    volume: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """What one unit of work has read."""

    position: Position
    size_bytes: int
    """Of the records, headers and padding included."""
    damaged: int
    """Records that were quarantined now."""


class StoreScrub:
    """The scrub's view of one open store. Belongs to the store's event loop.

    `quarantine` marks a copy, and says whether it still was the copy of its chunk.
    """

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        index: ChunkIndex,
        volumes: Mapping[int, Volume],
        reader: ChunkReader,
        writer: StoreWriter,
        in_worker: Callable[[Callable[[], Any]], Awaitable[Any]],
        quarantine: Callable[[IndexRow, str], Awaitable[bool]],
        on_damage: Callable[[bytes], None],
    ) -> None:
        self._filesystem = filesystem
        self._index = index
        self._volumes = volumes
        self._reader = reader
        self._writer = writer
        self._in_worker = in_worker
        self._quarantine = quarantine
        self._on_damage = on_damage

    async def end(self) -> Position:
        """Where the records end now. Errors as `StoreWriter.update_index`."""
        await self._writer.update_index()
        last: Position = await self._in_worker(self._last_position)
        return last

    async def verify(self, position: Position, end: Position) -> Verified | None:
        """Reread the next records from `position` on; None where none is left before `end`.

        Raises what `StoreWriter.quarantine` does; then nothing of it counts as read.
        """
        rows: list[IndexRow] = await self._in_worker(lambda: self._span(position, end))
        if not rows:
            return None
        suspects: list[tuple[IndexRow, str]] = await self._in_worker(lambda: self._unsound(rows))
        damaged = 0
        for row, detail in suspects:
            # It may have been deleted meanwhile, or stored anew: the writer thread looks.
            damaged += await self._quarantine(row, detail)
        last = rows[-1]
        return Verified(
            position=Position(last.volume, last.offset + last.record_length),
            size_bytes=sum(row.record_length for row in rows),
            damaged=damaged,
        )

    async def check_files(self) -> int:
        """Look for files removed, replaced or cut under the store; returns the chunks lost.

        Where it is the index, the store takes no more changes from here on: its next start builds a
        new one. Errors as `StoreWriter.inspect`.
        """
        in_place: bool = await self._in_worker(self._index.is_in_place)
        if not in_place:
            self._writer.fail(
                StoreFailedError(
                    f"the chunk index {self._index.path} was removed or replaced while the node"
                    " was running; the next start builds it anew from the volumes"
                )
            )
            return 0
        lost = 0
        suspects: list[int] = await self._in_worker(self._changed_volumes)
        for number in suspects:
            chunk_ids = await self._writer.inspect(number)
            if chunk_ids:
                _log.error(
                    "volume %d was removed or cut under the node: %d chunks of it are lost here",
                    number,
                    len(chunk_ids),
                )
            for chunk_id in chunk_ids:
                self._on_damage(chunk_id)
            lost += len(chunk_ids)
        return lost

    # --- worker threads ------------------------------------------------------------------------

    def _last_position(self) -> Position:
        positions = self._index.volumes()
        if not positions:
            return Position()
        return Position(positions[-1].number, positions[-1].indexed_up_to)

    def _span(self, position: Position, end: Position) -> list[IndexRow]:
        """The next records that are read together; all are healthy as far as is known."""
        span: list[IndexRow] = []
        for row in self._index.rows_in_order(*position, SPAN_ROWS_LIMIT):
            if (row.volume, row.offset) >= end:
                break
            if span:
                last_end = span[-1].offset + span[-1].record_length
                if (
                    row.volume != span[0].volume
                    or row.offset - last_end > GAP_LIMIT
                    or row.offset + row.record_length - span[0].offset > SPAN_BYTES_LIMIT
                ):
                    break
            span.append(row)
        return span

    def _unsound(self, rows: list[IndexRow]) -> list[tuple[IndexRow, str]]:
        healthy = [row for row in rows if not row.quarantined]
        return self._reader.unsound(healthy) if healthy else []

    def _changed_volumes(self) -> list[int]:
        ends = {position.number: position.indexed_up_to for position in self._index.volumes()}
        return [
            volume.number
            for volume in list(self._volumes.values())
            if not volume.is_in_place(self._filesystem)
            or volume.size() < ends.get(volume.number, 0)
        ]
