"""`MetadataGroup` on real sockets, disks and threads: the contract the rest of a node relies on."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from metadata_raft.commands import (
    AdmitMember,
    AdvanceGeneration,
    BootstrapCluster,
    Command,
    CreateJoinToken,
    Done,
    Failure,
    FilePut,
    ForgetMember,
    PutFile,
    Result,
    SetClusterVersion,
    SetMemberIntent,
    SetMemberStage,
    UpdateMember,
)
from metadata_raft.errors import (
    CommandTooLargeError,
    MembershipChangeError,
    MetadataError,
    NoQuorumError,
    NotSubmittedError,
    OutcomeUnknownError,
    RemovedError,
    RestoredDiskError,
)
from metadata_raft.group import MetadataGroup
from metadata_raft.journal import JournalSettings
from metadata_raft.readers import CONNECTIONS_MAX
from metadata_raft.records import AppliedState, MemberAddress
from metadata_raft.settings import RaftSettings
from metadata_raft.state_errors import StateCorruptError
from ring.members import Member, NodeId

SECRET = b"join"
SMALL_JOURNAL = JournalSettings(
    segment_bytes=256 * 1024, tail_entries=50, tail_bytes=256 * 1024, reserve_bytes=1024 * 1024
)


class Cluster:
    """Groups in this process, each with its own directory, thread and socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.groups: list[MetadataGroup] = []
        self.settings: list[RaftSettings] = []
        self.fatal: list[BaseException] = []

    async def start(self, *, bootstrap: bool = False, seeds: tuple[int, ...] = ()) -> MetadataGroup:
        number = len(self.settings)
        self.settings.append(
            RaftSettings(
                node_id=str(uuid.UUID(int=number + 1)),
                cluster_id="test",
                directory=str(self.directory / str(number)),
                listen_host="127.0.0.1",
                listen_port=0,
                cluster_key=b"k" * 32,
                bootstrap=bootstrap,
                journal=SMALL_JOURNAL,
                seeds=tuple(
                    MemberAddress(
                        node_id=self.settings[each].node_id,
                        raft_address=self.groups[each].listen_address,
                    )
                    for each in seeds
                ),
            )
        )
        group = await self.run(number)
        self.groups.append(group)
        return group

    async def run(self, number: int) -> MetadataGroup:
        group = MetadataGroup(self.settings[number], on_fatal=self.fatal.append)
        await group.start()
        return group

    async def restart(self, number: int) -> MetadataGroup:
        await self.groups[number].stop()
        self.groups[number] = await self.run(number)
        return self.groups[number]

    def member(self, number: int) -> Member:
        return Member(
            node_id=self.settings[number].node_id,
            peer_address="127.0.0.1:1",
            raft_address=self.groups[number].listen_address,
            client_url="http://127.0.0.1:1",
        )

    async def found(self) -> MetadataGroup:
        group = await self.start(bootstrap=True)
        result = await group.submit(
            BootstrapCluster(
                cluster_id="test",
                member=self.member(0),
                replicas=3,
                admin_key_id="a" * 16,
                admin_secret_hash=bytes(32),
                open_bucket="default",
            )
        )
        assert isinstance(result, Done)
        return group

    async def join(self) -> MetadataGroup:
        """Start one more node and wait until it votes."""
        group = await self.start(seeds=(0,))
        number = len(self.groups) - 1
        token = CreateJoinToken(
            token_id=f"token-{number}", secret_hash=blake3(SECRET).digest(), actor="system"
        )
        admission = AdmitMember(
            token_id=token.token_id,
            secret_hash=blake3(SECRET).digest(),
            member=self.member(number),
        )
        for command in (token, admission):
            result = await self.groups[0].submit(command)
            assert not isinstance(result, Failure), result
        await until(lambda: group.status().role in ("follower", "leader"))
        return group

    def leader(self) -> MetadataGroup | None:
        leading = [group for group in self.groups if group.status().role == "leader"]
        return leading[0] if len(leading) == 1 else None


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    await asyncio.gather(*(group.stop() for group in cluster.groups))
    assert cluster.fatal == []


async def until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110 - bounded by the limit.
            await asyncio.sleep(0.01)


def put(path: str, content: bytes = b"content") -> PutFile:
    return PutFile(
        bucket="default",
        path=path,
        actor="system",
        size_bytes=len(content),
        etag="etag",
        inline=content,
    )


