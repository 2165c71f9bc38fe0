"""A node whose entries left the log gets the state instead, and goes on behind it (rule M6)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from blake3 import blake3

from metadata_raft.commands import (
    SYSTEM,
    AdmitMember,
    BootstrapCluster,
    BucketDone,
    CreateBucket,
    CreateJoinToken,
    Failure,
    PutFile,
)
from metadata_raft.group import MetadataGroup
from metadata_raft.journal import JournalSettings
from metadata_raft.records import MemberAddress
from metadata_raft.settings import RaftSettings
from ring.members import Member

WAIT_SECONDS = 30.0
KEY = bytes(range(32))
JOURNAL = JournalSettings(
    segment_bytes=256 * 1024, tail_entries=10, tail_bytes=64 * 1024, lease_bytes=512 * 1024
)
FOUNDER = "00000000-0000-4000-8000-000000000001"
JOINER = "00000000-0000-4000-8000-000000000002"
THIRD = "00000000-0000-4000-8000-000000000003"


def settings(directory: Path, node_id: str, **options: object) -> RaftSettings:
    return RaftSettings(
        node_id=node_id,
        cluster_id="c0000000-0000-4000-8000-000000000000",
        directory=str(directory / node_id[-1]),
        listen_host="127.0.0.1",
        listen_port=0,
        cluster_key=KEY,
        journal=JOURNAL,
        **options,  # type: ignore[arg-type] # The tests below name them.
    )


def member(node_id: str, address: str) -> Member:
    return Member(
        node_id=node_id,
        peer_address="127.0.0.1:1",
        raft_address=address,
        client_url="http://127.0.0.1:2",
    )


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        await asyncio.sleep(0.01)


async def put(group: MetadataGroup, path: str) -> None:
    content = os.urandom(3000)
    result = await group.submit(
        PutFile(
            bucket="bucket",
            path=path,
            actor=SYSTEM,
            size_bytes=len(content),
            etag=blake3(content).hexdigest(),
            inline=content,
        )
    )
    assert not isinstance(result, Failure), result


Starter = Callable[[RaftSettings], Awaitable[MetadataGroup]]


@pytest.fixture
async def start() -> AsyncIterator[Starter]:
    """Starts groups, and stops those that still run at the end; none may fail."""
    groups: list[MetadataGroup] = []
    failures: list[BaseException] = []

    async def start(settings: RaftSettings) -> MetadataGroup:
        group = MetadataGroup(settings, on_fatal=failures.append)
        groups.append(group)
        await group.start()
        return group

    yield start
    for group in reversed(groups):
        await group.stop()
    assert not failures


async def founder(start: Starter, directory: Path) -> MetadataGroup:
    """A cluster of one whose log has lost its beginning."""
    group = await start(settings(directory, FOUNDER, bootstrap=True))
    await wait_for(lambda: group.status().role == "leader", "a leader")
    await group.submit(
        BootstrapCluster(
            cluster_id="c0000000-0000-4000-8000-000000000000",
            member=member(FOUNDER, group.listen_address),
            replicas=1,
            admin_key_id="admin",
            admin_secret_hash=bytes(32),
        )
    )
    await group.submit(CreateBucket(name="bucket", actor=SYSTEM))
    await fill(group, "first")
    await wait_for(lambda: group.status().first_index > 1, "the compaction")
    return group


async def fill(group: MetadataGroup, name: str) -> None:
    """Write more than the log keeps, and compact it."""
    for batch in range(4):
        await asyncio.gather(*(put(group, f"{name}/{batch}/{number}") for number in range(100)))
    await group.checkpoint()


async def join(start: Starter, leader: MetadataGroup, settings: RaftSettings) -> MetadataGroup:
    """Start a node and admit it; returns when it votes."""
    group = await start(settings)
    secret_hash = blake3(b"secret").digest()
    token_id = f"token-{settings.node_id}"
    await leader.submit(CreateJoinToken(token_id=token_id, secret_hash=secret_hash, actor=SYSTEM))
    joining = member(settings.node_id, group.listen_address)
    result = await leader.submit(
        AdmitMember(token_id=token_id, secret_hash=secret_hash, member=joining)
    )
    assert not isinstance(result, Failure), result
    await wait_for(lambda: settings.node_id in leader.status().voters, "the joiner to vote")
    return group


async def equal(first: MetadataGroup, second: MetadataGroup) -> bool:
    """Compare two replicas at the same index: one may be an entry behind for a moment."""
    async with asyncio.timeout(60):
        while True:
            one, other = await first.state_digest(), await second.state_digest()
            if one.index == other.index:
                return one == other
            await asyncio.sleep(0.01)


async def test_m6_empty_node_downloads_the_state(start: Starter, tmp_path: Path) -> None:
    """A new node whose needed entries were compacted ends up equal to the leader, votes, and
    finds everything again after a restart."""
    leader = await founder(start, tmp_path)
    seeds = (MemberAddress(node_id=FOUNDER, raft_address=leader.listen_address),)
    joiner_settings = settings(tmp_path, JOINER, seeds=seeds)
    joiner = await join(start, leader, joiner_settings)
    await wait_for(lambda: joiner.status().first_index > 1, "its log to begin anew")
    await put(leader, "after")
    await joiner.barrier(timeout_seconds=10)
    assert await equal(leader, joiner)
    await put(joiner, "by the joiner")

    await joiner.stop()
    again = await start(joiner_settings)
    await wait_for(lambda: again.applied().index >= leader.applied().index, "the restarted node")
    await again.barrier(timeout_seconds=10)
    assert await equal(leader, again)


async def test_m6_lagging_voter_downloads_the_state(start: Starter, tmp_path: Path) -> None:
    """A voter that was away while its entries were compacted replaces its state and log, and
    answers the requests that it missed."""
    leader = await founder(start, tmp_path)
    seeds = (MemberAddress(node_id=FOUNDER, raft_address=leader.listen_address),)
    await join(start, leader, settings(tmp_path, JOINER, seeds=seeds))
    third_settings = settings(tmp_path, THIRD, seeds=seeds)
    third = await join(start, leader, third_settings)
    await put(leader, "before")
    behind = third.applied().index
    await third.stop()
    for number in range(3):
        await fill(leader, f"more-{number}")
    await wait_for(lambda: leader.status().first_index > behind + 1, "the compaction")
    again = await start(third_settings)
    await again.barrier(timeout_seconds=WAIT_SECONDS)
    await wait_for(lambda: again.status().first_index > behind, "its log to begin anew")
    with again.snapshot() as snapshot:
        assert snapshot.file("bucket", "before") is not None
        assert snapshot.file("bucket", "more-2/3/99") is not None
    await wait_for(lambda: again.applied().index == leader.applied().index, "the rest of the log")
    assert await equal(leader, again)


async def test_m6_a_lagging_voter_catches_up_under_load(start: Starter, tmp_path: Path) -> None:
    """While writing goes on the state arrives, the log goes on behind it, and a request
    of the lagging node that was carried out in what it skipped is answered, once."""
    leader = await founder(start, tmp_path)
    seeds = (MemberAddress(node_id=FOUNDER, raft_address=leader.listen_address),)
    await join(start, leader, settings(tmp_path, JOINER, seeds=seeds))
    third_settings = settings(tmp_path, THIRD, seeds=seeds)
    third = await join(start, leader, third_settings)
    await third.stop()
    # Carried out by the others while the node that asked for it was cut off.
    request_id = bytes(range(16))
    created = CreateBucket(name="skipped", actor=SYSTEM)
    assert await leader.submit(created, request_id=request_id) == BucketDone(created=True)
    behind = leader.status().last_index
    for number in range(3):
        await fill(leader, f"more-{number}")
    await wait_for(lambda: leader.status().first_index > behind, "the compaction")

    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            await put(leader, f"meanwhile/{number}")
            number += 1
            await asyncio.sleep(0.002)
        return number

    writing = asyncio.create_task(write())
    again = await start(third_settings)
    answer = await again.submit(created, request_id=request_id, timeout_seconds=WAIT_SECONDS)
    assert answer == BucketDone(created=True)
    await wait_for(lambda: again.status().first_index > behind, "its log to begin anew")
    with again.snapshot() as snapshot:
        assert snapshot.bucket("skipped") is not None
    await again.barrier(timeout_seconds=WAIT_SECONDS)
    stop.set()
    last = await writing - 1
    await again.barrier(timeout_seconds=WAIT_SECONDS)
    with again.snapshot() as snapshot:
        assert snapshot.file("bucket", f"meanwhile/{last}") is not None
    assert await equal(leader, again)
