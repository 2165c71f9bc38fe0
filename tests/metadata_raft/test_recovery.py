"""A new incarnation begins with all that its state held, under one voter, and nothing collects."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path

import msgspec
import pytest

from metadata_raft.backup import StateBackup
from metadata_raft.commands import (
    SYSTEM,
    BootstrapCluster,
    CreateBucket,
    CreateJoinToken,
    Entry,
    Proposal,
    encode,
)
from metadata_raft.configuration import COMMAND, Configuration, encode_configuration
from metadata_raft.log import ReplicatedLog
from metadata_raft.manifest import Base, Identity
from metadata_raft.records import MemberAddress
from metadata_raft.recovery import (
    GENERATION_STEP,
    RecoveryError,
    copy_own_state,
    create_directory,
    prepare_state,
    receive_backup,
)
from metadata_raft.settings import RaftSettings
from metadata_raft.state_machine import StateMachine
from metadata_raft.state_stream import StateDescription
from metadata_raft.storage import open_storage
from metadata_raft.storage_errors import StorageForeignError
from ring.filesystem import RealFileSystem, read_file, write_file_atomically
from tests.fakes.filesystem import FakeFileSystem, SimulatedCrash
from tests.metadata_raft.journal_world import SETTINGS
from tests.metadata_raft.test_backup import make_backup
from tests.metadata_raft.test_download_group import (
    FOUNDER,
    JOINER,
    KEY,
    THIRD,
    Starter,
    founder,
    join,
    member,
    put,
    settings,
    start,
    wait_for,
)

__all__ = ["start"]

DISK = RealFileSystem()
CLUSTER = "c0000000-0000-4000-8000-000000000000"
NEW = 77


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def recovered_settings(
    path: Path, node_id: str = FOUNDER, *, seeds: tuple[MemberAddress, ...] = ()
) -> RaftSettings:
    return RaftSettings(
        node_id=node_id,
        cluster_id=CLUSTER,
        incarnation=NEW,
        directory=str(path),
        listen_host="127.0.0.1",
        listen_port=0,
        cluster_key=KEY,
        seeds=seeds,
    )


def complete(directory: Path, configuration: Configuration, node_id: str = FOUNDER) -> Base:
    state = prepare_state(DISK, str(directory), node_id=node_id)
    create_directory(
        DISK,
        str(directory),
        Identity(CLUSTER, node_id, NEW),
        base=state.base,
        configuration=configuration,
    )
    return state.base


async def test_m7_a_backup_becomes_a_cluster_of_one(start: Starter, tmp_path: Path) -> None:
    """All that was there at the backup's index is there; the node leads alone, takes writes, and
    holds collection; former voters are to join again."""
    group = await founder(start, tmp_path)
    await join(start, group, settings(tmp_path, JOINER))
    await group.submit(CreateBucket(name="before", actor=SYSTEM))
    before = group.applied()
    await make_backup(group, tmp_path / "backup")
    await group.submit(CreateBucket(name="after", actor=SYSTEM))
    new = tmp_path / "new"
    new.mkdir()
    found = receive_backup(DISK, str(tmp_path / "backup"), str(new), cluster_id=CLUSTER)
    complete(new, found.configuration)

    again = await start(recovered_settings(new))
    await wait_for(lambda: again.status().role == "leader", "the recovered leader")
    assert again.status().voters == (FOUNDER,)
    applied = again.applied()
    assert applied.collection_held
    assert applied.generation == before.generation + GENERATION_STEP
    assert applied.epoch == before.epoch
    with again.snapshot() as snapshot:
        assert snapshot.bucket("before") is not None
        assert snapshot.bucket("after") is None
        assert {record.member.node_id: record.in_ring for record in snapshot.members()} == {
            FOUNDER: True,
            JOINER: False,
        }
    await put(again, "written/afterwards")


def append_of_unknown_fate(directory: Path) -> Base:
    """What a follower may hold when its leader dies: acknowledged, not known to be committed."""
    storage = open_storage(DISK, str(directory), Identity(CLUSTER, FOUNDER))
    journal = storage.journal
    index, term = journal.last_index, journal.getCurrentTerm()
    (time_ms,) = rows(directory / "state.db", "SELECT time_ms FROM cluster")[0]
    assert isinstance(time_ms, int)
    command = encode(CreateBucket(name="unknown-fate", actor=SYSTEM))
    proposal = Proposal(bytes(16), time_ms + 60_000, msgspec.Raw(command))
    journal.add(COMMAND + encode(Entry(1, 0, [proposal])), index + 1, term)
    removed = Configuration((FOUNDER,), (), (THIRD,))
    journal.add(encode_configuration(removed), index + 2, term)
    storage.close()
    return Base(index + 2, term)


async def test_m7_the_own_log_counts_to_its_end(start: Starter, tmp_path: Path) -> None:
    """What a node had acknowledged without knowing that it was committed is not lost, who was
    removed stays so, tokens of before are worthless, and what is there already is not touched."""
    group = await founder(start, tmp_path)
    await group.submit(CreateJoinToken(token_id="left", secret_hash=bytes(32), actor=SYSTEM))
    await group.stop()
    own, new = tmp_path / FOUNDER[-1], tmp_path / "new"
    end = append_of_unknown_fate(own)
    before = (own / "state.db").read_bytes()
    new.mkdir()
    found = copy_own_state(DISK, str(own), Identity(CLUSTER, FOUNDER), str(new))
    assert found.configuration == Configuration((FOUNDER,), (), (THIRD,))
    assert complete(new, found.configuration) == end
    assert rows(own / "state.db", "SELECT count(*) FROM tokens") == [(1,)]
    assert rows(new / "state.db", "SELECT count(*) FROM tokens") == [(0,)]
    assert rows(new / "state.db", "SELECT 1 FROM buckets WHERE name = 'unknown-fate'") == [(1,)]
    assert (own / "state.db").read_bytes() == before
    again = await start(recovered_settings(new))
    await wait_for(lambda: again.status().role == "leader", "the recovered leader")
    assert again.applied().index > end.index


async def test_m7_the_others_get_the_recovered_state(start: Starter, tmp_path: Path) -> None:
    """A node of the cluster that joins the new incarnation ends up equal to the recovered one."""
    group = await founder(start, tmp_path)
    former = await join(start, group, settings(tmp_path, JOINER))
    await make_backup(group, tmp_path / "backup")
    await former.stop()
    await group.stop()
    new = tmp_path / "new"
    new.mkdir()
    found = receive_backup(DISK, str(tmp_path / "backup"), str(new), cluster_id=CLUSTER)
    complete(new, found.configuration)
    again = await start(recovered_settings(new))
    await wait_for(lambda: again.status().role == "leader", "the recovered leader")
    seeds = (MemberAddress(node_id=FOUNDER, raft_address=again.listen_address),)
    fresh = await start(recovered_settings(tmp_path / "fresh", JOINER, seeds=seeds))
    await wait_for(lambda: JOINER in again.status().voters, "the node that came back to vote")
    assert fresh.applied().collection_held
    await put(again, "for/both")
    await fresh.barrier(timeout_seconds=30.0)
    assert await fresh.state_digest() == await again.state_digest()


def test_m7_a_node_the_backup_does_not_know_is_its_voter(tmp_path: Path) -> None:
    """On a new node, too, the restored state can be started: it is a member there."""
    make_founded(tmp_path)
    prepare_state(DISK, str(tmp_path), node_id=THIRD)
    members = rows(tmp_path / "state.db", "SELECT node_id, stage FROM members ORDER BY node_id")
    assert members == [(FOUNDER, "joining"), (THIRD, "voter")]


def test_m7_what_nodes_said_is_forgotten(tmp_path: Path) -> None:
    """Boots and settled epochs of a history that may be lost refuse nobody and prune nothing; the
    node that recovers goes on counting where the state knows it to be."""
    make_founded(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("UPDATE members SET boot_counter = 9, settled_epoch = 1")
        connection.execute(
            "INSERT INTO members (node_id, peer_address, raft_address, client_url, zone, weight,"
            " stage, boot_counter, software_version, settled_epoch, intent)"
            " VALUES (?, '', '', '', '', 1, 'voter', 9, '', 1, 'leave')",
            (JOINER,),
        )
        connection.execute("UPDATE members SET intent = 'leave'")
        connection.commit()
    recovered = prepare_state(DISK, str(tmp_path), node_id=FOUNDER)
    assert recovered.boot_counter == 9
    assert recovered.members == (FOUNDER, JOINER)
    columns = "SELECT node_id, boot_counter, settled_epoch, intent FROM members ORDER BY node_id"
    assert rows(tmp_path / "state.db", columns) == [
        (FOUNDER, 9, 0, "stay"),
        (JOINER, 0, 0, "leave"),
    ]


def make_founded(directory: Path) -> None:
    state = StateMachine(str(directory / "state.db"))
    founded = BootstrapCluster(
        cluster_id=CLUSTER,
        member=member(FOUNDER, "127.0.0.1:1"),
        replicas=3,
        admin_key_id="admin",
        admin_secret_hash=bytes(32),
    )
    proposal = Proposal(bytes(16), 1000, msgspec.Raw(encode(founded)))
    state.apply(1, 1, encode(Entry(1, 0, [proposal])))
    state.close()


def test_a_backup_of_another_cluster_is_refused(tmp_path: Path) -> None:
    """Before a byte of it is written."""
    backup, new = tmp_path / "backup", tmp_path / "new"
    new.mkdir()
    make_file(backup, "another")
    with pytest.raises(RecoveryError, match="is of cluster another"):
        receive_backup(DISK, str(backup), str(new), cluster_id=CLUSTER)
    assert not os.listdir(new)


def test_a_damaged_backup_is_refused(tmp_path: Path) -> None:
    """Nothing is recovered from a file that was cut off or changed."""
    backup, new = tmp_path / "backup", tmp_path / "new"
    new.mkdir()
    make_file(backup, CLUSTER)
    backup.write_bytes(backup.read_bytes()[:-1])
    with pytest.raises(RecoveryError, match="is cut off"):
        receive_backup(DISK, str(backup), str(new), cluster_id=CLUSTER)


def make_file(path: Path, cluster_id: str) -> None:
    """A backup of some bytes that are no database."""
    content = path.with_suffix(".content")
    content.write_bytes(bytes(1000))
    description = StateDescription(1, cluster_id, 1, Base(1, 1), Configuration(), 1000)

    async def pieces() -> list[bytes]:
        backup = StateBackup(DISK, str(content), description)
        found = [piece async for piece in backup]
        backup.close()
        return found

    path.write_bytes(b"".join(asyncio.run(pieces())))


OLD, RECOVERED = Identity("cluster", "node"), Identity("cluster", "node", NEW)


def recover(disk: FakeFileSystem) -> None:
    """The steps of `holdfast meta restore` on the disk, with a stand-in for the database."""
    disk.make_directory("/data/raft-77")
    disk.sync_directory("/data")
    state = disk.open("/data/raft-77/state.db", create=True)
    state.write_at(0, b"recovered")
    state.datasync()
    state.close()
    disk.sync_directory("/data/raft-77")
    create_directory(
        disk,
        "/data/raft-77",
        RECOVERED,
        base=Base(9, 4),
        configuration=Configuration(("node", "b", "c"), ("d",), ("gone",)),
        settings=SETTINGS,
    )
    write_file_atomically(disk, "/data/identity", b"new")


def old_node() -> FakeFileSystem:
    disk = FakeFileSystem()
    disk.make_directory("/data")
    disk.sync_directory("/")
    disk.make_directory("/data/raft")
    disk.sync_directory("/data")
    storage = open_storage(disk, "/data/raft", OLD, settings=SETTINGS)
    ReplicatedLog(storage.journal, Configuration(("node", "b", "c")))
    storage.close()
    write_file_atomically(disk, "/data/identity", b"old")
    return disk


def test_m7_a_crash_leaves_the_old_node_or_the_new_one() -> None:
    """At every step the power may fail: the identity decides which node it is, and its Raft
    directory opens whole."""
    seen: set[bytes] = set()
    disk = old_node()
    first = disk.steps
    recover(disk)
    for step in range(first + 1, disk.steps + 1):
        for seed in range(5):
            crashing = old_node()
            crashing.crash_at = step
            with pytest.raises(SimulatedCrash):
                recover(crashing)
            found = crashing.crashed_copy(seed)
            identity = read_file(found, "/data/identity")
            seen.add(identity)
            check_either(found, identity)
    assert seen == {b"old", b"new"}


def check_either(disk: FakeFileSystem, identity: bytes) -> None:
    if identity == b"old":
        storage = open_storage(disk, "/data/raft", OLD, settings=SETTINGS)
        assert storage.journal.last_index == 1
        # And the command can be repeated, beside what is left of its first attempt.
        return
    storage = open_storage(disk, "/data/raft-77", RECOVERED, settings=SETTINGS)
    assert read_file(disk, "/data/raft-77/state.db") == b"recovered"
    assert (storage.journal.first_index, storage.journal.term_at(9)) == (9, 4)
    assert storage.manifest.current.configuration == Configuration(("node",), (), ("gone",))


def test_m7_a_directory_of_another_incarnation_does_not_open() -> None:
    """However the files are mixed up: votes of one incarnation are never continued in another."""
    disk = old_node()
    with pytest.raises(StorageForeignError):
        open_storage(disk, "/data/raft", RECOVERED, settings=SETTINGS)
