"""What a start is: decided by the data directory, and refused where it contradicts itself."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from node.data_directory import Identity
from node.errors import DataDirectoryError, JoinError
from node.join import JoinToken
from node.start_plan import plan_start

CLUSTER = Identity(
    cluster_id=str(uuid.UUID(int=1)),
    node_id=str(uuid.UUID(int=2)),
    stage="member",
    cluster_secret="5e" * 32,
)
TOKEN = JoinToken(version=1, cluster_id=CLUSTER.cluster_id, token_id="1", secret=bytes(32), urls=())


def test_an_empty_directory_founds_or_joins_as_it_is_told() -> None:
    """New ids each time; the cluster's id comes from the token where there is one."""
    founding = plan_start(None, join=False, token=None, path="/d")
    other = plan_start(None, join=False, token=None, path="/d")
    assert (founding.kind, founding.identity.stage) == ("found", "founding")
    assert founding.identity.cluster_id != other.identity.cluster_id
    assert founding.identity.cluster_secret != other.identity.cluster_secret
    joined = plan_start(None, join=True, token=TOKEN, path="/d")
    assert (joined.kind, joined.identity.stage) == ("join", "joining")
    assert joined.identity.cluster_id == TOKEN.cluster_id
    uuid.UUID(joined.identity.node_id)


def test_what_was_begun_is_taken_up_again() -> None:
    """A crash at any step of founding or joining is followed by the same node going on."""
    for stage in ("founding", "joining", "member"):
        stored = msgspec.structs.replace(CLUSTER, stage=stage)
        assert plan_start(stored, join=False, token=None, path="/d") == (stored, "continue")
    admitted = msgspec.structs.replace(CLUSTER, stage="joining")
    assert plan_start(admitted, join=True, token=None, path="/d").kind == "continue"
    asked = msgspec.structs.replace(CLUSTER, stage="joining", cluster_secret="")
    assert plan_start(asked, join=True, token=TOKEN, path="/d") == (asked, "join")


def test_contradictions_are_refused_with_a_sentence() -> None:
    """Nothing is guessed where directory, flag and token don't fit together."""
    asked = msgspec.structs.replace(CLUSTER, stage="joining", cluster_secret="")
    with pytest.raises(JoinError, match="has not been admitted"):
        plan_start(asked, join=False, token=None, path="/d")
    with pytest.raises(JoinError, match="HOLDFAST_JOIN_TOKEN_FILE"):
        plan_start(None, join=True, token=None, path="/d")
    elsewhere = msgspec.structs.replace(TOKEN, cluster_id=str(uuid.UUID(int=9)))
    with pytest.raises(DataDirectoryError, match="Name an empty directory to join that one"):
        plan_start(CLUSTER, join=True, token=elsewhere, path="/d")
    founding = msgspec.structs.replace(CLUSTER, stage="founding")
    with pytest.raises(DataDirectoryError, match="founds a cluster of its own"):
        plan_start(founding, join=True, token=None, path="/d")
