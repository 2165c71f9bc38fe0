"""Writes at quorum and verified reads, over real HTTP between nodes in one process."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import closing

import msgspec
import pytest
from blake3 import blake3

from ring.errors import (
    ChunkMissingError,
    ChunkUnavailableError,
    QuorumFailedError,
    StoreFullError,
)
from ring.members import Membership
from ring.replicator import ChunksTouched
from ring.signatures import Session
from tests.fakes.ring_nodes import RingNode, eventually, ring_cluster

MIB = 1024 * 1024


def _random(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [1, 4096, 64 * 1024 + 1, 3 * MIB, 8 * MIB])
async def test_a_written_chunk_is_on_all_owners_and_reads_back_anywhere(size: int) -> None:
    """Three copies come to exist, and every node returns exactly the bytes, whole or in part."""
    async with ring_cluster(3) as cluster:
        content = _random(size)
        written = await cluster.nodes[0].write(content)
        assert written.chunk_id == blake3(content).digest()
        assert (written.length, written.epoch) == (size, 1)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        for node in cluster.nodes:
            assert bytes(await node.replicator.read(written.chunk_id, length=size)) == content
            part = await node.replicator.read(
                written.chunk_id, length=size, start=size // 3, end=size // 2 + 1
            )
            assert bytes(part) == content[size // 3 : size // 2 + 1]


async def test_compressible_chunks_travel_and_return_compressed() -> None:
    """A chunk is compressed once, and is the same chunk for every reader."""
    async with ring_cluster(3) as cluster:
        content = b"all work and no play makes jack a dull boy\n" * 100_000
        written = await cluster.nodes[1].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        for node in cluster.nodes:
            assert node.store.statistics().stored_bytes < len(content) // 10
            data = await node.replicator.read(written.chunk_id, length=len(content))
            assert bytes(data) == content


@pytest.mark.parametrize("tls", [False, True])
async def test_nodes_without_a_copy_read_from_others(tls: bool) -> None:
    """A node that is no owner serves the chunk from an owner: small, large, and a part of one."""
    async with ring_cluster(4, tls=tls) as cluster:
        for size in (1000, 64 * 1024, 5 * MIB):
            content = cluster.content_owned_by(0, 1, 2, size=size)
            written = await cluster.nodes[3].write(content)
            assert 3 not in cluster.holders(written.chunk_id)
            reader = cluster.nodes[3].replicator
            assert bytes(await reader.read(written.chunk_id, length=size)) == content
            part = await reader.read(written.chunk_id, length=size, start=10, end=500)
            assert bytes(part) == content[10:500]
            del part
        await cluster.nodes[3].replicator.close()
        assert cluster.nodes[3].pool.leased_bytes == 0


async def test_one_slow_node_does_not_delay_the_acknowledgement() -> None:
    """Two of three durable copies acknowledge; the third is completed behind the caller's back, and
    its buffer lives until then."""
    async with ring_cluster(3) as cluster:
        cluster.nodes[2].store.hold_writes()
        content = _random(300_000)
        written = await asyncio.wait_for(cluster.nodes[0].write(content), 5)
        assert cluster.holders(written.chunk_id) == [0, 1]
        assert cluster.nodes[0].pool.leased_bytes > 0
        cluster.nodes[2].store.release_writes()
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        await eventually(lambda: cluster.nodes[0].pool.leased_bytes == 0)
        assert cluster.nodes[0].lacking == []


async def test_an_acknowledged_chunk_is_durable_on_a_quorum() -> None:
    """While two of three stores have nothing durable, there is no acknowledgement."""
    async with ring_cluster(3) as cluster:
        cluster.nodes[1].store.hold_writes()
        cluster.nodes[2].store.hold_writes()
        writing = asyncio.ensure_future(cluster.nodes[0].write(_random(1000)))
        chunk_id = blake3(_random(1000)).digest()
        await eventually(lambda: cluster.holders(chunk_id) == [0])
        assert not writing.done()
        cluster.nodes[2].store.release_writes()
        await asyncio.wait_for(writing, 5)
        assert cluster.holders(chunk_id) == [0, 2]


async def test_a_down_owner_is_stood_in_for_and_reported() -> None:
    """With four nodes, one down: three copies exist all the same, and the owner is to be healed."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        await cluster.nodes[1].go_down()
        written = await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 2, 3])
        await eventually(
            lambda: cluster.nodes[0].lacking == [(written.chunk_id, cluster.nodes[1].node_id)]
        )


