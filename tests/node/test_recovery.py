"""Restoring on a stopped node, and coming back: the old node or the new one, never half of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from metadata_raft.commands import BootstrapCluster, Entry, Proposal, encode
from metadata_raft.configuration import COMMAND, Configuration
from metadata_raft.log import ReplicatedLog
from metadata_raft.manifest import Identity as RaftIdentity
from metadata_raft.state_machine import StateMachine
from metadata_raft.storage import open_storage
from node import recovery
from node.data_directory import DataDirectory, Identity, raft_directory_name
from node.errors import DataDirectoryError, JoinError, NodeError
from node.join import JoinToken
from node.recovery import Restored, new_incarnation, rejoin, restore
from node.settings import Settings
from ring.filesystem import RealFileSystem
from ring.members import Member

CLUSTER = "c0000000-0000-4000-8000-000000000000"
NODE = "00000000-0000-4000-8000-000000000001"
IDENTITY = Identity(
    cluster_id=CLUSTER,
    node_id=NODE,
    incarnation=5,
    boot_counter=3,
    stage="member",
    cluster_secret="5e" * 32,
    seeds=((NODE, "127.0.0.1:1"),),
)
DISK = RealFileSystem()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    """A stopped node of incarnation 5, whose log is one entry ahead of its state."""
    opened = DataDirectory.open(str(tmp_path / "data"))
    opened.write_identity(IDENTITY)
    raft = opened.directory(raft_directory_name(5))
    storage = open_storage(DISK, raft, RaftIdentity(CLUSTER, NODE, 5))
    log = ReplicatedLog(storage.journal, Configuration((NODE,)))
    log.setCurrentTerm(4, NODE)
    member = Member(
        node_id=NODE,
        peer_address="127.0.0.1:1",
        raft_address="127.0.0.1:2",
        client_url="http://127.0.0.1:3",
    )
    founded = BootstrapCluster(
        cluster_id=CLUSTER,
        member=member,
        replicas=3,
        admin_key_id="admin",
        admin_secret_hash=bytes(32),
    )
    proposal = Proposal(bytes(16), 1000, msgspec.Raw(encode(founded)))
    log.add(COMMAND + encode(Entry(1, 0, [proposal])), 2, 4)
    storage.close()
    StateMachine(os.path.join(raft, "state.db")).close()
    yield opened
    opened.close()


def yes(_: object) -> bool:
    return True


def test_m7_a_restore_is_one_write(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the identity is written the node is the old one, whatever fails; then it is the new
    one, and its former metadata are kept."""

    def fails(_: object) -> None:
        raise OSError("the disk failed")

    with monkeypatch.context() as failing:
        failing.setattr(directory, "write_identity", fails)
        with pytest.raises(NodeError, match="the disk failed"):
            restore(directory, None, confirm=yes)
    assert directory.identity() == IDENTITY

    restored = restore(directory, None, confirm=yes)
    assert restored is not None
    identity = directory.identity()
    assert identity is not None
    assert identity.incarnation == restored.incarnation > IDENTITY.incarnation
    assert (identity.node_id, identity.cluster_secret) == (NODE, IDENTITY.cluster_secret)
    assert identity.seeds == ()
    # The first attempt had to leave its directory: the write may have failed after it counted.
    assert sorted(name for name in os.listdir(directory.path) if name.startswith("raft")) == sorted(
        ["raft-5", raft_directory_name(restored.incarnation)]
    )
    assert restored.kept == os.path.join(directory.path, "raft-5")
    assert os.path.exists(os.path.join(restored.kept, "state.db"))
    assert restored.index == 2
    path = os.path.join(directory.path, raft_directory_name(restored.incarnation))
    opened = open_storage(DISK, path, RaftIdentity(CLUSTER, NODE, restored.incarnation))
    assert opened.manifest.current.configuration == Configuration((NODE,))
    opened.close()


def test_what_a_crash_left_is_cleared(directory: DataDirectory) -> None:
    """A directory that a restore did not finish counts for nothing, and goes with the next."""
    left = Path(directory.directory(raft_directory_name(99)))
    (left / "state.db").write_bytes(b"half")
    restored = restore(directory, None, confirm=yes)
    assert restored is not None
    assert not left.exists()


