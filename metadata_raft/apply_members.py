"""Commands on who is in the cluster: bootstrap, join tokens, members and ring epochs.

A member is a row that its node keeps true; the ring is another matter: an epoch is an immutable
row, and `ChangeRing` makes the next. How a member moves on and leaves: `apply_departures.py`.
"""

from __future__ import annotations

import msgspec

from metadata_raft import access
from metadata_raft.apply_buckets import add_bucket
from metadata_raft.apply_keys import add_key
from metadata_raft.commands import (
    NAME_LENGTH_LIMIT,
    SYSTEM,
    AdmitMember,
    BootstrapCluster,
    ChangeRing,
    CreateJoinToken,
    Done,
    Failure,
    Result,
    RingChanged,
    UpdateMember,
)
from metadata_raft.names import bucket_name_problem
from metadata_raft.working_state import WorkingState
from ring.members import Member, NodeId

MEMBER_COLUMNS = "node_id, peer_address, raft_address, client_url, zone, weight"
"""The columns of `members` that make a `Member`, in the order of its fields."""

WEIGHT_MAX = 1_000_000

_encode = msgspec.msgpack.Encoder().encode
_decode_members = msgspec.msgpack.Decoder(tuple[Member, ...]).decode


def bootstrap_cluster(state: WorkingState, command: BootstrapCluster) -> Result:
    """Give a new cluster its identity, first member, first ring epoch and admin key."""
    cluster = state.cluster
    if cluster.cluster_id:
        return Failure(
            code="already_bootstrapped", detail=f"This is cluster {cluster.cluster_id} already."
        )
    problem = _member_problem(command.member)
    if problem is None and command.open_bucket is not None:
        problem = bucket_name_problem(command.open_bucket)
    if problem is not None or command.admin_key_id == SYSTEM or command.admin_key_id in state.roles:
        return _invalid(f"The first member, key or bucket is wrong: {problem or 'the key id'}.")
    cluster.cluster_id = command.cluster_id
    _insert_member(state, command.member, stage="voter")
    _insert_epoch(state, (command.member,), replicas=command.replicas)
    add_key(
        state,
        key_id=command.admin_key_id,
        secret_hash=command.admin_secret_hash,
        role="admin",
        description="made at first start",
    )
    if command.open_bucket is not None and state.bucket(command.open_bucket) is None:
        add_bucket(state, name=command.open_bucket, owner=SYSTEM, visibility="public-read-write")
    return Done()


def create_join_token(state: WorkingState, command: CreateJoinToken) -> Result:
    """Store a token that one node may spend before it expires."""
    if not access.may_administer(state.role(command.actor)):
        return Failure(code="forbidden", detail="Only an admin key may create join tokens.")
    existing = state.execute(
        "SELECT secret_hash FROM tokens WHERE token_id = ?", (command.token_id,)
    ).fetchone()
    if existing is not None:
        if existing[0] == command.secret_hash:
            return Done()
        return _invalid(f"The token id '{command.token_id}' is taken already.")
    state.execute(
        "INSERT INTO tokens VALUES (?, ?, ?, NULL)",
        (command.token_id, command.secret_hash, state.cluster.time_ms + command.lifetime_ms),
    )
    return Done()


def admit_member(state: WorkingState, command: AdmitMember) -> Result:
    """Spend a token and record its bearer as joining; the same node may repeat it until its start.

    A node announces its first start when it has all that it asked for. From then on its id is
    admitted no more: a token would tell the cluster's secret to whoever finds it later, and a
    directory from before has forgotten what this node has voted since (rule M7). A recovery begins
    anew (`recovery.py`).
    """
    problem = _member_problem(command.member)
    if problem is not None:
        return _invalid(f"The member {problem}.")
    token = state.execute(
        "SELECT secret_hash, expires_ms, spent_by FROM tokens WHERE token_id = ?",
        (command.token_id,),
    ).fetchone()
    if token is None or token[0] != command.secret_hash:
        return Failure(code="token_invalid", detail="The join token is not one of this cluster.")
    _, expires_ms, spent_by = token
    node_id = command.member.node_id
    departed = state.execute("SELECT 1 FROM departed WHERE node_id = ?", (node_id,)).fetchone()
    if departed is not None:
        return Failure(
            code="member_removed",
            detail=f"Node {node_id} was removed from the cluster; it has to join under a new id.",
        )
    row = state.execute("SELECT boot_counter FROM members WHERE node_id = ?", (node_id,)).fetchone()
    known = row is not None
    started = known and row[0] > 0 and state.cluster.cluster_version >= 2
    if known and spent_by == node_id and not started:
        return Done()
    if spent_by is not None:
        return Failure(code="token_invalid", detail="The join token has been used already.")
    if state.cluster.time_ms > expires_ms:
        return Failure(code="token_invalid", detail="The join token has expired.")
    if started:
        return Failure(
            code="token_invalid",
            detail=f"Node {node_id} is a member and was started as one; it can't join once more.",
        )
    state.execute("UPDATE tokens SET spent_by = ? WHERE token_id = ?", (node_id, command.token_id))
    if not known:
        _insert_member(state, command.member, stage="joining")
    return Done()