async def test_a_new_cluster_of_one(cluster: Cluster) -> None:
    """It elects itself at once; what it was told is there after a restart."""
    group = await cluster.found()
    seen: list[AppliedState] = []
    group.add_listener(seen.append)
    result = await group.submit(put("one"))
    assert isinstance(result, FilePut)
    index = await group.barrier()
    assert group.applied().index >= index
    assert seen[-1] == group.applied()
    group = await cluster.restart(0)
    await group.barrier(timeout_seconds=5)
    with group.snapshot() as snapshot:
        file = snapshot.file("default", "one")
        assert file is not None
        assert file.inline == b"content"


async def test_the_same_request_twice_takes_effect_once(cluster: Cluster) -> None:
    """With the caller's own id a repetition is answered with the first result (rule M1)."""
    group = await cluster.found()
    first, second = await asyncio.gather(
        group.submit(put("one"), request_id=b"r" * 16),
        group.submit(put("one"), request_id=b"r" * 16),
    )
    third = await group.submit(put("one"), request_id=b"r" * 16)
    assert first == second == third
    other = await group.submit(put("one"), request_id=b"s" * 16)
    assert other != first


async def test_one_two_three_nodes_under_load(cluster: Cluster) -> None:
    """Growing to three voters while every node is written to: nothing fails, states are equal,
    every node answers linearizable reads of what another acknowledged."""
    await cluster.found()
    stop = asyncio.Event()
    written: list[str] = []

    async def write(group: MetadataGroup, name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = f"{name}-{number}"
            assert isinstance(await group.submit(put(path)), FilePut)
            written.append(path)
            if number % 10 == 0:
                other = cluster.groups[number % len(cluster.groups)]
                await other.barrier(timeout_seconds=5)
                with other.snapshot() as snapshot:
                    assert snapshot.file("default", path) is not None

    writers = [asyncio.create_task(write(cluster.groups[0], "a"))]
    for name in ("b", "c"):
        group = await cluster.join()
        writers.append(asyncio.create_task(write(group, name)))
    await until(lambda: len(written) > 1500)
    stop.set()
    await asyncio.gather(*writers)

    await until(lambda: set(stages(cluster.groups[0]).values()) == {"voter"})
    for group in cluster.groups:
        await group.barrier()
        assert len(group.status().voters) == 3
    await until(lambda: len({group.applied().index for group in cluster.groups}) == 1)
    digests = [await group.state_digest() for group in cluster.groups]
    assert digests[0] == digests[1] == digests[2]


async def test_a_removed_node_is_told_and_stops_serving(cluster: Cluster) -> None:
    """The leader removes a voter: the node learns of it and refuses, the others go on (M7)."""
    await cluster.found()
    await cluster.join()
    await cluster.join()
    leader = cluster.leader()
    assert leader is not None
    number = (cluster.groups.index(leader) + 1) % 3
    gone = cluster.groups[number]
    with pytest.raises(MembershipChangeError, match="ask the leader"):
        await gone.remove_member(cluster.settings[number].node_id)
    await leader.remove_member(cluster.settings[number].node_id)
    await until(lambda: gone.is_removed)
    with pytest.raises(RemovedError):
        await gone.submit(put("never"))
    assert isinstance(await leader.submit(put("after")), FilePut)
    assert len(leader.status().voters) == 2


async def test_what_older_software_cannot_read_does_not_enter_the_log(cluster: Cluster) -> None:
    """It would be refused there and carried out here; after the version has risen, it is taken."""
    group = await cluster.found()
    command = SetMemberIntent(node_id=cluster.settings[0].node_id, actor="system", intent="stay")
    before = group.applied().index
    refused = await group.submit(command)
    assert isinstance(refused, Failure)
    assert (refused.code, refused.retryable) == ("cluster_version_too_old", True)
    assert group.applied().index == before
    await group.submit(SetClusterVersion(version=2))
    assert await group.submit(command) == Done()


async def test_a_node_removed_long_ago_is_told_when_it_comes_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is gone, and the configuration has forgotten it too; the state remembers (M7)."""
    monkeypatch.setattr("metadata_raft.configuration.REMOVED_LIMIT", 1)
    founder = await cluster.found()
    await founder.submit(SetClusterVersion(version=2))
    await cluster.join()
    await cluster.join()
    nodes = [settings.node_id for settings in cluster.settings]
    await until(lambda: stages(founder) == dict.fromkeys(nodes, "voter"))
    await cluster.groups[1].stop()
    for node_id in nodes[1:]:
        for command in (
            SetMemberIntent(node_id=node_id, actor="system", intent="remove"),
            SetMemberStage(node_id=node_id, stage="leaving", expected_stage="voter"),
        ):
            assert await patiently(founder, command) == Done()
        await until_removed(founder, node_id)
        assert await patiently(founder, ForgetMember(node_id=node_id)) == Done()
    assert founder.status().voters == (nodes[0],)
    await cluster.groups[2].stop()  # It has been removed too, and remembers who was before it.
    again = await cluster.restart(1)
    await until(lambda: again.is_removed)
    with pytest.raises(RemovedError):
        await again.barrier()


async def test_m7_a_restored_disk_takes_no_part(cluster: Cluster) -> None:
    """A member that was started fewer times than the cluster knows is heard by nobody: it commits
    nothing, learns why, and refuses; with its newest disk it is a member as before."""
    founder = await cluster.found()
    await cluster.join()
    announced = UpdateMember(member=cluster.member(1), boot_counter=7)
    assert await patiently(founder, announced) == Done()
    await cluster.groups[1].stop()
    cluster.settings[1] = replace(cluster.settings[1], boot_counter=6)
    restored = await cluster.restart(1)
    await until(lambda: restored.later_boot == 7)
    with pytest.raises(RestoredDiskError):
        await restored.submit(put("never"))
    with pytest.raises(NoQuorumError):
        await founder.barrier()
    await restored.stop()
    cluster.settings[1] = replace(cluster.settings[1], boot_counter=7)
    newest = await cluster.restart(1)
    await until(lambda: newest.status().leader_id is not None)
    assert isinstance(await patiently(newest, put("after")), FilePut)
    assert newest.later_boot == 0


async def until_removed(group: MetadataGroup, node_id: NodeId) -> None:
    await until(lambda: group.status().removed == (node_id,))


def stages(group: MetadataGroup) -> dict[NodeId, str]:
    with group.snapshot() as snapshot:
        return {each.member.node_id: each.stage for each in snapshot.members()}


async def patiently(group: MetadataGroup, command: Command) -> Result:
    """Submit until a leader has taken it; for commands that may be repeated."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await group.submit(command)
            except MetadataError:
                await asyncio.sleep(0.05)


async def test_a_stopped_leader_hands_over(cluster: Cluster) -> None:
    """After a clean stop of the leader the others go on at once; back again, it catches up."""
    await cluster.found()
    await cluster.join()
    await cluster.join()
    leader = cluster.leader()
    assert leader is not None
    number = cluster.groups.index(leader)
    other = cluster.groups[(number + 1) % 3]
    await leader.stop()
    async with asyncio.timeout(2):
        assert isinstance(await other.submit(put("after")), FilePut)
    cluster.groups[number] = await cluster.run(number)
    await cluster.groups[number].barrier(timeout_seconds=10)
    with cluster.groups[number].snapshot() as snapshot:
        assert snapshot.file("default", "after") is not None


async def test_without_a_majority_nothing_is_promised(cluster: Cluster) -> None:
    """One of two left: reads and fresh writes fail within a second or so, and say that nothing
    happened, or that it is unknown."""
    await cluster.found()
    await cluster.join()
    leader = cluster.leader()
    assert leader is not None
    (other,) = (group for group in cluster.groups if group is not leader)
    await other.stop()
    async with asyncio.timeout(3):
        with pytest.raises(NoQuorumError):
            await leader.barrier(timeout_seconds=1.0)
    await until(lambda: leader.status().role != "leader")
    async with asyncio.timeout(2):
        with pytest.raises(NoQuorumError):
            await leader.submit(put("never"))


async def test_a_submitted_command_without_answer_is_unknown(cluster: Cluster) -> None:
    """In the log of a leader whose follower is gone it may or may not live: the error names the
    id with which to ask again."""
    await cluster.found()
    await cluster.join()
    leader = cluster.leader()
    assert leader is not None
    (other,) = (group for group in cluster.groups if group is not leader)
    await other.stop()
    with pytest.raises(OutcomeUnknownError) as caught:
        await leader.submit(put("perhaps"), request_id=b"p" * 16, timeout_seconds=0.5)
    assert caught.value.request_id == b"p" * 16
    number = cluster.groups.index(other)
    cluster.groups[number] = await cluster.run(number)
    await until(lambda: cluster.leader() is not None)
    again = await leader.submit(put("perhaps"), request_id=b"p" * 16)
    assert isinstance(again, FilePut)
    assert again == await leader.submit(put("perhaps"), request_id=b"p" * 16)


async def test_a_joiner_behind_the_log_gets_the_state(cluster: Cluster) -> None:
    """The log of the first node no longer begins at the beginning; the second downloads the state
    and votes (rules M4, M6)."""
    group = await cluster.found()
    for round_number in range(12):
        await asyncio.gather(
            *(group.submit(put(f"{round_number}-{each}", bytes(4000))) for each in range(20))
        )
    durable = await group.checkpoint()
    assert group.applied().index == durable
    await until(lambda: group.status().first_index > 2)
    joined = await cluster.join()
    await joined.barrier(timeout_seconds=5)
    with joined.snapshot() as snapshot:
        assert snapshot.file("default", "11-19") is not None
    await until(lambda: joined.applied().index == group.applied().index)
    assert await joined.state_digest() == await group.state_digest()


async def test_a_command_must_fit(cluster: Cluster) -> None:
    """One that fills more than an entry is refused before it goes anywhere (rule M2)."""
    group = await cluster.found()
    with pytest.raises(CommandTooLargeError):
        await group.submit(put("huge", bytes(300_000)))


async def test_a_stopped_group_refuses(cluster: Cluster) -> None:
    """After stop nothing is accepted, and nobody waits for ever."""
    group = await cluster.found()
    waiting = asyncio.create_task(group.submit(AdvanceGeneration(expected=99)))
    await group.stop()
    await asyncio.wait([waiting])
    assert waiting.exception() is None or isinstance(
        waiting.exception(), OutcomeUnknownError | NotSubmittedError
    )
    with pytest.raises(NoQuorumError):
        await group.submit(put("one"))
    with pytest.raises(NoQuorumError):
        await group.barrier()


async def test_a_failing_state_machine_is_fatal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while applying is told once, the raft thread ends, nobody gets an answer that
    can't be trusted."""
    group = await cluster.found()

    def broken(self: object, index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
        raise RuntimeError("the state is gone")

    monkeypatch.setattr("metadata_raft.state_machine.StateMachine.apply", broken)
    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknownError, match="the state is gone"):
            await group.submit(put("one"))
    assert [str(error) for error in cluster.fatal] == ["the state is gone"]
    cluster.fatal.clear()


async def test_a_failed_checkpoint_is_fatal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for it is told, and the node ends all the same (rule M4)."""
    group = await cluster.found()

    def broken(self: object) -> int:
        raise StateCorruptError("the state is gone")

    monkeypatch.setattr("metadata_raft.state_machine.StateMachine.checkpoint", broken)
    with pytest.raises(StateCorruptError):
        await group.checkpoint()
    await until(lambda: [str(error) for error in cluster.fatal] == ["the state is gone"])
    cluster.fatal.clear()


async def test_busy_readers_end_nothing(cluster: Cluster) -> None:
    """Where clients use every read connection at once, the raft thread reads the members later."""
    group = await cluster.found()
    version = group.applied().members_version
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS_MAX):
            held.enter_context(group.snapshot())
        moved = msgspec.structs.replace(cluster.member(0), client_url="http://127.0.0.1:2")
        update = UpdateMember(member=moved, boot_counter=1, software_version="1")
        assert isinstance(await group.submit(update), Done)
        await until(lambda: group.applied().members_version > version)
        await asyncio.sleep(0.3)  # Some ticks, and a look at the membership.
    await group.submit(put("after"))
    assert cluster.fatal == []


async def test_a_listener_that_fails_stops_nobody_else(cluster: Cluster) -> None:
    """Its error goes to the loop; the other listeners, and answers behind it, are delivered."""
    group = await cluster.found()
    told: list[dict[str, object]] = []
    seen: list[AppliedState] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    def fail(applied: AppliedState) -> None:
        raise ValueError("a listener's own")

    group.add_listener(fail)
    group.add_listener(seen.append)
    async with asyncio.timeout(5):
        await asyncio.gather(*(group.submit(put(f"{each}")) for each in range(10)))
    assert seen
    assert "a listener's own" in str(told[0]["exception"])


async def test_a_start_that_is_cancelled_ends(cluster: Cluster) -> None:
    """It leaves no thread behind that goes on as a member."""
    await cluster.found()
    await cluster.groups[0].stop()
    group = MetadataGroup(cluster.settings[0], on_fatal=cluster.fatal.append)
    starting = asyncio.create_task(group.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting], timeout=5)
    assert starting.cancelled()
    cluster.groups[0] = await cluster.run(0)


async def test_a_taken_port_and_a_foreign_directory_are_told(cluster: Cluster) -> None:
    """Starting fails with the error itself, and leaves nothing running."""
    group = await cluster.found()
    host, port = group.listen_address.rsplit(":", 1)
    taken = RaftSettings(
        node_id="x",
        cluster_id="test",
        directory=str(cluster.directory / "x"),
        listen_host=host,
        listen_port=int(port),
        cluster_key=b"k" * 32,
    )
    with pytest.raises(OSError, match="address already in use"):
        await MetadataGroup(taken).start()
