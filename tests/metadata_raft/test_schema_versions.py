"""States of older software: brought up to date when opened, and nothing new before all know it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from metadata_raft.commands import (
    AdmitMember,
    BootstrapCluster,
    CreateJoinToken,
    Done,
    Failure,
    ForgetMember,
    ReportSettled,
    ResumeCollection,
    SetClusterSettings,
    SetClusterVersion,
    SetMemberIntent,
    SetMemberStage,
    UpdateMember,
)
from metadata_raft.digests import state_digest
from metadata_raft.schema_versions import SCHEMA_VERSION
from tests.fakes.metadata import ADMIN_SECRET_HASH, make_member
from tests.metadata_raft.replica import ADMIN, Replica

FIRST_SCHEMA = os.path.join(os.path.dirname(__file__), "schema_1.sql")

BOOTSTRAP = BootstrapCluster(
    cluster_id="c1d0",
    member=make_member(1),
    replicas=3,
    admin_key_id=ADMIN,
    admin_secret_hash=ADMIN_SECRET_HASH,
)


def first_state(path: Path) -> str:
    """An empty state as the first version made it, with a member; returns the path."""
    schema = Path(FIRST_SCHEMA).read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{schema} PRAGMA user_version = 1;")
    return str(path)


def test_an_upgraded_state_is_the_one_a_new_node_has(tmp_path: Path) -> None:
    """Same tables, same columns in the same order, same rows: digests can be compared (M8)."""
    old = Replica(first_state(tmp_path / "old.db"))
    new = Replica(str(tmp_path / "new.db"))
    for replica in (old, new):
        replica.do(BOOTSTRAP)
        replica.do(UpdateMember(member=make_member(1), boot_counter=1, supported_version=2))
        replica.machine.flush()
    assert state_digest(old.path) == state_digest(new.path)
    assert old.rows("PRAGMA user_version") == [(SCHEMA_VERSION,)]
    old.close()
    new.close()


def test_what_the_first_version_stored_is_kept(tmp_path: Path) -> None:
    """Members stay, and want to."""
    path = first_state(tmp_path / "old.db")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO members VALUES ('n', 'p', 'r', 'c', 'z', 7, 'voter', 3, '0.2')"
        )
    replica = Replica(path)
    with replica.snapshot() as snapshot:
        (member,) = snapshot.members()
    assert (member.member.weight, member.stage, member.boot_counter) == (7, "voter", 3)
    assert (member.intent, member.settled_epoch, member.supported_version) == ("stay", 0, 1)
    assert replica.machine.applied.cluster_version == 1
    replica.close()


@pytest.mark.parametrize(
    "command",
    [
        SetMemberIntent(node_id=make_member(1).node_id, actor=ADMIN, intent="drain"),
        ForgetMember(node_id=make_member(1).node_id),
        ReportSettled(node_id=make_member(1).node_id, epoch=1),
        SetClusterSettings(actor=ADMIN, settings={}),
        ResumeCollection(actor=ADMIN),
    ],
    ids=lambda command: type(command).__name__,
)
def test_new_commands_wait_for_their_cluster_version(
    tmp_path: Path,
    command: SetMemberIntent | ForgetMember | ReportSettled | SetClusterSettings | ResumeCollection,
) -> None:
    """While one member runs older software, what that can't read changes nothing anywhere."""
    replica = Replica(str(tmp_path / "state.db"))
    replica.do(BOOTSTRAP)
    assert replica.failure(command) == Failure(
        code="cluster_version_too_old",
        detail="This needs cluster version 2, which begins when all nodes support it.",
        retryable=True,
    )
    replica.do(SetClusterVersion(version=2))
    answer = replica.do(command)
    assert not isinstance(answer, Failure) or answer.code != "cluster_version_too_old"
    replica.close()


def test_leaving_is_no_stage_for_the_first_version(tmp_path: Path) -> None:
    """It is refused in the words of the older software, whose result has to be the same (M8)."""
    replica = Replica(str(tmp_path / "state.db"))
    replica.do(BOOTSTRAP)
    command = SetMemberStage(
        node_id=make_member(1).node_id, stage="leaving", expected_stage="voter"
    )
    assert replica.failure(command) == Failure(
        code="invalid_command", detail="'leaving' is no stage."
    )
    replica.close()


def test_raising_the_version_makes_replicas_equal_again(tmp_path: Path) -> None:
    """One had older software when the member said what it supports, and did not record it; when
    the version is raised, both say the same (M8)."""
    told, untold = (Replica(str(tmp_path / name)) for name in ("told.db", "untold.db"))
    for replica in (told, untold):
        replica.do(BOOTSTRAP)
        version = 2 if replica is told else 1
        member = UpdateMember(member=make_member(1), boot_counter=1, supported_version=version)
        replica.do(member)
    assert told.tables()["members"] != untold.tables()["members"]
    for replica in (told, untold):
        assert replica.do(SetClusterVersion(version=2)) == Done()
    assert told.tables()["members"] == untold.tables()["members"]
    told.close()
    untold.close()


def test_a_member_admitted_later_supports_what_the_cluster_runs(tmp_path: Path) -> None:
    """It could not follow otherwise."""
    replica = Replica(str(tmp_path / "state.db")).bootstrap()
    replica.do(CreateJoinToken(token_id="t", secret_hash=bytes(32), actor=ADMIN))
    replica.do(AdmitMember(token_id="t", secret_hash=bytes(32), member=make_member(2)))
    with replica.snapshot() as snapshot:
        assert [member.supported_version for member in snapshot.members()] == [2, 2]
    replica.close()
