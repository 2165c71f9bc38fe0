"""References that come too late are made good instead of refused to the client (rules D4, D6).

The state machine refuses a command whose chunks were written two generations ago, for a store may
have collected them, or acknowledged in an epoch below the floor, for they may have stood on a node
that has left. The contents are gone from memory by then. But mostly the chunks are still where they
were: so their owners are asked to confirm them in the present generation and epoch, as a write does
that finds its chunk there, and only what they can't confirm is read from whoever has it, and
written anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from gateway.backends import Backends
from gateway.errors import ApiError
from metadata_raft.chunk_references import unpack
from metadata_raft.commands import PutFile, Result, StageSegment
from ring.errors import ChunkMissingError, ChunkNotFoundError

ATTEMPTS = 3
"""Each takes two generations to become too late again, or a node that leaves."""

_Referring = TypeVar("_Referring", PutFile, StageSegment)


class Staging(NamedTuple):
    """What a command says of how its chunks were acknowledged."""

    generation: int
    oldest_epoch: int


async def submit_references(
    backends: Backends, command: _Referring, submit: Callable[[_Referring], Awaitable[Result]]
) -> Result:
    """Submit a command that refers to chunks; where it is too late, confirm them and submit again.

    `submit` must take a new request id each time: a refusal is remembered under the old one. Raises
    what `submit` does, ApiError(restage) where chunks are gone, and what reads and writes raise.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await submit(command)
        except ApiError as error:
            if error.code != "restage" or command.chunks is None:
                raise
        staging = await restage(backends, unpack(command.chunks))
        command = msgspec.structs.replace(
            command, generation=staging.generation, oldest_epoch=staging.oldest_epoch
        )
    return await submit(command)


async def restage(backends: Backends, references: Sequence[tuple[bytes, int]]) -> Staging:
    """Have chunks (id, length) acknowledged once more.

    Raises ApiError(restage) where one is gone, and what reads and writes raise.
    """
    # The refusal came from a state that this node may not have applied yet.
    await backends.metadata.barrier()
    generation = backends.metadata.applied().generation
    lengths = dict(references)
    touched = await backends.chunks.touch(list(lengths), generation=generation)
    oldest_epoch = touched.epoch
    for (chunk_id, length), confirmed in zip(lengths.items(), touched.confirmed, strict=True):
        if not confirmed:
            epoch = await _write_anew(backends, chunk_id, length, generation)
            oldest_epoch = min(oldest_epoch, epoch)
    return Staging(generation, oldest_epoch)


async def _write_anew(backends: Backends, chunk_id: bytes, length: int, generation: int) -> int:
    """Returns the epoch of the new acknowledgements."""
    try:
        # A copy, so that no buffer is held while another is waited for.
        contents = bytes(await backends.chunks.read(chunk_id, length=length))
    except (ChunkMissingError, ChunkNotFoundError) as error:
        raise ApiError(
            "restage", f"The upload took so long that its chunks were collected: {error}."
        ) from error
    lease = await backends.buffers.lease(length)
    lease.view[:length] = contents
    return (await backends.chunks.write(lease, length, generation=generation)).epoch