def test_a_restore_that_is_not_confirmed_changes_nothing(directory: DataDirectory) -> None:
    """What would be done is known by then, and shown."""
    shown: list[Restored] = []

    def no(restored: Restored) -> bool:
        shown.append(restored)
        return False

    assert restore(directory, None, confirm=no) is None
    assert directory.identity() == IDENTITY
    assert os.listdir(directory.path).count("raft-5") == 1
    assert shown[0].members == (NODE,)
    assert not os.path.exists(
        os.path.join(directory.path, raft_directory_name(shown[0].incarnation))
    )


def test_restoring_needs_something_to_restore_from(tmp_path: Path) -> None:
    """Neither an empty directory nor a node that was never admitted has metadata of its own."""
    empty = DataDirectory.open(str(tmp_path / "empty"))
    with pytest.raises(DataDirectoryError, match="name a backup"):
        restore(empty, None, confirm=yes)
    empty.write_identity(msgspec.structs.replace(IDENTITY, cluster_secret="", stage="joining"))
    with pytest.raises(DataDirectoryError, match="never admitted"):
        restore(empty, None, confirm=yes)
    empty.write_identity(IDENTITY)
    with pytest.raises(NodeError, match="restore it from a backup"):
        restore(empty, None, confirm=yes)
    empty.close()


def test_a_damaged_directory_is_not_restored_from(directory: DataDirectory) -> None:
    """A log with a hole is no state of the cluster; a backup is asked for."""
    raft = os.path.join(directory.path, "raft-5")
    os.unlink(os.path.join(raft, "vote"))
    with pytest.raises(NodeError, match="missing beside a journal"):
        restore(directory, None, confirm=yes)
    assert directory.identity() == IDENTITY


def test_m7_incarnations_never_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is greater than all that are known, and two recoveries of the same cluster differ."""
    made = {new_incarnation(3, 7) for _ in range(50)}
    assert len(made) == 50
    assert min(made) > 7
    assert max(made) <= 8 + recovery.INCARNATION_STEP_MAX
    monkeypatch.setattr("secrets.randbelow", lambda _: 0)
    assert new_incarnation(3, 7) == new_incarnation(7, 3) == 8


def token_of(incarnation: int, cluster_id: str = CLUSTER) -> JoinToken:
    return JoinToken(1, cluster_id, "1", bytes(32), (), incarnation)


async def test_m7_a_node_comes_back_only_into_a_higher_incarnation(
    directory: DataDirectory,
) -> None:
    """By the token as well as by the answer: within an incarnation it would forget its votes."""
    asked: list[int] = []

    async def answer(token: JoinToken, identity: Identity, member: Member) -> Identity:
        asked.append(token.incarnation)
        assert member.node_id == NODE
        return msgspec.structs.replace(identity, incarnation=answers, seeds=(("s", "h:1"),))

    settings = Settings(data=directory.path)
    answers = 9
    for incarnation in (1, 4, 5):
        with pytest.raises(JoinError, match="must not forget what it has voted"):
            await rejoin(directory, token_of(incarnation), settings, confirm=yes, ask=answer)
    with pytest.raises(JoinError, match="to cluster"):
        await rejoin(directory, token_of(9, "other"), settings, confirm=yes, ask=answer)
    assert asked == []
    answers = 5
    with pytest.raises(JoinError, match="must not forget what it has voted"):
        await rejoin(directory, token_of(9), settings, confirm=yes, ask=answer)
    assert await rejoin(directory, token_of(9), settings, confirm=lambda _: False) is None
    assert directory.identity() == IDENTITY

    answers = 9
    back = await rejoin(directory, token_of(9), settings, confirm=yes, ask=answer)
    assert back == directory.identity()
    assert back is not None
    assert (back.node_id, back.boot_counter, back.stage) == (NODE, 3, "joining")
    assert back.incarnation == 9
    # Its next start begins with an empty Raft directory, and the former one is kept.
    names = DISK.names(directory.path)
    assert "raft-5" in names
    assert "raft-9" not in names


def test_directories_of_unfinished_restores_make_no_directory_foreign(tmp_path: Path) -> None:
    """A restore on an empty directory can be repeated; anything else there is still refused."""
    opened = DataDirectory.open(str(tmp_path / "data"))
    opened.directory("raft-8")
    assert opened.identity() is None
    shutil.rmtree(tmp_path / "data" / "raft-8")
    opened.directory("raft")
    with pytest.raises(DataDirectoryError, match="not a data directory"):
        opened.identity()
    opened.close()
