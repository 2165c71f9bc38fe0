"""How an upload becomes chunks and segments: bounded, ordered, under the right generation."""

from __future__ import annotations

import asyncio

from blake3 import blake3

from gateway.chunk_writer import WRITES_IN_FLIGHT
from metadata_raft.chunk_references import unpack
from metadata_raft.commands import (
    ENTRY_SIZE_LIMIT,
    SEGMENT_CHUNK_LIMIT,
    AdvanceGeneration,
    Command,
    PutFile,
    StageSegment,
    decode_command,
    decode_entry,
)
from metadata_raft.errors import NoQuorumError, OutcomeUnknownError
from tests.gateway.serving import TINY_CHUNK, Serving, contents, eventually


def commands(gateway: Serving) -> list[Command]:
    return [
        decode_command(proposal.command)
        for entry in gateway.metadata.log
        for proposal in decode_entry(entry).proposals
    ]


def staged(gateway: Serving) -> list[StageSegment]:
    return [command for command in commands(gateway) if isinstance(command, StageSegment)]


def put(gateway: Serving) -> PutFile:
    return [command for command in commands(gateway) if isinstance(command, PutFile)][-1]


async def test_one_chunk_is_one_reference(gateway: Serving) -> None:
    """A file of exactly one chunk is hashed once: its id is the file's digest."""
    data = contents(4500)
    big = contents(TINY_CHUNK * 4 + 97)
    assert (await gateway.file("PUT", "box/f", data=data)).status == 201
    assert (await gateway.file("PUT", "box/g", data=big)).status == 201
    command = put(gateway)
    assert command.chunks is not None
    references = unpack(command.chunks)
    assert [length for _, length in references] == [TINY_CHUNK] * 4 + [97]
    assert [chunk_id for chunk_id, _ in references] == [
        blake3(big[start : start + TINY_CHUNK]).digest() for start in range(0, 4097, TINY_CHUNK)
    ]
    assert command.content_checksum == blake3(big).digest()
    assert command.chunking == TINY_CHUNK


async def test_writes_overlap_within_bounds(gateway: Serving) -> None:
    """A few chunks are on their way at once, never more, however fast the body comes."""
    gateway.chunks.gate = asyncio.Event()
    upload = asyncio.create_task(gateway.file("PUT", "box/f", data=contents(50_000)))
    await eventually(lambda: gateway.chunks.writes_now == WRITES_IN_FLIGHT)
    # One buffer more is filling; the rest of the body waits in the connection.
    assert gateway.buffers.leased_bytes <= (WRITES_IN_FLIGHT + 1) * 64 * 1024
    gateway.chunks.gate.set()
    assert (await upload).status == 201
    assert gateway.chunks.writes_most == WRITES_IN_FLIGHT
    assert (await gateway.file("GET", "box/f")).body == contents(50_000)


async def test_a_long_file_is_staged_segment_by_segment(gateway: Serving) -> None:
    """Beyond a segment the references go in commands of a segment each, and none is larger."""
    chunk_count = 2 * SEGMENT_CHUNK_LIMIT + 10
    data = contents(chunk_count * TINY_CHUNK - 1)
    assert (await gateway.file("PUT", "box/f", data=data)).status == 201
    segments = staged(gateway)
    assert [len(unpack(segment.chunks)) for segment in segments] == [1024, 1024, 10]
    assert [segment.ordinal for segment in segments] == [0, 1, 2]
    assert len({segment.upload_id for segment in segments}) == 1
    assert put(gateway).chunks is None
    assert max(map(len, gateway.metadata.log)) < ENTRY_SIZE_LIMIT // 4
    assert (await gateway.file("GET", "box/f")).body == data
    middle = SEGMENT_CHUNK_LIMIT * TINY_CHUNK
    part = await gateway.file("GET", "box/f", headers={"Range": f"bytes={middle - 5}-{middle + 4}"})
    assert part.body == data[middle - 5 : middle + 5]