async def test_two_of_three_down_is_no_quorum() -> None:
    """The write fails, says which nodes and why, and may be retried; no buffer is lost."""
    async with ring_cluster(3) as cluster:
        await cluster.nodes[1].go_down()
        await cluster.nodes[2].go_down()
        with pytest.raises(QuorumFailedError) as caught:
            await cluster.nodes[0].write(_random(1000))
        assert caught.value.retryable
        assert caught.value.causes.keys() == {node.node_id for node in cluster.nodes[1:]}
        assert cluster.nodes[1].node_id in str(caught.value)
        assert "1 durable copies of 2" in str(caught.value)
        await eventually(lambda: cluster.nodes[0].pool.leased_bytes == 0)


async def test_full_disks_fail_a_write_only_where_no_quorum_is_left() -> None:
    """One full node of three is stood in for by the others' quorum; two are "storage full"."""
    async with ring_cluster(3) as cluster:
        cluster.nodes[1].store.quota_bytes = 0
        await cluster.nodes[0].write(_random(1000))
        cluster.nodes[2].store.quota_bytes = 0
        with pytest.raises(StoreFullError, match=cluster.nodes[1].node_id):
            await cluster.nodes[0].write(_random(2000))


async def test_a_cancelled_write_ends_by_itself_and_returns_its_buffer() -> None:
    """A client that vanishes in mid-write leaves neither a half copy nor a lost buffer."""
    async with ring_cluster(3) as cluster:
        for node in cluster.nodes:
            node.store.hold_writes()
        writing = asyncio.ensure_future(cluster.nodes[0].write(_random(100_000)))
        await eventually(lambda: cluster.nodes[1].store.statistics().queue_depth == 1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert cluster.nodes[0].pool.leased_bytes > 0
        for node in cluster.nodes:
            node.store.release_writes()
        await eventually(lambda: cluster.nodes[0].pool.leased_bytes == 0)


async def test_copies_to_a_hanging_node_never_hold_all_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond a bound of bytes the oldest copies under way are given up after a while, and reported;
    the next ones to the same node are not waited for."""
    # Two buffers, of which these chunks take one each.
    monkeypatch.setattr("ring.replicator.BACKGROUND_LIMIT_BYTES", 2 * 512 * 1024)
    monkeypatch.setattr("ring.replicator.ROOM_SECONDS", 0.1)
    async with ring_cluster(3) as cluster:
        cluster.nodes[2].store.hold_writes()
        first = await cluster.nodes[0].write(_random(90_000, seed=1))
        await cluster.nodes[0].write(_random(90_000, seed=2))
        assert cluster.nodes[0].lacking == []
        await cluster.nodes[0].write(_random(90_000, seed=3))
        await eventually(
            lambda: cluster.nodes[0].lacking == [(first.chunk_id, cluster.nodes[2].node_id)]
        )
        monkeypatch.setattr("ring.replicator.ROOM_SECONDS", 60.0)
        await asyncio.wait_for(cluster.nodes[0].write(_random(90_000, seed=4)), 5)


@pytest.mark.parametrize("content_of", ["noise", "zeros"])
async def test_small_and_compressible_chunks_hold_no_more_buffers(
    monkeypatch: pytest.MonkeyPatch, content_of: str
) -> None:
    """What counts is the buffer that a copy under way keeps, not the bytes that are sent from it:
    a hanging node leaves half of all buffers free, whatever is uploaded."""
    monkeypatch.setattr("ring.replicator.ROOM_SECONDS", 0.0)
    async with ring_cluster(3) as cluster:
        node = cluster.nodes[0]
        size = 513 * 1024
        cluster.nodes[2].store.hold_writes()
        async with asyncio.timeout(120):
            for number in range(10):
                body = bytes(size) if content_of == "zeros" else _random(size, number)
                await node.write(number.to_bytes(4, "big") + body)
        assert node.pool.budget_bytes == 64 * MIB
        await eventually(lambda: node.pool.leased_bytes <= 32 * MIB, seconds=60)
        assert len(set(node.lacking)) >= 6


async def test_a_slow_node_slows_writes_down_before_it_loses_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the bound reached, a write is acknowledged once the slowest node has caught up a bit."""
    # Two buffers, of which these chunks take one each.
    monkeypatch.setattr("ring.replicator.BACKGROUND_LIMIT_BYTES", 2 * 512 * 1024)
    async with ring_cluster(3) as cluster:
        cluster.nodes[2].store.hold_writes()
        for seed in (1, 2):
            await cluster.nodes[0].write(_random(90_000, seed))
        third = asyncio.ensure_future(cluster.nodes[0].write(_random(90_000, 3)))
        chunk_id = blake3(_random(90_000, 3)).digest()
        await eventually(lambda: cluster.holders(chunk_id) == [0, 1])
        done, _ = await asyncio.wait([third], timeout=0.05)
        assert not done
        cluster.nodes[2].store.release_writes()
        await asyncio.wait_for(third, 5)
        await eventually(lambda: cluster.holders(chunk_id) == [0, 1, 2])
        assert cluster.nodes[0].lacking == []


async def test_closing_does_not_wait_for_a_hanging_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way is given up after a while; a write that has no quorum fails then."""
    monkeypatch.setattr("ring.replicator.CLOSE_SECONDS", 0.05)
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        for node in cluster.nodes[1:]:
            node.store.hold_writes()
        writing = asyncio.ensure_future(cluster.nodes[0].write(content))
        await eventually(lambda: cluster.holders(blake3(content).digest()) == [0])
        await asyncio.wait_for(cluster.nodes[0].replicator.close(), 5)
        with pytest.raises(QuorumFailedError):
            await writing
        assert cluster.nodes[0].pool.leased_bytes == 0


async def test_a_write_at_an_old_epoch_is_refused_and_made_at_the_new_one() -> None:
    """Rule D1: peers that know of a newer ring refuse; the writer catches up and writes by it."""
    async with ring_cluster(4, in_ring=3) as cluster:
        node = cluster.nodes[0]
        cluster.change_ring([0, 1, 2, 3], told=[1, 2, 3])
        written = await node.write(_random(1000))
        assert written.epoch == 2
        assert node.view.refreshes >= 1
        owners = set(cluster.ring().owners(written.chunk_id))
        await eventually(
            lambda: owners <= {cluster.nodes[n].node_id for n in cluster.holders(written.chunk_id)}
        )


async def test_the_fence_holds_for_this_nodes_own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on the writing node counts for the epoch that node is at, and for no former one."""
    async with ring_cluster(3) as cluster:
        node = cluster.nodes[0]
        former = cluster.ring()
        # The others would take the copies: they have not heard of the new epoch.
        cluster.change_ring([0, 1, 2], told=[0])
        ready = node.rings.ready
        answers = iter([former])
        monkeypatch.setattr(node.rings, "ready", lambda: next(answers, None) or ready())
        for other in cluster.nodes[1:]:
            other.store.hold_writes()
        writing = asyncio.ensure_future(node.write(_random(1000)))
        await eventually(lambda: node.view.refreshes == 1)
        for other in cluster.nodes[1:]:
            await other.view.refresh()
            other.store.release_writes()
        assert (await writing).epoch == 2


async def test_the_fence_is_asked_again_after_this_nodes_own_sync() -> None:
    """A copy here that became durable only under the next ring does not count for the former."""
    async with ring_cluster(1) as cluster:
        node = cluster.nodes[0]
        node.store.hold_writes()
        writing = asyncio.ensure_future(node.write(_random(1000)))
        await eventually(lambda: node.store.statistics().queue_depth == 1)
        cluster.change_ring([0])
        node.store.release_writes()
        assert (await writing).epoch == 2


async def test_a_peer_that_lags_behind_is_waited_for() -> None:
    """A receiver that learns of the writer's epoch a moment later takes the chunk then."""
    async with ring_cluster(3) as cluster:
        cluster.change_ring([0, 1, 2], told=[0])
        writing = asyncio.ensure_future(cluster.nodes[0].write(_random(1000)))
        await asyncio.sleep(0)
        for node in cluster.nodes[1:]:
            await node.view.refresh()
        written = await asyncio.wait_for(writing, 5)
        assert written.epoch == 2
        assert len(cluster.holders(written.chunk_id)) >= 2


async def test_peers_at_another_epoch_acknowledge_nothing() -> None:
    """Without a common epoch there is no quorum, however many nodes answer."""
    async with ring_cluster(3) as cluster:
        cluster.change_ring([0, 1, 2], told=[0])
        with pytest.raises(QuorumFailedError, match="epoch 1"):
            await cluster.nodes[0].write(_random(1000))
        assert cluster.holders(blake3(_random(1000)).digest()) == [0]


async def test_a_bad_copy_is_never_served_and_is_reported() -> None:
    """The reader gets right bytes from a good copy; the bad one, here or elsewhere, is reported."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        written = await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        cluster.nodes[0].store.damage(written.chunk_id)
        data = await cluster.nodes[0].replicator.read(written.chunk_id, length=len(content))
        assert bytes(data) == content
        assert (written.chunk_id, cluster.nodes[0].node_id) in cluster.nodes[0].lacking
        cluster.nodes[1].store.damage(written.chunk_id)
        data = await cluster.nodes[3].replicator.read(written.chunk_id, length=len(content))
        assert bytes(data) == content


async def test_a_lying_peer_is_found_out() -> None:
    """A peer whose store returns other bytes without noticing serves nobody: whole chunks are
    verified where they arrive."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        written = await cluster.nodes[3].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        other = await cluster.nodes[3].write(_random(len(content)))
        await eventually(lambda: len(cluster.holders(other.chunk_id)) >= 3)
        reader = cluster.nodes[3].replicator

        def lie(node: RingNode) -> None:
            kept = node.store._chunks[written.chunk_id].content
            object.__setattr__(kept, "payload", memoryview(bytes(len(content))))

        lie(cluster.nodes[0])
        lie(cluster.nodes[1])
        data = await reader.read(written.chunk_id, length=len(content))
        assert bytes(data) == content
        # Whoever was asked first above: with all of them lying nobody is believed.
        lie(cluster.nodes[2])
        with pytest.raises(ChunkUnavailableError):
            await reader.read(written.chunk_id, length=len(content))


async def test_a_silent_owner_delays_one_read_and_is_asked_last_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that accepts connections and never answers costs a bounded time, once."""
    monkeypatch.setattr("ring.peer_client.READ_SECONDS", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with closing(silent):
        async with ring_cluster(4) as cluster:
            content = cluster.content_owned_by(0, 1, 2)
            written = await cluster.nodes[0].write(content)
            await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
            reader = cluster.nodes[3]
            first = cluster.ring().owners(written.chunk_id)[0]
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            members = tuple(
                msgspec.structs.replace(member, peer_address=address)
                if member.node_id == first
                else member
                for member in reader.view.present.members
            )
            reader.view.present = Membership(epoch=1, members=members)
            # Asked before all others: nobody's latency is known, so the ring's order decides.
            reader.client._transport._peer(first).session = Session(bytes(16), 1)
            data = await asyncio.wait_for(
                reader.replicator.read(written.chunk_id, length=len(content)), 5
            )
            assert bytes(data) == content
            now = reader.client.now()
            assert first == max(
                cluster.ring().owners(written.chunk_id),
                key=lambda node: reader.client.health(node).rank(now),
            )
            monkeypatch.setattr("ring.peer_client.READ_SECONDS", 60.0)
            for _ in range(5):
                await asyncio.wait_for(
                    reader.replicator.read(written.chunk_id, length=len(content)), 5
                )


async def test_missing_is_said_only_when_all_have_answered() -> None:
    """With everyone up, a chunk that nobody has is missing; with one node down it is unavailable,
    which may be retried."""
    async with ring_cluster(4) as cluster:
        nowhere = blake3(b"nowhere").digest()
        with pytest.raises(ChunkMissingError) as missing:
            await cluster.nodes[0].replicator.read(nowhere, length=7)
        assert not missing.value.retryable
        await cluster.nodes[3].go_down()
        with pytest.raises(ChunkUnavailableError) as unavailable:
            await cluster.nodes[0].replicator.read(nowhere, length=7)
        assert unavailable.value.retryable
        assert cluster.nodes[3].node_id in unavailable.value.causes


async def test_missing_is_not_said_where_the_membership_is_uncertain() -> None:
    """A node that can't ask a majority doesn't know whom else to ask."""
    async with ring_cluster(3) as cluster:
        cluster.nodes[0].view.refresh_error = ConnectionError("no quorum")
        with pytest.raises(ChunkUnavailableError, match="membership"):
            await cluster.nodes[0].replicator.read(blake3(b"nowhere").digest(), length=7)


async def test_former_owners_are_asked_while_copies_move() -> None:
    """After a change of the ring every chunk reads on from where it was."""
    async with ring_cluster(5, in_ring=2) as cluster:
        contents = [_random(500, seed) for seed in range(20)]
        written = [await cluster.nodes[0].write(content) for content in contents]
        await eventually(lambda: all(cluster.holders(w.chunk_id) == [0, 1] for w in written))
        cluster.change_ring([2, 3, 4])
        for node in cluster.nodes:
            for chunk, content in zip(written, contents, strict=True):
                assert bytes(await node.replicator.read(chunk.chunk_id, length=500)) == content


async def test_touches_are_confirmed_by_a_quorum_of_owners_only() -> None:
    """A chunk counts as there if a quorum of its owners says so at the same epoch."""
    async with ring_cluster(4) as cluster:
        content = cluster.content_owned_by(0, 1, 2)
        written = await cluster.nodes[0].write(content)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        nowhere = blake3(b"nowhere").digest()
        asked = [written.chunk_id, nowhere]
        gateway = cluster.nodes[3].replicator
        assert await gateway.touch(asked, generation=5) == ChunksTouched(1, [True, False])
        stat = (await cluster.nodes[1].store.stat([written.chunk_id]))[0]
        assert stat is not None
        assert stat.touch == 5
        await cluster.nodes[0].go_down()
        assert (await gateway.touch(asked, generation=6)).confirmed == [True, False]
        await cluster.nodes[1].go_down()
        assert (await gateway.touch(asked, generation=7)).confirmed == [False, False]


async def test_a_touch_follows_the_ring() -> None:
    """A gateway that lags is told so by the owners it asks, learns the ring and asks the right
    ones; what it returns is of one epoch."""
    async with ring_cluster(4, in_ring=3) as cluster:
        written = await cluster.nodes[0].write(_random(1000))
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        cluster.change_ring([1, 2, 3], told=[1, 2, 3])
        touched = await cluster.nodes[0].replicator.touch([written.chunk_id], generation=5)
        assert touched == ChunksTouched(2, [True])
        cluster.change_ring([0, 3], told=[1, 2, 3])
        touched = await cluster.nodes[0].replicator.touch([written.chunk_id], generation=6)
        assert touched == ChunksTouched(3, [False])


@pytest.mark.parametrize("asking", [0, 1])
async def test_a_touch_counts_only_while_its_epoch_lasts(
    asking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner whose ring changes while it looks for the record confirms nothing for the ring of
    before, be it a peer or the gateway's own node."""
    async with ring_cluster(2, in_ring=1) as cluster:
        written = await cluster.nodes[0].write(_random(1000))
        owner = cluster.nodes[0].store
        # The gateway's own store is touched, that of a peer is asked to confirm.
        name = "touch" if asking == 0 else "confirm"
        original = getattr(owner, name)

        async def changing(*arguments: object, **options: object) -> list[bool]:
            monkeypatch.undo()
            cluster.change_ring([1], told=[0])
            found: list[bool] = await original(*arguments, **options)
            return found

        monkeypatch.setattr(owner, name, changing)
        touched = await cluster.nodes[asking].replicator.touch([written.chunk_id], generation=5)
        assert touched == ChunksTouched(2, [False])


async def test_receivers_raise_the_touch_to_their_own_generation() -> None:
    """Rule D4: touch = max(the gateway's generation, the store's own)."""
    async with ring_cluster(3) as cluster:
        cluster.nodes[1].view.number = 9
        written = await cluster.nodes[0].write(_random(1000), generation=4)
        await eventually(lambda: cluster.holders(written.chunk_id) == [0, 1, 2])
        touches = [
            stat.touch
            for node in cluster.nodes
            for stat in await node.store.stat([written.chunk_id])
            if stat is not None
        ]
        assert touches == [4, 9, 4]


async def test_clients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk that is written or read for a client is a sign of one, also in the middle of a
    long transfer."""
    async with ring_cluster(2) as cluster:
        node = cluster.nodes[0]
        noted: list[None] = []
        monkeypatch.setattr(node.replicator, "_on_client", lambda: noted.append(None))
        written = await node.write(b"for a client")
        assert len(noted) == 1
        await node.replicator.read(written.chunk_id, length=written.length)
        assert len(noted) == 2
        await node.repairer.work()
        assert len(noted) == 2


async def test_a_read_that_overtakes_a_write_notes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk may be read at quorum before this node's own copy is durable. Once that is here
    nothing is lacking, and no sweep of all chunks has to find that out."""
    async with ring_cluster(3) as cluster:
        node = cluster.nodes[0]
        content = _random(1000)
        node.store.hold_writes()
        written = await node.write(content)
        fetch = node.fetcher.read

        async def fetch_late(
            chunk_id: bytes, *, length: int, start: int, end: int, own_failure: str | None = None
        ) -> memoryview:
            data = await fetch(
                chunk_id, length=length, start=start, end=end, own_failure=own_failure
            )
            node.store.release_writes()
            await eventually(lambda: 0 in cluster.holders(chunk_id))
            return data

        monkeypatch.setattr(node.fetcher, "read", fetch_late)
        assert await node.replicator.read(written.chunk_id, length=1000) == content
        assert node.lacking == []
