"""What a disk holds, and what it was told but has not been made to keep.

The model below `tests/fakes/filesystem.py`: files and directories know their durable state and the
list of changes since; `settle` decides by a seeded choice what a power cut leaves of those.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

SECTOR_SIZE = 512
"""What a disk writes as a whole (the least any sold disk promises)."""

BLOCK_SIZE = 4096
"""Unit of space, of holes and of direct access."""


@dataclass(frozen=True)
class Change:
    """An unsynced change of a file's contents. `lost`: a failed sync covered it."""

    apply: Callable[[Image], None]
    torn: Callable[[Image, random.Random], None] | None = None
    lost: bool = False


@dataclass
class Image:
    """Contents of a file, and which of its blocks take space."""

    content: bytearray = field(default_factory=bytearray)
    blocks: set[int] = field(default_factory=set)

    def copy(self) -> Image:
        return Image(bytearray(self.content), set(self.blocks))

    def write(self, offset: int, data: bytes) -> None:
        self.extend(offset + len(data))
        self.content[offset : offset + len(data)] = data
        self.blocks.update(blocks_of(offset, len(data)))

    def write_torn(self, offset: int, data: bytes, chance: random.Random) -> None:
        """Write a random choice of the sectors that `data` touches; the size may grow or not."""
        if chance.random() < 0.5:
            self.extend(offset + len(data))
        position = 0
        while position < len(data):
            length = min(len(data) - position, SECTOR_SIZE - (offset + position) % SECTOR_SIZE)
            if chance.random() < 0.5:
                self.write(offset + position, data[position : position + length])
            position += length

    def extend(self, size: int) -> None:
        if size > len(self.content):
            self.content.extend(bytes(size - len(self.content)))

    def truncate(self, size: int) -> None:
        del self.content[size:]
        self.extend(size)
        self.blocks = {block for block in self.blocks if block * BLOCK_SIZE < size}

    def allocate(self, offset: int, length: int) -> None:
        self.extend(offset + length)
        self.blocks.update(blocks_of(offset, length))

    def punch(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.content))
        if end > offset:
            self.content[offset:end] = bytes(end - offset)
        first, last = -(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE
        self.blocks.difference_update(range(first, last))


def blocks_of(offset: int, length: int) -> range:
    return range(offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE))


class Inode:
    """A file: what is seen now, what is durable, and the changes between the two."""

    def __init__(self, durable: Image | None = None) -> None:
        self.durable = durable if durable is not None else Image()
        self.current = self.durable.copy()
        self.pending: list[Change] = []

    def change(self, change: Change) -> None:
        change.apply(self.current)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            if not change.lost:
                change.apply(self.durable)
        self.pending = [change for change in self.pending if change.lost]

    def fail_sync(self) -> None:
        self.pending = [Change(change.apply, change.torn, lost=True) for change in self.pending]

    def settle(self, chance: random.Random) -> Inode:
        """The file as a crash may leave it. One crash in three keeps all or nothing, so that the
        plain cases are seen as often as the mixed ones."""
        found = self.durable.copy()
        mood = chance.choice(("mixed", "mixed", "mixed", "mixed", "nothing", "all"))
        for change in self.pending:
            fate = chance.choice(("drop", "keep", "tear")) if mood == "mixed" else mood
            if fate == "tear" and change.torn is not None:
                change.torn(found, chance)
            elif fate in ("keep", "all"):
                change.apply(found)
        return Inode(found)


class Directory:
    """Names; `pending` holds the unsynced changes in order."""

    def __init__(self, entries: dict[str, Inode | Directory] | None = None) -> None:
        self.durable = dict(entries or {})
        self.current = dict(self.durable)
        self.pending: list[Callable[[dict[str, Inode | Directory]], None]] = []

    def change(self, change: Callable[[dict[str, Inode | Directory]], None]) -> None:
        change(self.current)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable = dict(self.current)
        self.pending.clear()

    def settle(self, chance: random.Random) -> Directory:
        found = dict(self.durable)
        for change in self.pending[: chance.randint(0, len(self.pending))]:
            change(found)
        return Directory({name: node.settle(chance) for name, node in sorted(found.items())})
