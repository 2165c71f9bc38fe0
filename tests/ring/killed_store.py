"""A store in a process that is killed again and again: the program behind test_store_crash_kill.

`python -m tests.ring.killed_store DIRECTORY KILLS SEED` forks a child that recovers the store,
checks it, and works on it; kills it at a random moment; and so on. Children tell what was
acknowledged through a pipe. Prints a JSON object of counts; exits 1 with a sentence if something
that was acknowledged was lost or wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from ring.buffers import BufferPool
from ring.chunk_store import DiskChunkStore
from ring.codec import encode
from ring.errors import ChunkNotFoundError
from ring.filesystem import RealFileSystem
from ring.store_changes import StoreLimits

READY, ADDED, DELETING, DELETED, WRONG = b"r", b"a", b"d", b"-", b"x"
MESSAGE = struct.Struct("<cQ")
TASKS = 6
CHECKED_AT_START = 40
LIFE_SECONDS_MAX = 10.0
"""A child that hangs shows in what is missing."""

SIZES = (100, 4096, 20_000, 70_000, 300_000)


class Life(NamedTuple):
    """How long a child lives: until it has said so much, and a moment more.

    What it says counts its work, so that a busy machine makes no child idle; none at all kills it
    while it recovers.
    """

    messages: int
    seconds_more: float


@dataclass
class Ledger:
    """What the children have said; chunks go by number, their contents follow from it."""

    here: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    starts: int = 0
    wrong: list[int] = field(default_factory=list)

    def note(self, kind: bytes, number: int) -> None:
        if kind == READY:
            self.starts += 1
        elif kind == ADDED:
            self.here.add(number)
        elif kind == DELETING:
            self.here.discard(number)
        elif kind == DELETED:
            self.gone.add(number)
        else:
            self.wrong.append(number)


def content(number: int) -> bytes:
    chance = random.Random(number)
    return chance.randbytes(chance.choice(SIZES))


def make_store(directory: str, workers: ThreadPoolExecutor) -> DiskChunkStore:
    return DiskChunkStore(
        filesystem=RealFileSystem(),
        directory=os.path.join(directory, "volumes"),
        index_path=os.path.join(directory, "index.sqlite"),
        workers=workers,
        pool=BufferPool(32 * 1024 * 1024),
        limits=StoreLimits(volume_size=16 * 1024 * 1024, reserve=0),
    )


async def check(store: DiskChunkStore, here: list[int], gone: list[int]) -> list[int]:
    """Return the numbers of those that are not as they were acknowledged."""
    wrong = []
    for number in here:
        data = content(number)
        try:
            found = await store.get(blake3(data).digest())
            if bytes(found.data) != data:
                wrong.append(number)
        except Exception:
            wrong.append(number)
    for number in gone:
        try:
            await store.get(blake3(content(number)).digest())
            wrong.append(number)
        except ChunkNotFoundError:
            pass
    return wrong


async def live(directory: str, ledger: Ledger, seed: int, base: int, pipe: int) -> None:
    """One child: recover, check, and work until killed."""
    chance = random.Random(seed)
    numbers = iter(range(base, base + 1_000_000))
    mine = sorted(ledger.here)

    def tell(kind: bytes, number: int = 0) -> None:
        os.write(pipe, MESSAGE.pack(kind, number))

    async def work() -> None:
        while True:
            if mine and chance.random() < 0.3:
                number = mine.pop(chance.randrange(len(mine)))
                tell(DELETING, number)
                await store.delete(blake3(content(number)).digest(), unless=lambda row: False)
                tell(DELETED, number)
            else:
                number = next(numbers)
                encoded = encode(memoryview(content(number)))
                assert encoded.checksums is not None
                await store.put(encoded.checksums.chunk_id, encoded, touch=1)
                tell(ADDED, number)
                mine.append(number)

    store = make_store(directory, ThreadPoolExecutor(2))
    await store.start()
    tell(READY)
    store.set_touch_floor(0)
    sample = chance.sample(mine, min(len(mine), CHECKED_AT_START))
    for number in await check(store, sample, sorted(ledger.gone)[-CHECKED_AT_START:]):
        tell(WRONG, number)
    await asyncio.gather(*(work() for _ in range(TASKS)))


def kill_once(directory: str, ledger: Ledger, seed: int, base: int, life: Life) -> None:
    """Fork a child, let it live for a while, kill it, and note what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(live(directory, ledger, seed, base, writing))
        finally:
            os.write(writing, MESSAGE.pack(WRONG, 0))
            os._exit(1)
    os.close(writing)
    said = b""
    deadline = time.monotonic() + LIFE_SECONDS_MAX
    while len(said) < life.messages * MESSAGE.size and time.monotonic() < deadline:
        if select.select([reading], [], [], 0.1)[0]:
            said += os.read(reading, 1 << 20)
    time.sleep(life.seconds_more)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reading, 1 << 20):
        said += piece
    os.close(reading)
    for kind, number in MESSAGE.iter_unpack(said):
        ledger.note(kind, number)


async def check_all(directory: str, ledger: Ledger) -> list[int]:
    with ThreadPoolExecutor(2) as workers:
        store = make_store(directory, workers)
        await store.start()
        wrong = await check(store, sorted(ledger.here), sorted(ledger.gone))
        await store.close()
    return wrong


def main() -> None:
    directory, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    ledger = Ledger()
    for number in range(kills):
        life = Life(chance.choice((0, 1, 10, 30, 60)), chance.uniform(0, 0.03))
        kill_once(directory, ledger, chance.randrange(1 << 30), number * 1_000_000, life)
    ledger.wrong += asyncio.run(check_all(directory, ledger))
    counts = {"starts": ledger.starts, "here": len(ledger.here), "gone": len(ledger.gone)}
    print(json.dumps(counts))
    if ledger.wrong:
        sys.exit(f"lost, back or wrong: {ledger.wrong[:10]}")


if __name__ == "__main__":
    main()
