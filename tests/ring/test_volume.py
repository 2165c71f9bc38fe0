"""Volumes on the real file system and the fake one: appending, scanning, damage, forgery."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from ring.codec import checksums
from ring.errors import RecordError
from ring.filesystem import Buffer, FileSystem, RealFileSystem, can_punch_holes
from ring.interfaces import CHUNK_SIZE_LIMIT, Codec
from ring.record import (
    ALIGNMENT,
    FIRST_RECORD_OFFSET,
    RecordHeader,
    encode_header,
    payload_start,
)
from ring.volume import (
    AppendScratch,
    DamagedRegion,
    Volume,
    discard_unborn,
    volume_numbers,
)
from tests.fakes.filesystem import FakeFileSystem


@pytest.fixture(params=["real", "fake"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FileSystem, str]:
    if request.param == "real":
        return RealFileSystem(), str(tmp_path)
    disk = FakeFileSystem()
    disk.make_directory("/volumes")
    return disk, "/volumes"


def lay_out(payloads: list[Buffer], *, start: int = FIRST_RECORD_OFFSET) -> list[RecordHeader]:
    headers: list[RecordHeader] = []
    offset = start
    for payload in payloads:
        found = checksums(payload)
        header = RecordHeader(
            volume=1,
            offset=offset,
            synced_up_to=start,
            chunk_id=found.chunk_id,
            codec=Codec.RAW,
            payload_start=payload_start(len(payload), len(payload)),
            payload_length=len(payload),
            plain_length=len(payload),
            block_checksums=found.blocks,
        )
        headers.append(header)
        offset = header.end
    return headers


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def aligned(data: bytes) -> memoryview:
    view = memoryview(mmap.mmap(-1, CHUNK_SIZE_LIMIT))[: len(data)]
    view[:] = data
    return view


def filled(
    place: tuple[FileSystem, str], payloads: list[Buffer]
) -> tuple[Volume, list[RecordHeader]]:
    volume = Volume.create(*place, 1)
    headers = lay_out(payloads)
    volume.append(headers, payloads, AppendScratch())
    volume.sync()
    return volume, headers


def test_append_and_read(place: tuple[FileSystem, str]) -> None:
    """Records of all sizes, from aligned memory or not, are read back by every way of reading."""
    sizes = [1, 5000, 262_143, 262_144, 262_145, 10, 1_000_000, CHUNK_SIZE_LIMIT, 70_000]
    data = [noise(size) for size in sizes]
    payloads: list[Buffer] = [
        aligned(each) if number % 2 else each for number, each in enumerate(data)
    ]
    volume, headers = filled(place, payloads)
    target = memoryview(mmap.mmap(-1, CHUNK_SIZE_LIMIT))
    assert list(volume.scan(FIRST_RECORD_OFFSET)) == headers
    for header, expected in zip(headers, data, strict=True):
        assert volume.read_header(header.offset) == header
        assert volume.read_header(header.offset, from_disk=True) == header
        start, length = header.offset + header.payload_start, header.payload_length
        assert volume.read(start, length) == expected
        assert volume.read_from_disk(start, length) == expected
        assert volume.read_into(start, length, target) == length
        assert target[:length] == expected
    assert volume.size() == headers[-1].end
    volume.close()


def test_small_records_go_out_in_one_write() -> None:
    """Neighbouring small records are one write, however many they are."""
    disk = FakeFileSystem()
    disk.make_directory("/volumes")
    volume = Volume.create(disk, "/volumes", 1)
    before = len(disk.log)
    payloads: list[Buffer] = [noise(size) for size in (100, 5000, 300_000, 20, 30)]
    volume.append(lay_out(payloads), payloads, AppendScratch())
    assert [operation for operation, _ in disk.log[before:]] == ["write"] * 3


def test_reopened(place: tuple[FileSystem, str]) -> None:
    """A volume opens with its own key, or with the known one where its header is damaged."""
    volume, headers = filled(place, [noise(100)])
    volume.close()
    assert volume_numbers(*place) == [1]
    again = Volume.open(*place, 1, known_key=None)
    assert again.read_header(headers[0].offset) == headers[0]
    again.close()
    file = place[0].open(volume.path)
    file.write_at(0, bytes(FIRST_RECORD_OFFSET))
    file.close()
    with pytest.raises(RecordError):
        Volume.open(*place, 1, known_key=None)
    again = Volume.open(*place, 1, known_key=volume.key)
    assert again.read_header(headers[0].offset) == headers[0]
    again.close()


def test_renamed_volume(place: tuple[FileSystem, str]) -> None:
    """A volume under another's number is refused."""
    volume, _ = filled(place, [noise(100)])
    volume.close()
    place[0].replace(volume.path, volume.path.replace("0001.", "0002."))
    with pytest.raises(RecordError, match="says it is volume 1"):
        Volume.open(*place, 2, known_key=None)