async def test_a_new_generation_starts_a_new_segment(gateway: Serving) -> None:
    """A slow upload commits what it has when the generation moves, and is never too late."""
    data = contents(20_000)
    proceed = [asyncio.Event() for _ in range(4)]

    async def body() -> object:
        for number, event in enumerate(proceed):
            yield data[number * 5000 : number * 5000 + 5000]
            await event.wait()

    upload = asyncio.create_task(gateway.file("PUT", "box/f", data=body()))
    for number, event in enumerate(proceed):
        # The last chunk of each part waits for the next one, to know that it isn't the file's end.
        written = 5 * number + 4
        await eventually(lambda count=written: len(gateway.chunks.generations) == count)  # type: ignore[misc]
        generation = gateway.metadata.applied().generation
        await gateway.metadata.submit(AdvanceGeneration(expected=generation))
        event.set()
    assert (await upload).status == 201
    assert [len(unpack(segment.chunks)) for segment in staged(gateway)] == [4, 5, 5, 5, 1]
    assert [segment.generation for segment in staged(gateway)] == [0, 1, 2, 3, 4]
    assert (await gateway.file("GET", "box/f")).body == data


async def test_a_command_carries_the_oldest_epoch(gateway: Serving) -> None:
    """Whatever the order of acknowledgements, the command names their oldest epoch (rule D6)."""
    epochs = iter([7, 5, 9, 6, 8])
    write = gateway.chunks.write

    async def changing(lease: object, length: int, *, generation: int) -> object:
        gateway.chunks.epoch = next(epochs)
        return await write(lease, length, generation=generation)  # type: ignore[arg-type]

    gateway.chunks.write = changing  # type: ignore[method-assign, assignment]
    assert (await gateway.file("PUT", "box/f", data=contents(5000))).status == 201
    assert put(gateway).oldest_epoch == 5


async def test_a_bulk_upload_survives_a_fail_over(gateway: Serving) -> None:
    """Segments are submitted again under the same id while there is no leader: nothing is lost."""
    gateway.metadata.fail_next = [
        NoQuorumError("no leader"),
        OutcomeUnknownError(bytes(16), "the leader is gone"),
    ]
    data = contents(SEGMENT_CHUNK_LIMIT * TINY_CHUNK + 1)
    assert (await gateway.file("PUT", "box/f", data=data)).status == 201
    assert (await gateway.file("GET", "box/f")).body == data


async def test_a_refused_upload_is_aborted(gateway: Serving) -> None:
    """What was staged of an upload that fails is dropped at once, not after a day."""
    data = contents(SEGMENT_CHUNK_LIMIT * TINY_CHUNK + 1)
    refused = await gateway.file("PUT", "box/f", data=data, headers={"X-Content-BLAKE3": "0" * 64})
    assert refused.code == "digest_mismatch"
    (upload_id,) = {segment.upload_id for segment in staged(gateway)}

    def is_gone() -> bool:
        with gateway.metadata.snapshot() as snapshot:
            return snapshot.upload(upload_id) is None

    await eventually(is_gone)


async def test_a_repeated_upload_leaves_nothing_staged(gateway: Serving) -> None:
    """A repetition under an Idempotency-Key drops what it staged for nothing."""
    data = contents(SEGMENT_CHUNK_LIMIT * TINY_CHUNK + 1)
    headers = {"Idempotency-Key": "k"}
    first = await gateway.file("PUT", "box/f", data=data, headers=headers)
    again = await gateway.file("PUT", "box/f", data=data, headers=headers)
    assert (first.status, first.json) == (201, again.json)
    upload_ids = {segment.upload_id for segment in staged(gateway)}
    assert len(upload_ids) == 2

    def none_left() -> bool:
        with gateway.metadata.snapshot() as snapshot:
            return all(snapshot.upload(upload_id) is None for upload_id in upload_ids)

    await eventually(none_left)
    assert (await gateway.file("GET", "box/f")).body == data
