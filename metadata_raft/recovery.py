"""A Raft directory of a new incarnation, made from a backup or from what one node still has (M7).

Where a majority of the voters is lost for good, or all of them, nobody can say any more what was
committed last. An operator then decides that one state is the cluster's from now on: it becomes the
state of a cluster of one voter under a new incarnation, which the others can join again. Nodes of
another incarnation are refused everywhere, so what they may still believe does no harm.

Offline: no node may be running on the directories. Nothing here changes what is there already; the
new directory counts when the identity file names its incarnation (node/data_directory.py).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass

from metadata_raft.backup import BackupError, BackupReader, read_backup
from metadata_raft.configuration import COMMAND, Configuration
from metadata_raft.journal import JournalSettings
from metadata_raft.log import ReplicatedLog
from metadata_raft.manifest import Base, Identity
from metadata_raft.membership import STAGE_JOINING, STAGE_VOTER
from metadata_raft.raft_thread import STATE_NAME
from metadata_raft.state_machine import StateMachine
from metadata_raft.state_stream import (
    SPACE_LEFT_BYTES,
    StateDescription,
    StateFile,
    StateStreamError,
    copy_database,
)
from metadata_raft.storage import check_state, open_storage
from ring.filesystem import FileSystem
from ring.members import NodeId

GENERATION_STEP = 1 << 20
"""What a recovery adds to the generation. The lost history may have gone further than the state
that is restored, and touches of then stand in the stores; above them garbage of then can be
collected soon after collection is resumed, and not only when the generation has caught up. A
generation lasts minutes: no history is 2^20 ahead of its own backup."""


class RecoveryError(Exception):
    """This state can't be recovered from; the message is a sentence for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundState:
    """A state that was brought into a new directory, as it was found."""

    cluster_id: str
    incarnation: int
    configuration: Configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredState:
    """What the new incarnation begins with."""

    base: Base
    generation: int
    boot_counter: int
    """The last boot of this node that the state knows."""
    members: tuple[NodeId, ...]
    """All of the cluster's, this node included, in order."""


def receive_backup(
    filesystem: FileSystem, backup: str, directory: str, *, cluster_id: str | None
) -> FoundState:
    """Verify a backup and write its state into a new Raft directory; durable on return.

    Where `cluster_id` is given the backup must be of that cluster. Raises RecoveryError, OSError.
    """
    path = os.path.join(directory, STATE_NAME)
    opened: list[StateFile] = []

    def begin(description: StateDescription) -> None:
        if cluster_id not in (None, description.cluster_id):
            raise RecoveryError(
                f"{backup} is of cluster {description.cluster_id}; this directory belongs to "
                f"cluster {cluster_id}"
            )
        opened.append(StateFile(filesystem, path, description.size_bytes))

    def write(plain: bytes) -> None:
        opened[0].write(plain)

    try:
        description = read_backup(backup, BackupReader(write, begin=begin))
        opened[0].finish()
    except BackupError as error:
        raise RecoveryError(f"{backup} {error}") from error
    except StateStreamError as error:
        raise RecoveryError(str(error)) from error
    finally:
        for file in opened:
            file.close()
    return FoundState(
        cluster_id=description.cluster_id,
        incarnation=description.incarnation,
        configuration=description.configuration,
    )


def copy_own_state(
    filesystem: FileSystem, source: str, identity: Identity, directory: str
) -> FoundState:
    """Bring what the Raft directory `source` of a stopped node holds into a new one.

    Every entry of its log counts, known to be committed or not: what was acknowledged may be known
    to this node as an entry only, and one that was not may still take effect, as after every
    `outcome_unknown`. The source stays as it is, so that it can still be started where this ends
    early. Raises RecoveryError; FatalRaftError where the directory is damaged.
    """
    path, target = os.path.join(source, STATE_NAME), os.path.join(directory, STATE_NAME)
    if not os.path.exists(path):
        raise RecoveryError(f"{source} holds no state of the metadata; restore it from a backup")
    storage = open_storage(filesystem, source, identity)
    with contextlib.closing(storage):
        size_bytes = os.path.getsize(path)
        if filesystem.free_bytes(directory) < 2 * size_bytes + SPACE_LEFT_BYTES:
            raise RecoveryError(f"{directory} has no space for another {size_bytes} bytes of state")
        try:
            copy_database(path, target)
        except StateStreamError as error:
            raise RecoveryError(str(error)) from error
        state = StateMachine(target)
        try:
            journal = storage.journal
            check_state(journal, applied_index=state.applied.index, applied_term=state.applied.term)
            configuration = storage.manifest.current.configuration
            if len(journal):
                log = ReplicatedLog(journal, configuration)
                configuration = log.configuration
                for entry, index, term in journal[:]:
                    state.apply(index, term, entry[1:] if entry[:1] == COMMAND else b"")
            state.flush()
        finally:
            state.close()
    return FoundState(
        cluster_id=identity.cluster_id,
        incarnation=identity.incarnation,
        configuration=configuration,
    )