def test_never_over_another(place: tuple[FileSystem, str]) -> None:
    """A new volume never takes the place of one that is there."""
    volume, _ = filled(place, [noise(100)])
    with pytest.raises(FileExistsError):
        Volume.create(*place, 1)
    volume.close()


def test_scan_passes_holes(place: tuple[FileSystem, str]) -> None:
    """Deleted records leave holes, which a scan passes over without calling them damage."""
    volume, headers = filled(place, [noise(size) for size in (9000, 3_000_000, 100, 50_000)])
    for header in headers[1:3]:
        volume.punch(header.offset, header.record_length)
    volume.sync()
    assert list(volume.scan(FIRST_RECORD_OFFSET)) == [headers[0], headers[3]]
    volume.close()


def test_scan_resyncs_after_damage(place: tuple[FileSystem, str]) -> None:
    """A record whose header is damaged is told as a region; the ones behind it are found (D9)."""
    volume, headers = filled(place, [noise(size) for size in (9000, 30_000, 100, 50_000)])
    file = place[0].open(volume.path)
    file.write_at(headers[1].offset + 50, b"\xff")
    file.close()
    found = list(volume.scan(FIRST_RECORD_OFFSET))
    region = DamagedRegion(headers[1].offset, headers[1].record_length)
    assert found == [headers[0], region, headers[2], headers[3]]
    volume.close()


def test_forged_records(place: tuple[FileSystem, str]) -> None:
    """Contents that look like records, even copied from this very volume, are never taken for
    records, though the record around them is destroyed (D8)."""
    volume = Volume.create(*place, 1)
    (genuine,) = lay_out([noise(200)])
    stolen = encode_header(genuine, volume.key)
    forged = b""
    for block in range(1, 12):
        # Where the copy claims to lie is right as well; only the key can't be known.
        offset = FIRST_RECORD_OFFSET + block * ALIGNMENT
        fake = lay_out([noise(300)], start=offset)[0]
        copy = stolen if block % 2 else encode_header(fake, bytes(32))
        forged += copy.ljust(ALIGNMENT, b"\0")
    payloads: list[Buffer] = [forged, noise(77)]
    headers = lay_out(payloads)
    # Let the forged blocks fall onto the alignment, where a scan would look for headers.
    shift = ALIGNMENT - headers[0].payload_start
    payloads[0] = bytes(shift) + forged
    headers = lay_out(payloads)
    volume.append(headers, payloads, AppendScratch())
    volume.sync()
    assert list(volume.scan(FIRST_RECORD_OFFSET)) == headers
    file = place[0].open(volume.path)
    file.write_at(headers[0].offset, b"\xff" * 100)
    file.close()
    assert [
        each for each in volume.scan(FIRST_RECORD_OFFSET) if isinstance(each, RecordHeader)
    ] == [headers[1]]
    volume.close()


def test_unborn_volume(place: tuple[FileSystem, str]) -> None:
    """What a crash leaves of a volume in the making is removed; more than that is kept."""
    filesystem, directory = place
    path = os.path.join(directory, "0000000003.volume")
    file = filesystem.open(path, create=True)
    file.write_at(0, bytes(FIRST_RECORD_OFFSET + 1))
    assert not discard_unborn(filesystem, directory, 3)
    file.truncate(FIRST_RECORD_OFFSET)
    file.close()
    assert discard_unborn(filesystem, directory, 3)
    assert volume_numbers(filesystem, directory) == []


def test_hole_probe(place: tuple[FileSystem, str]) -> None:
    """The probe for holes leaves nothing behind."""
    assert can_punch_holes(*place)
    assert place[0].names(place[1]) == []


def test_no_holes() -> None:
    """A file system without holes is recognised."""
    disk = FakeFileSystem()
    disk.make_directory("/volumes")
    disk.fail("punch_hole", errno.EOPNOTSUPP)
    assert not can_punch_holes(disk, "/volumes")


@pytest.mark.parametrize("seed", range(30))
def test_any_garbage(seed: int) -> None:
    """Whatever garbage follows or replaces records, a scan ends and tells only true headers."""
    chance = random.Random(seed)
    disk = FakeFileSystem()
    disk.make_directory("/volumes")
    volume, headers = filled((disk, "/volumes"), [noise(size) for size in (10, 9000, 270_000, 99)])
    file = disk.open(volume.path)
    for _ in range(chance.randint(1, 5)):
        garbage = chance.randbytes(chance.choice([1, 512, 5000]))
        file.write_at(chance.randrange(FIRST_RECORD_OFFSET, headers[-1].end + 5000), garbage)
    for found in volume.scan(FIRST_RECORD_OFFSET):
        if isinstance(found, RecordHeader):
            assert found in headers
