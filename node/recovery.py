"""Restoring metadata on a stopped node, and coming back to a cluster that was restored (rule M7).

Both end with one atomic write: the identity file names the new incarnation, and with it the Raft
directory that counts from then on. Whatever was there before stays beside it, for the operator to
remove; a crash at any instant leaves the old node or the new one, and the command can be repeated.
"""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from metadata_raft.backup import BackupError, describe_backup
from metadata_raft.errors import FatalRaftError
from metadata_raft.manifest import Identity as RaftIdentity
from metadata_raft.recovery import (
    RecoveryError,
    copy_own_state,
    create_directory,
    prepare_state,
    receive_backup,
)
from node.data_directory import (
    DataDirectory,
    Identity,
    raft_directory_incarnation,
    raft_directory_name,
)
from node.errors import DataDirectoryError, JoinError, NodeError
from node.join import JoinToken, ask_to_join
from node.own_membership import member_of
from node.settings import Settings
from ring.filesystem import RealFileSystem
from ring.identity import new_cluster_secret
from ring.members import Member

INCARNATION_STEP_MAX = 1 << 32
"""Incarnations grow by a random step of at most this much: two recoveries of the same cluster that
know nothing of each other must not meet under one number."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore is about to make, or has made."""

    cluster_id: str
    node_id: str
    incarnation: int
    index: int
    generation: int
    members: tuple[str, ...]
    """Node ids of all members by the restored state, this node's included."""
    kept: str
    """The Raft directory of before, which is of no more use to this node; empty where none is."""


def restore(
    directory: DataDirectory, backup: str | None, *, confirm: Callable[[Restored], bool]
) -> Restored | None:
    """Make this node the first of a new incarnation of its cluster; None where not confirmed.

    The state is the backup's, else what this node itself has. An empty directory becomes a new node
    of the backup's cluster. Raises NodeError.
    """
    identity = directory.identity()
    if identity is not None and not identity.cluster_secret:
        raise DataDirectoryError(
            f"The data directory {directory.path} belongs to a node that was never admitted to its "
            "cluster; restore on another one, or on an empty directory."
        )
    if identity is None and backup is None:
        raise DataDirectoryError(
            f"The data directory {directory.path} is empty: name a backup to restore from."
        )
    _remove_unfinished(directory, identity)
    try:
        made = _next_identity(identity, backup)
        building = directory.directory(raft_directory_name(made.incarnation))
        try:
            made, restored = _build(directory, identity, made, backup, building)
            if not confirm(restored):
                shutil.rmtree(building)
                return None
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        # Then this node is the new one. Where this fails it may be, too: nothing is removed.
        directory.write_identity(made)
    except BackupError as error:
        raise NodeError(f"{backup} {error}.") from error
    except (RecoveryError, FatalRaftError) as error:
        raise NodeError(f"{str(error).rstrip('.')}.") from error
    except OSError as error:
        raise NodeError(f"The metadata can't be restored: {error}.") from error
    return restored


async def rejoin(
    directory: DataDirectory,
    token: JoinToken,
    settings: Settings,
    *,
    confirm: Callable[[Identity], bool],
    ask: Callable[[JoinToken, Identity, Member], Awaitable[Identity]] = ask_to_join,
) -> Identity | None:
    """Let this node come back to its cluster, which was restored meanwhile, with its chunks.

    It keeps its id and its chunks, forgets its metadata, and joins as a new node does at its next
    start. Only into a higher incarnation: within its own it would forget what it has voted. Returns
    the new identity, None where not confirmed. Raises NodeError.
    """
    identity = directory.identity()
    if identity is None:
        raise DataDirectoryError(
            f"The data directory {directory.path} is empty: a new node joins with "
            "`holdfast serve --join`."
        )
    if token.cluster_id != identity.cluster_id:
        raise JoinError(
            f"The data directory {directory.path} belongs to cluster {identity.cluster_id}, the "
            f"token to cluster {token.cluster_id}."
        )
    _require_higher(token.incarnation, identity)
    if not confirm(identity):
        return None
    admitted = await ask(
        token,
        msgspec.structs.replace(identity, stage="joining"),
        member_of(settings, identity),
    )
    # The token is not what counts: it may have been made by a node that knew no better.
    _require_higher(admitted.incarnation, identity)
    directory.write_identity(admitted)
    return admitted


def new_incarnation(*known: int) -> int:
    """One greater than all that are known, and no other recovery's."""
    return max(known) + 1 + secrets.randbelow(INCARNATION_STEP_MAX)


def _require_higher(incarnation: int, identity: Identity) -> None:
    if incarnation <= identity.incarnation:
        raise JoinError(
            f"The token is of incarnation {incarnation} of the cluster, this node of "
            f"{identity.incarnation}: it can only come back to a later one, because within one it "
            "must not forget what it has voted. Make a token on the node whose metadata were "
            "restored."
        )


def _next_identity(identity: Identity | None, backup: str | None) -> Identity:
    """Who this node will be, but for the boot counter."""
    if identity is None:
        assert backup is not None
        described = describe_backup(backup)
        return Identity(
            cluster_id=described.cluster_id,
            node_id=str(uuid.uuid4()),
            incarnation=new_incarnation(described.incarnation),
            stage="member",
            cluster_secret=new_cluster_secret().hex(),
        )
    known = [identity.incarnation]
    if backup is not None:
        known.append(describe_backup(backup).incarnation)
    return msgspec.structs.replace(
        identity, incarnation=new_incarnation(*known), stage="member", seeds=()
    )


def _build(
    directory: DataDirectory,
    identity: Identity | None,
    made: Identity,
    backup: str | None,
    building: str,
) -> tuple[Identity, Restored]:
    """Make the new Raft directory, whole and durable."""
    filesystem = RealFileSystem()
    filesystem.sync_directory(directory.path)
    kept = (
        ""
        if identity is None
        else os.path.join(directory.path, raft_directory_name(identity.incarnation))
    )
    if backup is not None:
        found = receive_backup(filesystem, backup, building, cluster_id=made.cluster_id)
    else:
        assert identity is not None
        own = RaftIdentity(identity.cluster_id, identity.node_id, identity.incarnation)
        found = copy_own_state(filesystem, kept, own, building)
    state = prepare_state(filesystem, building, node_id=made.node_id)
    create_directory(
        filesystem,
        building,
        RaftIdentity(made.cluster_id, made.node_id, made.incarnation),
        base=state.base,
        configuration=found.configuration,
    )
    made = msgspec.structs.replace(made, boot_counter=max(made.boot_counter, state.boot_counter))
    return made, Restored(
        cluster_id=made.cluster_id,
        node_id=made.node_id,
        incarnation=made.incarnation,
        index=state.base.index,
        generation=state.generation,
        members=state.members,
        kept=kept if kept and os.path.isdir(kept) else "",
    )


def _remove_unfinished(directory: DataDirectory, identity: Identity | None) -> None:
    """What an earlier restore left that did not come to its end: of a higher incarnation."""
    own = 0 if identity is None else identity.incarnation
    for name in os.listdir(directory.path):
        incarnation = raft_directory_incarnation(name)
        if incarnation is not None and incarnation > own:
            shutil.rmtree(os.path.join(directory.path, name))
