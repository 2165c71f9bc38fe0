"""The index: rows and what is counted along with them change together, and survive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ring.chunk_index import (
    ChunkIndex,
    Extent,
    IndexChange,
    IndexRow,
    Transition,
    VolumePosition,
)
from ring.errors import IndexDamagedError
from ring.interfaces import Codec
from ring.members import partition_of
from ring.touches import Touches


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


@pytest.fixture
def index(path: str) -> Iterator[ChunkIndex]:
    index = ChunkIndex(path)
    yield index
    index.close()


def row(number: int, *, quarantined: bool = False) -> IndexRow:
    return IndexRow(
        chunk_id=random.Random(number).randbytes(32),
        volume=1,
        offset=8192 + number * 4096,
        payload_start=128,
        payload_length=1000 + number,
        plain_length=2000 + number,
        codec=Codec.ZSTD,
        touch=5,
        quarantined=quarantined,
    )


def add(index: ChunkIndex, *rows: IndexRow) -> None:
    index.apply(IndexChange(transitions=[Transition(None, each) for each in rows]))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 200])
def test_rows(index: ChunkIndex, count: int) -> None:
    """Any number of rows is found again, one by one and together."""
    rows = [row(number) for number in range(count)]
    add(index, *rows)
    found = index.find([each.chunk_id for each in rows] + [bytes(32)])
    assert found == {each.chunk_id: each for each in rows}
    assert index.ids(b"", count + 1) == sorted(found)


def test_reopened(path: str) -> None:
    """Rows, totals, digests, positions and extents are there after a new start."""
    index = ChunkIndex(path)
    add(index, row(1), row(2, quarantined=True))
    position = VolumePosition(1, b"k" * 32, 99_999, sealed=True)
    extent = Extent(1, 4096, 8192, bytes(32))
    index.apply(IndexChange(volumes=[position], to_punch=[extent]), durable=True)
    totals, digests = index.totals(), index.partition_digests()
    index.close()
    again = ChunkIndex(path)
    assert again.totals() == totals
    assert again.partition_digests() == digests
    assert again.volumes() == [position]
    assert again.to_punch() == [extent]
    assert again.find([row(1).chunk_id])[row(1).chunk_id] == row(1)
    assert again.quarantined(10) == [row(2).chunk_id]
    again.apply(IndexChange(punched=[extent]))
    assert again.to_punch() == []
    again.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["put", "drop", "mark"])), max_size=40)
)
def test_counts(steps: list[tuple[int, str]]) -> None:
    """After any changes, in batches or one by one, the counts are what the rows amount to."""
    index = ChunkIndex(":memory:")
    model: dict[bytes, IndexRow] = {}
    for number, step in steps:
        chunk_id = row(number).chunk_id
        before = model.get(chunk_id)
        after = None if step == "drop" else row(number, quarantined=step == "mark")
        index.apply(IndexChange(transitions=[Transition(before, after)]))
        if after is None:
            model.pop(chunk_id, None)
        else:
            model[chunk_id] = after
    healthy = [each for each in model.values() if not each.quarantined]
    totals = index.totals()
    assert totals.chunks == len(healthy)
    assert totals.quarantined == len(model) - len(healthy)
    assert totals.plain_bytes == sum(each.plain_length for each in healthy)
    assert totals.stored_bytes == sum(each.payload_length for each in healthy)
    assert totals.allocated_bytes == sum(each.record_length for each in model.values())
    for number, digest in enumerate(index.partition_digests()):
        members = [each for each in healthy if partition_of(each.chunk_id) == number]
        mixed = 0
        for each in members:
            mixed ^= int.from_bytes(each.chunk_id, "big")
        assert (digest.count, digest.digest) == (len(members), mixed.to_bytes(32, "big"))
    index.close()


def test_lost_rows(index: ChunkIndex) -> None:
    """The healthy rows beyond a volume's end are told."""
    add(index, row(1), row(5), row(9, quarantined=True))
    assert index.rows_beyond(1, 8192 + 5 * 4096) == [row(5)]
    assert sorted(index.rows_beyond(1, 0)) == sorted([row(1), row(5)])
    assert index.rows_beyond(2, 0) == []


@pytest.mark.parametrize(("position", "length"), [(0, 16), (20, 64), (4096, 4096), (8192, 4096)])
def test_damaged(path: str, position: int, length: int) -> None:
    """A file that is no sound index is refused, so that a new one is built."""
    index = ChunkIndex(path)
    add(index, *(row(number) for number in range(200)))
    index.close()
    data = bytearray(Path(path).read_bytes())
    data[position : position + length] = b"\xff" * length
    Path(path).write_bytes(data)
    with pytest.raises(IndexDamagedError):
        ChunkIndex(path)


def test_failed_change_changes_nothing(index: ChunkIndex) -> None:
    """What can't be committed leaves rows and counts as they were."""
    add(index, row(1))
    before = index.totals()
    index._writer.execute("DROP TABLE to_punch")
    with pytest.raises(IndexDamagedError):
        index.apply(IndexChange(transitions=[Transition(row(1), None)], to_punch=[row(1).extent()]))
    assert index.totals() == before
    assert index.find([row(1).chunk_id])


def test_partition() -> None:
    """A partition is the leading 12 bits of the id."""
    assert partition_of(bytes.fromhex("abcdef") + bytes(29)) == 0xABC
    assert partition_of(b"\xff" * 32) == 4095
    assert partition_of(bytes(32)) == 0


def test_touches_are_bounded() -> None:
    """However many chunks are touched, memory is bounded, and no touch is ever told too low."""
    touches = Touches(limit=100)
    touches.raise_floor(0)
    chance = random.Random(1)
    expected: dict[bytes, int] = {}
    for step in range(5000):
        chunk_id = chance.randbytes(2).ljust(32)
        touch = step // 500 + chance.randint(0, 2)
        touches.raise_to(chunk_id, touch)
        expected[chunk_id] = max(expected.get(chunk_id, 0), touch)
        assert len(touches._raised) <= 100
    for chunk_id, touch in expected.items():
        found = touches.of(chunk_id, 0)
        assert found is not None
        assert found >= touch


def test_forgotten_touches_delay_as_little_as_possible() -> None:
    """Making room for touches of several generations only forgets what is collectable anyway."""
    touches = Touches(limit=10)
    touches.raise_floor(0)
    for number in range(9):
        touches.raise_to(bytes([number]) * 32, 3)
    touches.raise_to(b"x" * 32, 9)
    touches.raise_to(b"y" * 32, 9)
    assert touches.floor == 7
    assert touches.of(b"x" * 32, 0) == 9
