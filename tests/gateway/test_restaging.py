"""An upload that took too long is made good where its chunks still are (rules D4, D6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from blake3 import blake3

from gateway.chunk_writer import WRITES_IN_FLIGHT
from gateway.restaging import ATTEMPTS
from metadata_raft.commands import (
    SEGMENT_CHUNK_LIMIT,
    AdvanceGeneration,
    ChangeRing,
    PutFile,
    RingChanged,
    StageSegment,
    decode_command,
    decode_entry,
)
from tests.fakes.metadata import make_member
from tests.gateway.serving import TINY_CHUNK, Answer, Serving, contents, eventually, serving


def _referring(gateway: Serving) -> list[PutFile | StageSegment]:
    """All commands with references that were submitted, refused or not."""
    commands = [
        decode_command(proposal.command)
        for entry in gateway.metadata.log
        for proposal in decode_entry(entry).proposals
    ]
    return [each for each in commands if isinstance(each, PutFile | StageSegment)]


async def _advance(gateway: Serving, count: int) -> None:
    for _ in range(count):
        generation = gateway.metadata.applied().generation
        await gateway.metadata.submit(AdvanceGeneration(expected=generation))


async def _raise_floor(gateway: Serving) -> None:
    """A node left: a new epoch, below which no acknowledgement counts."""
    epoch = gateway.metadata.applied().epoch
    result = await gateway.metadata.submit(
        ChangeRing(expected_epoch=epoch, node_ids=(make_member(1).node_id,), raise_floor=True)
    )
    assert isinstance(result, RingChanged), result
    gateway.chunks.epoch = result.epoch


async def _upload_during(
    gateway: Serving,
    change: Callable[[], Awaitable[None]],
    *,
    size: int = 4500,
    key: str | None = None,
    in_flight: int = WRITES_IN_FLIGHT,
) -> Answer:
    """PUT box/f; `change` takes place while its first chunks, `in_flight` of them, are on their
    way, and none has been acknowledged."""
    gateway.chunks.gate = asyncio.Event()
    headers = {} if key is None else {"Idempotency-Key": key}
    upload = asyncio.create_task(gateway.file("PUT", "box/f", data=contents(size), headers=headers))
    await eventually(lambda: gateway.chunks.writes_now == in_flight)
    await change()
    gateway.chunks.gate.set()
    return await upload


@pytest.mark.parametrize("chunks", [1, 2])
async def test_an_upload_that_paused_for_generations_succeeds(tmp_path: Path, chunks: int) -> None:
    """Its chunks are confirmed in the present generation, and the command says so."""
    size = 4500 * chunks
    async with serving(str(tmp_path), chunk_size_bytes=5000) as gateway:
        answer = await _upload_during(
            gateway, lambda: _advance(gateway, 3), size=size, in_flight=chunks
        )
        assert answer.status == 201
        refused, accepted = _referring(gateway)
        assert (refused.generation, accepted.generation) == (0, 3)
        assert gateway.chunks.touches == [3]
        assert (await gateway.file("GET", "box/f")).body == contents(size)


async def test_an_upload_succeeds_although_a_node_left(gateway: Serving) -> None:
    """Acknowledgements of before are not counted; the owners of now confirm the chunks."""
    answer = await _upload_during(gateway, lambda: _raise_floor(gateway))
    assert answer.status == 201
    refused, accepted = _referring(gateway)
    assert refused.oldest_epoch < accepted.oldest_epoch == gateway.metadata.applied().epoch
    assert (await gateway.file("GET", "box/f")).body == contents(4500)


async def test_chunks_that_are_not_with_their_owners_are_written_anew(gateway: Serving) -> None:
    """What the owners of now don't confirm is read from whoever has it, and written to them."""
    data = contents(4500)
    astray = {blake3(data[start : start + TINY_CHUNK]).digest() for start in (0, 2 * TINY_CHUNK)}
    write = gateway.chunks.write

    async def losing(lease: object, length: int, *, generation: int) -> object:
        written = await write(lease, length, generation=generation)  # type: ignore[arg-type]
        if written.epoch == 1:
            gateway.chunks.unconfirmed |= astray & {written.chunk_id}
        return written

    gateway.chunks.write = losing  # type: ignore[method-assign, assignment]
    answer = await _upload_during(gateway, lambda: _raise_floor(gateway))
    assert answer.status == 201
    assert len(gateway.chunks.generations) == 5 + len(astray)
    assert gateway.chunks.unconfirmed == set()
    assert (await gateway.file("GET", "box/f")).body == data


async def test_each_segment_of_a_long_upload_is_made_good(gateway: Serving) -> None:
    """Also where generations pass while the segments are being staged."""
    size = (SEGMENT_CHUNK_LIMIT + 1) * TINY_CHUNK
    answer = await _upload_during(gateway, lambda: _advance(gateway, 2), size=size)
    assert answer.status == 201
    assert gateway.chunks.touches
    assert (await gateway.file("GET", "box/f")).body == contents(size)


async def test_a_repetition_key_is_worth_as_much_after_restaging(gateway: Serving) -> None:
    """What was refused is not what is remembered under the key."""
    first = await _upload_during(gateway, lambda: _advance(gateway, 2), key="k")
    again = await gateway.file(
        "PUT", "box/f", data=contents(4500), headers={"Idempotency-Key": "k"}
    )
    assert (first.status, first.json) == (201, again.json)


async def test_restaging_ends(gateway: Serving) -> None:
    """Where each new confirmation is too late again, the client is told to send again."""
    touch = gateway.chunks.touch

    async def slow(chunk_ids: list[bytes], *, generation: int) -> object:
        touched = await touch(chunk_ids, generation=generation)
        await _advance(gateway, 2)
        return touched

    gateway.chunks.touch = slow  # type: ignore[method-assign, assignment]
    answer = await _upload_during(gateway, lambda: _advance(gateway, 2))
    assert (answer.status, answer.code) == (503, "restage")
    assert len(_referring(gateway)) == ATTEMPTS
    assert (await gateway.file("GET", "box/f")).status == 404
