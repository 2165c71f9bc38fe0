"""What every `ChunkStore` promises. A test class inherits it and says how to make a store."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from blake3 import blake3

from ring.codec import encode
from ring.errors import (
    ChunkDamagedError,
    ChunkNotFoundError,
    ChunkRejectedError,
    StoreFullError,
)
from ring.interfaces import (
    CHUNK_SIZE_LIMIT,
    ChunkRow,
    ChunkStore,
    Codec,
    Encoded,
    PartitionDigest,
    PutOutcome,
)
from ring.members import PARTITION_COUNT

SIZES = [1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 300_000, 1_048_577]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that don't compress."""
    return random.Random(size * 1000 + seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    """Bytes that do."""
    word = f"holdfast {seed} holds fast what it is given; ".encode()
    return (word * (size // len(word) + 1))[:size]


def raw(data: bytes | bytearray) -> Encoded:
    """A chunk as a peer sends it: uncompressed, its hash not checked by anybody here."""
    return Encoded(payload=memoryview(data), codec=Codec.RAW, plain_length=len(data))


def chunk_id_of(data: bytes) -> bytes:
    return blake3(data).digest()


async def put(store: ChunkStore, data: bytes, *, touch: int = 1) -> bytes:
    chunk_id = chunk_id_of(data)
    await store.put(chunk_id, raw(data), touch=touch)
    return chunk_id


async def content(store: ChunkStore, chunk_id: bytes) -> bytes:
    return bytes((await store.get(chunk_id)).data)


def never(row: ChunkRow) -> bool:
    """Nothing speaks against the deletion."""
    return False


class ChunkStoreConformance(abc.ABC):
    """The suite. Stores are made with `quota_bytes` for payloads, and damaged on demand."""

    @abc.abstractmethod
    def make(
        self, *, quota_bytes: int | None = None
    ) -> contextlib.AbstractAsyncContextManager[ChunkStore]:
        """A running, empty store, without a touch floor."""

    @abc.abstractmethod
    def damage(self, store: ChunkStore, chunk_id: bytes) -> None:
        """Flip a bit in the stored payload of a chunk."""

    @pytest.fixture
    async def store(self) -> AsyncIterator[ChunkStore]:
        async with self.make() as store:
            yield store

    @pytest.mark.parametrize("size", SIZES)
    async def test_put_then_get(self, store: ChunkStore, size: int) -> None:
        """A chunk of any size comes back as it was put, whole."""
        data = noise(size)
        assert await store.put(chunk_id_of(data), raw(data), touch=1) is PutOutcome.WRITTEN
        found = await store.get(chunk_id_of(data))
        assert (bytes(found.data), found.plain_length) == (data, size)

    @pytest.mark.parametrize("make_data", [noise, text])
    async def test_largest_chunk(
        self, store: ChunkStore, make_data: Callable[[int], bytes]
    ) -> None:
        """8 MiB are stored and read back in parts and whole, compressible or not."""
        data = make_data(CHUNK_SIZE_LIMIT)
        encoded = encode(memoryview(data))
        await store.put(chunk_id_of(data), encoded, touch=1)
        assert await content(store, chunk_id_of(data)) == data
        part = await store.get(chunk_id_of(data), start=5_000_000, end=5_000_100)
        assert bytes(part.data) == data[5_000_000:5_000_100]

    @pytest.mark.parametrize("make_data", [noise, text])
    async def test_ranges(self, store: ChunkStore, make_data: Callable[[int], bytes]) -> None:
        """Any range of a chunk is that range, cut at the chunk's end; empty ones are empty."""
        data = make_data(700_001)
        await store.put(chunk_id_of(data), encode(memoryview(data)), touch=1)
        ends = [0, 1, 65_535, 65_536, 65_537, 131_072, 350_000, 700_000, 700_001, 900_000]
        for start in ends:
            for end in [None, *(each for each in ends if each >= start)]:
                found = await store.get(chunk_id_of(data), start=start, end=end)
                assert bytes(found.data) == data[start:end]
                assert found.plain_length == len(data)

    async def test_impossible_range(self, store: ChunkStore) -> None:
        """A range that ends before it starts, or starts before 0, is the caller's mistake."""
        chunk_id = await put(store, noise(100))
        for start, end in ((5, 4), (-1, None)):
            with pytest.raises(ValueError, match="no range"):
                await store.get(chunk_id, start=start, end=end)

    async def test_absent(self, store: ChunkStore) -> None:
        """What was never put is not found, and neither touched nor deleted."""
        absent = chunk_id_of(b"absent")
        store.set_touch_floor(0)
        with pytest.raises(ChunkNotFoundError):
            await store.get(absent)
        with pytest.raises(ChunkNotFoundError):
            await store.get_encoded(absent)
        assert await store.stat([absent]) == [None]
        assert await store.touch([absent], touch=3) == [False]
        assert not await store.delete(absent, unless=never)

    @pytest.mark.parametrize("size", [10, 300_000])
    async def test_wrong_hash(self, store: ChunkStore, size: int) -> None:
        """A payload that is not the chunk it claims to be is refused, and nothing is stored."""
        claimed = chunk_id_of(noise(size))
        wrong = [
            raw(noise(size, seed=1)),
            Encoded(noise(size), Codec.RAW, size + 1),
            Encoded(noise(size), Codec.ZSTD, size + 1),
            encode(memoryview(noise(size, seed=1))),
            encode(memoryview(text(size))),
        ]
        for each in wrong:
            with pytest.raises(ChunkRejectedError):
                await store.put(claimed, each, touch=1)
        assert await store.stat([claimed]) == [None]

    async def test_impossible_lengths(self, store: ChunkStore) -> None:
        """A chunk has 1 byte to 8 MiB."""
        for data in (b"", bytes(CHUNK_SIZE_LIMIT + 1)):
            with pytest.raises(ChunkRejectedError):
                await store.put(chunk_id_of(data), raw(data), touch=1)

    async def test_second_put(self, store: ChunkStore) -> None:
        """A chunk that is there already is not written again, in whichever form it comes."""
        data = text(200_000)
        chunk_id = await put(store, data)
        again = await store.put(chunk_id, encode(memoryview(data)), touch=1)
        assert again is PutOutcome.EXISTED
        assert store.statistics().records_written == 1

    async def test_concurrent_puts_of_one_chunk(self, store: ChunkStore) -> None:
        """Of many puts of one chunk at once one writes, the others join it."""
        data = noise(5000)
        outcomes = await asyncio.gather(
            *(store.put(chunk_id_of(data), raw(data), touch=touch) for touch in range(20))
        )
        assert outcomes.count(PutOutcome.WRITTEN) == 1
        assert store.statistics().records_written == 1
        store.set_touch_floor(0)
        (stat,) = await store.stat([chunk_id_of(data)])
        assert stat is not None
        assert stat.touch == 19

    async def test_wrong_duplicate_in_flight(self, store: ChunkStore) -> None:
        """A duplicate joins a write in flight only after its own hash was verified."""
        data = noise(300_000)
        outcomes = await asyncio.gather(
            store.put(chunk_id_of(data), raw(data), touch=1),
            store.put(chunk_id_of(data), raw(noise(300_000, seed=1)), touch=1),
            return_exceptions=True,
        )
        assert outcomes[0] is PutOutcome.WRITTEN
        assert isinstance(outcomes[1], ChunkRejectedError)

    async def test_encoded_form(self, store: ChunkStore) -> None:
        """What one store gives out encoded another takes, and it is the same chunk."""
        async with self.make() as other:
            for data in (noise(10), text(10_000), noise(500_000), text(2_000_000)):
                chunk_id = chunk_id_of(data)
                await store.put(chunk_id, encode(memoryview(data)), touch=1)
                encoded = await store.get_encoded(chunk_id)
                assert encoded.plain_length == len(data)
                assert (encoded.codec is Codec.ZSTD) == (len(encoded.payload) < len(data))
                await other.put(chunk_id, encoded, touch=1)
                assert await content(other, chunk_id) == data

    async def test_stat(self, store: ChunkStore) -> None:
        """Lengths, codec and touch of chunks are told in the order of asking."""
        store.set_touch_floor(0)
        data = text(100_000)
        encoded = encode(memoryview(data))
        await store.put(chunk_id_of(data), encoded, touch=7)
        absent, stat = await store.stat([chunk_id_of(b"absent"), chunk_id_of(data)])
        assert absent is None
        assert stat is not None
        assert (stat.plain_length, stat.stored_length) == (100_000, len(encoded.payload))
        assert (stat.codec, stat.quarantined, stat.touch) == (Codec.ZSTD, False, 7)

    async def test_touch_is_the_maximum(self, store: ChunkStore) -> None:
        """A touch never goes down: neither by a touch, nor a put, nor the floor (D4)."""
        store.set_touch_floor(2)
        chunk_id = await put(store, noise(10), touch=5)

        async def touch() -> int | None:
            (stat,) = await store.stat([chunk_id])
            assert stat is not None
            return stat.touch

        assert await touch() == 5
        assert await store.touch([chunk_id], touch=3) == [True]
        assert await touch() == 5
        assert await store.touch([chunk_id], touch=8) == [True]
        assert await touch() == 8
        await put(store, noise(10), touch=6)
        assert await touch() == 8
        await put(store, noise(10), touch=9)
        assert await touch() == 9
        store.set_touch_floor(12)
        assert await touch() == 12
        store.set_touch_floor(4)
        assert await touch() == 12
        assert store.statistics().touch_floor == 12

    async def test_delete(self, store: ChunkStore) -> None:
        """A deleted chunk is gone, and can be put again."""
        store.set_touch_floor(0)
        chunk_id = await put(store, noise(10_000))
        assert await store.delete(chunk_id, unless=never)
        with pytest.raises(ChunkNotFoundError):
            await store.get(chunk_id)
        assert store.ids(b"", 10) == []
        assert store.statistics().chunks_deleted == 1
        assert not await store.delete(chunk_id, unless=never)
        await put(store, noise(10_000))
        assert await content(store, chunk_id) == noise(10_000)

    async def test_delete_asks(self, store: ChunkStore) -> None:
        """The callback sees the chunk's row with its touch, and can keep it."""
        store.set_touch_floor(3)
        chunk_id = await put(store, noise(10_000), touch=4)
        asked: list[ChunkRow] = []

        def keep(row: ChunkRow) -> bool:
            asked.append(row)
            return True

        assert not await store.delete(chunk_id, unless=keep)
        assert asked == [ChunkRow(chunk_id, 10_000, 10_000, False, 4)]
        assert await content(store, chunk_id) == noise(10_000)

    @pytest.mark.parametrize("how", ["confirm", "touch", "put"])
    async def test_confirmed_while_judged(self, store: ChunkStore, how: str) -> None:
        """Who is told that a chunk is here while its deletion is being judged can rely on it, also
        where that leaves the touch as it was (D4, D5)."""
        store.set_touch_floor(0)
        chunk_id = await put(store, noise(10_000), touch=4)
        asked, answered = threading.Event(), threading.Event()

        def agree(row: ChunkRow) -> bool:
            asked.set()
            assert answered.wait(60)
            return False

        deletion = asyncio.create_task(store.delete(chunk_id, unless=agree))
        try:
            assert await asyncio.to_thread(asked.wait, 60)
            match how:
                case "confirm":
                    assert await store.confirm([(chunk_id, 4)]) == [True]
                case "touch":
                    assert await store.touch([chunk_id], touch=0) == [True]
                case _:
                    outcome = await store.put(chunk_id, raw(noise(10_000)), touch=4)
                    assert outcome is PutOutcome.EXISTED
        finally:
            answered.set()
        assert not await deletion
        assert await content(store, chunk_id) == noise(10_000)
        # It was only that deletion: the next one takes place.
        assert await store.delete(chunk_id, unless=never)

    async def test_confirmations_have_touches_of_their_own(self, store: ChunkStore) -> None:
        """Each chunk's touch rises to its own number, and absent ones are told in their place."""
        store.set_touch_floor(0)
        first, second = await put(store, noise(10)), await put(store, noise(20), touch=7)
        absent = chunk_id_of(b"absent")
        flags = await store.confirm([(second, 5), (absent, 9), (first, 3)])
        assert flags == [True, False, True]
        stats = await store.stat([first, second])
        assert [stat.touch for stat in stats if stat is not None] == [3, 7]

    async def test_partition_counts(self, store: ChunkStore) -> None:
        """The healthy chunks of each partition are counted."""
        store.set_touch_floor(0)
        chunk_ids = [await put(store, noise(100, seed)) for seed in range(20)]
        await store.delete(chunk_ids.pop(), unless=never)
        await store.wait_indexed()
        expected = [0] * PARTITION_COUNT
        for chunk_id in chunk_ids:
            expected[int.from_bytes(chunk_id[:2], "big") >> 4] += 1
        assert store.partition_counts() == expected

    async def test_callback_that_fails(self, store: ChunkStore) -> None:
        """What the callback raises reaches who asked for the deletion; the chunk stays."""
        store.set_touch_floor(0)
        chunk_id = await put(store, noise(10))

        def fail(row: ChunkRow) -> bool:
            raise LookupError("no snapshot")

        with pytest.raises(LookupError, match="no snapshot"):
            await store.delete(chunk_id, unless=fail)
        assert await content(store, chunk_id) == noise(10)
        assert await store.delete(chunk_id, unless=never)

    async def test_nothing_is_deleted_without_a_floor(self, store: ChunkStore) -> None:
        """Before a floor was given no deletion is even considered, and no touch is told (D4)."""
        chunk_id = await put(store, noise(10))
        assert not await store.delete(chunk_id, unless=never)
        (stat,) = await store.stat([chunk_id])
        assert stat is not None
        assert stat.touch is None
        store.set_touch_floor(0)
        assert await store.delete(chunk_id, unless=never)

    async def test_ids_in_pages(self, store: ChunkStore) -> None:
        """Pages of ids are in order, without gap or repetition."""
        chunk_ids = sorted([await put(store, noise(100, seed)) for seed in range(25)])
        await store.wait_indexed()
        found: list[bytes] = []
        while page := store.ids(found[-1] if found else b"", 10):
            assert len(page) <= 10
            found += page
        assert found == chunk_ids

    async def test_partition_digests(self, store: ChunkStore) -> None:
        """Count and XOR of ids of each partition follow puts, deletions and damage."""
        store.set_touch_floor(0)
        chunk_ids = [await put(store, noise(100, seed)) for seed in range(12)]
        await store.delete(chunk_ids[0], unless=never)
        self.damage(store, chunk_ids[1])
        with pytest.raises(ChunkDamagedError):
            await store.get(chunk_ids[1])
        expected: dict[int, tuple[int, int]] = {}
        for chunk_id in chunk_ids[2:]:
            number = int.from_bytes(chunk_id, "big")
            count, digest = expected.get(number >> 244, (0, 0))
            expected[number >> 244] = (count + 1, digest ^ number)
        digests = store.partition_digests()
        assert len(digests) == PARTITION_COUNT
        for partition, found in enumerate(digests):
            count, digest = expected.get(partition, (0, 0))
            assert found == PartitionDigest(count, digest.to_bytes(32, "big"))

    async def test_partition_digests_follow_every_transition(self, store: ChunkStore) -> None:
        """After any series of puts, repeated puts, deletions, damage found and damage healed, the
        digests are what the ids amount to, and counting them anew finds nothing wrong."""
        store.set_touch_floor(0)
        chance = random.Random(11)
        known: dict[bytes, bytes] = {chunk_id_of(noise(60, n)): noise(60, n) for n in range(8)}
        for _ in range(60):
            chunk_id = chance.choice(sorted(known))
            match chance.choice(["put", "put", "delete", "damage"]):
                case "put":
                    await put(store, known[chunk_id])
                case "delete":
                    await store.delete(chunk_id, unless=never)
                case "damage" if chunk_id in store.ids(b"", 100):
                    self.damage(store, chunk_id)
                    with pytest.raises(ChunkDamagedError):
                        await store.get(chunk_id)
            if chance.random() < 0.5:
                continue
            await store.wait_indexed()
            expected = [(0, 0)] * PARTITION_COUNT
            for each in store.ids(b"", 100):
                number = int.from_bytes(each, "big")
                count, digest = expected[number >> 244]
                expected[number >> 244] = (count + 1, digest ^ number)
            assert store.partition_digests() == [
                PartitionDigest(count, digest.to_bytes(32, "big")) for count, digest in expected
            ]
        for chunk_id in known:
            assert not await store.recount(int.from_bytes(chunk_id, "big") >> 244)

    async def test_ids_of_a_range(self, store: ChunkStore) -> None:
        """Only ids between the bounds are told, which need not be ids themselves."""
        chunk_ids = sorted([await put(store, noise(100, seed)) for seed in range(12)])
        await store.wait_indexed()
        assert store.ids(chunk_ids[2], 10, below=chunk_ids[6]) == chunk_ids[3:6]
        assert store.ids(chunk_ids[2][:9], 2, below=chunk_ids[6][:9]) == chunk_ids[2:4]
        assert store.ids(chunk_ids[6], 10, below=chunk_ids[6]) == []

    @pytest.mark.parametrize("make_data", [noise, text])
    @pytest.mark.parametrize("size", [50_000, 1_000_000])
    async def test_damage(
        self, store: ChunkStore, make_data: Callable[[int], bytes], size: int
    ) -> None:
        """A damaged copy is never served, counts as missing, and a new put heals it."""
        data = make_data(size)
        chunk_id, encoded = chunk_id_of(data), encode(memoryview(data))
        await store.put(chunk_id, encoded, touch=1)
        self.damage(store, chunk_id)
        for _ in range(2):
            with pytest.raises(ChunkDamagedError):
                await store.get(chunk_id)
        with pytest.raises(ChunkDamagedError):
            await store.get_encoded(chunk_id)
        assert await store.touch([chunk_id], touch=5) == [False]
        assert store.ids(b"", 10) == []
        assert store.quarantined(10) == [chunk_id]
        assert store.quarantined(10, after=chunk_id) == []
        statistics = store.statistics()
        assert (statistics.chunks, statistics.quarantined) == (0, 1)
        assert statistics.damage_found == 1
        assert await store.put(chunk_id, encoded, touch=1) is PutOutcome.WRITTEN
        assert await content(store, chunk_id) == data
        await store.wait_indexed()
        statistics = store.statistics()
        assert (statistics.chunks, statistics.quarantined) == (1, 0)
        assert store.quarantined(10) == []

    @pytest.mark.parametrize("confirmed", [None, 6, 9])
    async def test_healing_keeps_the_touch(self, store: ChunkStore, confirmed: int | None) -> None:
        """Rule D4: what was acknowledged with a touch keeps it when the copy turns out bad and is
        replaced by an older one; also where a confirmation of that touch had nothing to raise."""
        store.set_touch_floor(0)
        data = noise(10_000)
        chunk_id, encoded = chunk_id_of(data), encode(memoryview(data))
        await store.put(chunk_id, encoded, touch=6)
        if confirmed is not None:
            assert await store.confirm([(chunk_id, confirmed)]) == [True]
        self.damage(store, chunk_id)
        with pytest.raises(ChunkDamagedError):
            await store.get(chunk_id)
        assert await store.put(chunk_id, encoded, touch=2) is PutOutcome.WRITTEN
        for _ in range(2):
            (stat,) = await store.stat([chunk_id])
            assert stat is not None
            assert stat.touch == (confirmed or 6)
            await store.wait_indexed()

    async def test_quarantined_can_be_deleted(self, store: ChunkStore) -> None:
        """A quarantined copy goes the same way as a healthy one, and the callback sees which."""
        store.set_touch_floor(0)
        chunk_id = await put(store, noise(10_000))
        self.damage(store, chunk_id)
        with pytest.raises(ChunkDamagedError):
            await store.get(chunk_id)
        seen: list[bool] = []

        def note(row: ChunkRow) -> bool:
            seen.append(row.quarantined)
            return False

        assert await store.delete(chunk_id, unless=note)
        assert seen == [True]
        assert store.statistics().allocated_bytes == 0

    async def test_quota(self) -> None:
        """Beyond its quota a store refuses chunks, and goes on with the rest."""
        async with self.make(quota_bytes=100_000) as store:
            store.set_touch_floor(0)
            chunk_id = await put(store, noise(60_000))
            with pytest.raises(StoreFullError):
                await put(store, noise(60_000, seed=1))
            assert store.statistics().writable
            assert await content(store, chunk_id) == noise(60_000)
            await store.delete(chunk_id, unless=never)
            await put(store, noise(60_000, seed=1))

    @pytest.mark.parametrize("turns", [0, 1, 2, 4, 8])
    async def test_cancelled_put(self, store: ChunkStore, turns: int) -> None:
        """A cancelled put returns only when its payload is not in use any more: it is reused."""
        data = bytearray(noise(1_000_000))
        chunk_id = chunk_id_of(bytes(data))
        task = asyncio.create_task(store.put(chunk_id, raw(data), touch=1))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        data[:] = bytes(len(data))
        (stat,) = await store.stat([chunk_id])
        if stat is not None:
            assert await content(store, chunk_id) == noise(1_000_000)

    async def test_statistics(self, store: ChunkStore) -> None:
        """Chunks and bytes are counted as they come and go."""
        store.set_touch_floor(0)
        first, second = noise(10_000), text(10_000)
        await store.put(chunk_id_of(first), encode(memoryview(first)), touch=1)
        encoded = encode(memoryview(second))
        await store.put(chunk_id_of(second), encoded, touch=1)
        await store.wait_indexed()
        found = store.statistics()
        assert (found.chunks, found.plain_bytes) == (2, 20_000)
        assert found.stored_bytes == 10_000 + len(encoded.payload)
        assert found.allocated_bytes >= found.stored_bytes
        assert found.writable
        await store.delete(chunk_id_of(first), unless=never)
        found = store.statistics()
        assert (found.chunks, found.plain_bytes) == (1, 10_000)