def update_member(state: WorkingState, command: UpdateMember) -> Result:
    """Record what a node says about itself; an older boot than the last one known is refused."""
    member = command.member
    problem = _member_problem(member)
    if problem is not None:
        return _invalid(f"The member {problem}.")
    before = state.execute(
        f"SELECT {MEMBER_COLUMNS}, boot_counter, software_version, supported_version"
        " FROM members WHERE node_id = ?",
        (member.node_id,),
    ).fetchone()
    if before is None:
        return no_such_member(member.node_id)
    if command.boot_counter < before[6]:
        return Failure(
            code="stale_expectation",
            detail=f"Boot {command.boot_counter} of node {member.node_id} is older than "
            f"boot {before[6]}: its disk is a restored snapshot.",
        )
    after = (
        *msgspec.structs.astuple(member),
        command.boot_counter,
        command.software_version,
        command.supported_version,
    )
    if after != before:
        state.execute(
            "UPDATE members SET peer_address = ?2, raft_address = ?3, client_url = ?4, zone = ?5,"
            " weight = ?6, boot_counter = ?7, software_version = ?8, supported_version = ?9"
            " WHERE node_id = ?1",
            after,
        )
        state.cluster.members_version += 1
    return Done()


def change_ring(state: WorkingState, command: ChangeRing) -> Result:
    """Make the next epoch from these members as they are recorded now."""
    cluster = state.cluster
    if command.expected_epoch != cluster.epoch:
        return Failure(
            code="stale_expectation",
            detail=f"The ring is in epoch {cluster.epoch}, not {command.expected_epoch}.",
        )
    if len(set(command.node_ids)) != len(command.node_ids):
        return _invalid("A node is named twice.")
    members: list[Member] = []
    for node_id in sorted(command.node_ids):
        row = state.execute(
            f"SELECT {MEMBER_COLUMNS} FROM members WHERE node_id = ?", (node_id,)
        ).fetchone()
        if row is None:
            return no_such_member(node_id)
        members.append(member_from_row(row))
    _insert_epoch(state, tuple(members), replicas=command.replicas)
    if command.raise_floor:
        cluster.epoch_floor = cluster.epoch
    return RingChanged(epoch=cluster.epoch)


def ring_members(state: WorkingState) -> set[NodeId]:
    """The ids of the current ring's members; the set is small and has no order to depend on."""
    row = state.execute(
        "SELECT members FROM epochs WHERE epoch = ?", (state.cluster.epoch,)
    ).fetchone()
    return set() if row is None else {member.node_id for member in _decode_members(row[0])}


def member_from_row(row: tuple[str, str, str, str, str, int]) -> Member:
    """A `Member` from the columns `MEMBER_COLUMNS`."""
    node_id, peer_address, raft_address, client_url, zone, weight = row
    return Member(
        node_id=node_id,
        peer_address=peer_address,
        raft_address=raft_address,
        client_url=client_url,
        zone=zone,
        weight=weight,
    )


def _insert_member(state: WorkingState, member: Member, *, stage: str) -> None:
    state.execute(
        f"INSERT INTO members ({MEMBER_COLUMNS}, stage, boot_counter, software_version,"
        " supported_version) VALUES (?, ?, ?, ?, ?, ?, ?, 0, '', ?)",
        (*msgspec.structs.astuple(member), stage, state.cluster.cluster_version),
    )
    state.cluster.members_version += 1


def _insert_epoch(state: WorkingState, members: tuple[Member, ...], *, replicas: int) -> None:
    cluster = state.cluster
    cluster.epoch += 1
    cluster.replicas = replicas
    cluster.members_version += 1
    state.execute(
        "INSERT INTO epochs VALUES (?, ?, ?, ?)",
        (cluster.epoch, replicas, _encode(members), cluster.time_ms),
    )


def stage_of(state: WorkingState, node_id: str) -> str | None:
    """The recorded stage of a member, None where there is no such one."""
    row = state.execute("SELECT stage FROM members WHERE node_id = ?", (node_id,)).fetchone()
    return None if row is None else str(row[0])


def _member_problem(member: Member) -> str | None:
    """Why a member can't be recorded, as the end of a sentence."""
    texts = (member.peer_address, member.raft_address, member.client_url, member.zone)
    if not 1 <= len(member.node_id) <= NAME_LENGTH_LIMIT or max(map(len, texts)) > 1024:
        return "has an empty id or a text that is too long"
    if not 1 <= member.weight <= WEIGHT_MAX:
        return f"has the weight {member.weight}, not 1 to {WEIGHT_MAX:,}"
    return None


def no_such_member(node_id: str) -> Failure:
    return Failure(code="no_such_member", detail=f"There is no member '{node_id[:80]}'.")


def _invalid(detail: str) -> Failure:
    return Failure(code="invalid_command", detail=detail)
