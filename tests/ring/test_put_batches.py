"""Small chunks that wait for a peer share its requests, and none waits for ever."""

from __future__ import annotations

import asyncio
from itertools import chain

import pytest
from blake3 import blake3

from ring.errors import PeerRefusedError, PeerUnreachableError
from ring.interfaces import Codec
from ring.members import Member
from ring.peer_wire import (
    PUT_BATCH_LIMIT,
    PUT_BATCH_SIZE_LIMIT,
    SMALL_PUT_LIMIT,
    Purpose,
    PutAnswer,
    PutTarget,
    SmallPut,
)
from ring.put_batches import BATCHES_AT_ONCE, PutBatches

PEER = Member(node_id="peer", peer_address="127.0.0.1:1", raft_address="", client_url="")


class _Peer:
    """Answers batches when told to; keeps what came."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def send(self, member: Member, puts: list[SmallPut]) -> list[PutAnswer]:
        assert member == PEER
        self.batches.append([bytes(put.payload) for put in puts])
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [PutAnswer(existed=put.payload[0] % 2 == 1) for put in puts]


def _start(batches: PutBatches, payload: bytes) -> asyncio.Future[PutAnswer]:
    target = PutTarget(blake3(payload).digest(), 1, Purpose.OWNER, 0, Codec.RAW, len(payload))
    return asyncio.ensure_future(batches.put(PEER, target, memoryview(payload)))


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_alone_goes_at_once_and_the_rest_together() -> None:
    """While the requests allowed are under way, what comes is gathered into the next."""
    peer = _Peer()
    batches = PutBatches(peer.send)
    started = []
    for number in range(BATCHES_AT_ONCE):
        started.append(_start(batches, bytes([number])))
        await _turn()
    started += [_start(batches, bytes([number])) for number in range(BATCHES_AT_ONCE, 20)]
    await _turn()
    assert [len(batch) for batch in peer.batches] == [1] * BATCHES_AT_ONCE
    peer.may_answer.set()
    answers = await asyncio.gather(*started)
    assert [answer.existed for answer in answers] == [number % 2 == 1 for number in range(20)]
    assert len(peer.batches) == BATCHES_AT_ONCE + 1
    assert sorted(chain.from_iterable(peer.batches)) == [bytes([number]) for number in range(20)]


async def test_a_batch_is_bounded_in_number_and_size() -> None:
    """No request has more chunks or bytes than a peer accepts."""
    peer = _Peer()
    batches = PutBatches(peer.send)
    small = [_start(batches, number.to_bytes(2, "big")) for number in range(3 * PUT_BATCH_LIMIT)]
    large = [_start(batches, bytes([number]) * SMALL_PUT_LIMIT) for number in range(40)]
    peer.may_answer.set()
    await asyncio.gather(*small, *large)
    assert max(len(batch) for batch in peer.batches) <= PUT_BATCH_LIMIT
    assert max(sum(map(len, batch)) for batch in peer.batches) <= PUT_BATCH_SIZE_LIMIT


async def test_a_peer_that_fails_fails_all_who_wait_for_it() -> None:
    """Otherwise each batch behind would wait for a time limit of its own, one after the other."""
    peer = _Peer()
    peer.error = PeerUnreachableError("peer", "it does not answer")
    batches = PutBatches(peer.send)
    started = [_start(batches, number.to_bytes(2, "big")) for number in range(3 * PUT_BATCH_LIMIT)]
    await _turn()
    peer.may_answer.set()
    results = await asyncio.gather(*started, return_exceptions=True)
    assert all(isinstance(result, PeerUnreachableError) for result in results)
    assert len({id(result) for result in results}) == len(results)
    assert len(peer.batches) == BATCHES_AT_ONCE
    peer.error = None
    assert not (await _start(batches, b"\x00")).existed


async def test_a_chunk_that_comes_as_the_last_answer_does_is_sent() -> None:
    """Whatever the moment, somebody carries it."""
    for turns in range(8):
        peer = _Peer()
        peer.may_answer.set()
        batches = PutBatches(peer.send)
        first = [_start(batches, bytes([number])) for number in range(BATCHES_AT_ONCE)]
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.gather(*first, _start(batches, b"\x07"))


async def test_only_so_many_wait_for_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused at once, and those who wait are not disturbed."""
    monkeypatch.setattr("ring.put_batches.WAITING_LIMIT", 3)
    peer = _Peer()
    batches = PutBatches(peer.send)
    started = []
    for number in range(BATCHES_AT_ONCE):
        started.append(_start(batches, bytes([number])))
        await _turn()
    started += [_start(batches, bytes([number])) for number in range(3)]
    await _turn()
    async with asyncio.timeout(5):
        with pytest.raises(PeerRefusedError, match="overloaded"):
            await _start(batches, b"one more")
    peer.may_answer.set()
    await asyncio.gather(*started)


async def test_a_chunk_given_up_is_not_sent() -> None:
    """A caller that is cancelled while its chunk waits may reuse its buffer."""
    peer = _Peer()
    batches = PutBatches(peer.send)
    first = []
    for number in range(BATCHES_AT_ONCE):
        first.append(_start(batches, bytes([number])))
        await _turn()
    payload = bytearray(b"waits")
    target = PutTarget(blake3(payload).digest(), 1, Purpose.OWNER, 0, Codec.RAW, len(payload))
    given_up = asyncio.ensure_future(batches.put(PEER, target, memoryview(payload)))
    await _turn()
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    peer.may_answer.set()
    await asyncio.gather(*first, _start(batches, b"\x07"))
    assert b"waits" not in chain.from_iterable(peer.batches)