def prepare_state(filesystem: FileSystem, directory: str, *, node_id: NodeId) -> RecoveredState:
    """Make the state in a new directory that of a cluster with one voter; durable on return.

    Collection is held (rule D10). The members stay, and so does the ring with their chunks, but
    all except this node have to join again. Join tokens of before are worthless. What nodes have
    said of their boots and of settled epochs is forgotten: it may be of the lost history. Results
    of requests stay, since they are of the same index as what they tell of (rule M1). Raises
    RecoveryError; StateCorruptError, UnknownVersionError.
    """
    path = os.path.join(directory, STATE_NAME)
    # Brings the tables of older software up to date.
    state = StateMachine(path)
    state.close()
    if state.applied.epoch == 0:
        raise RecoveryError(f"{path} is of a cluster that was never founded")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        recovered = _change(connection, node_id)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = filesystem.open(path)
    try:
        file.datasync()
    finally:
        file.close()
    filesystem.sync_directory(directory)
    return recovered


def _change(connection: sqlite3.Connection, node_id: NodeId) -> RecoveredState:
    execute = connection.execute
    execute(
        "UPDATE cluster SET collection_held = 1, generation = generation + ?,"
        " members_version = members_version + 1",
        (GENERATION_STEP,),
    )
    execute("DELETE FROM tokens")
    execute("DELETE FROM departed WHERE node_id = ?", (node_id,))
    known = execute("SELECT boot_counter FROM members WHERE node_id = ?", (node_id,)).fetchone()
    # One that is being removed for good goes on being removed.
    execute(
        "UPDATE members SET stage = ?, boot_counter = 0 WHERE node_id <> ? AND stage <> 'leaving'",
        (STAGE_JOINING, node_id),
    )
    execute("UPDATE members SET settled_epoch = 0")
    if known is None:
        # Its addresses come with its first start, as at every start.
        execute(
            "INSERT INTO members (node_id, peer_address, raft_address, client_url, zone, weight,"
            " stage, boot_counter, software_version) VALUES (?, '', '', '', '', 100, ?, 0, '')",
            (node_id, STAGE_VOTER),
        )
    else:
        execute(
            "UPDATE members SET stage = ?,"
            " intent = CASE WHEN intent IN ('leave', 'remove') THEN 'stay' ELSE intent END"
            " WHERE node_id = ?",
            (STAGE_VOTER, node_id),
        )
    index, term, generation = execute(
        "SELECT applied_index, applied_term, generation FROM cluster"
    ).fetchone()
    members = execute("SELECT node_id FROM members ORDER BY node_id").fetchall()
    return RecoveredState(
        base=Base(index, term),
        generation=generation,
        boot_counter=known[0] if known is not None else 0,
        members=tuple(member for (member,) in members),
    )


def create_directory(
    filesystem: FileSystem,
    directory: str,
    identity: Identity,
    *,
    base: Base,
    configuration: Configuration,
    settings: JournalSettings | None = None,
) -> None:
    """Put manifest, vote and journal beside a recovered state; durable on return.

    This node is the one voter; who was removed for good stays removed. Raises StorageFailedError.
    """
    removed = tuple(each for each in configuration.removed if each != identity.node_id)
    storage = open_storage(
        filesystem,
        directory,
        identity,
        configuration=Configuration((identity.node_id,), (), removed),
        settings=settings,
    )
    with contextlib.closing(storage):
        storage.journal.reset(base.index, base.term)
