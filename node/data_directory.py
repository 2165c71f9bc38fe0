"""The data directory of a node: held by one process, and known to be this node's own.

While a node runs it holds a lock on the directory. `identity.json` says whose directory it is; it
is replaced atomically, and the boot counter in it grows before the node says a word to anybody, so
that a directory restored from an older copy is found out (rule M7). The file-system checks that a
node depends on are made here, before anything is stored. The layout and the identity file are
described in docs/format.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from typing import Literal

import msgspec

from node.errors import DataDirectoryError
from node.settings import CONFIG_NAME
from ring.filesystem import (
    FileSystem,
    RealFileSystem,
    can_punch_holes,
    read_file,
    write_file_atomically,
)

FORMAT_VERSION = 1
IDENTITY_NAME = "identity.json"
LOCK_NAME = "lock"
CONTROL_NAME = "control.sock"

RAFT_PREFIX = "raft"
"""Of the Raft directories: `raft` is the first incarnation's, `raft-N` that of incarnation N."""

_MIB = 1024 * 1024

NEW_NODE_BYTES = 48 * _MIB
"""Below 32 MiB of free space Raft accepts nothing but what frees some; a new journal takes 8."""

_OWN_NAMES = frozenset({LOCK_NAME, CONFIG_NAME, IDENTITY_NAME + ".new", "lost+found"})
"""What an otherwise empty directory may hold and still count as empty."""

Stage = Literal["founding", "joining", "member", "left"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who this node is; stored as JSON, readable by its owner alone."""

    format_version: int = FORMAT_VERSION
    cluster_id: str
    node_id: str
    incarnation: int = 1
    """Grows when a cluster is recovered from a lost majority; nodes of another one are refused."""
    boot_counter: int = 0
    stage: Stage
    """founding and joining survive a crash in the middle and are taken up again."""
    cluster_secret: str = ""
    """Hexadecimal; what peers prove to each other. Empty until a joining node is admitted."""
    seeds: tuple[tuple[str, str], ...] = ()
    """(node id, Raft address) of the members known when this node joined."""

    def __repr__(self) -> str:
        return f"Identity(cluster {self.cluster_id}, node {self.node_id}, {self.stage})"


class DataDirectory:
    """An open, locked data directory; close it to release the lock."""

    def __init__(self, path: str, lock: int, filesystem: FileSystem) -> None:
        self.path = path
        self._lock = lock
        self._filesystem = filesystem

    @classmethod
    def open(cls, path: str) -> DataDirectory:
        """Make the directory if need be, lock it and check its file system.

        Raises DataDirectoryError with one sentence for whatever is in the way.
        """
        path = os.path.abspath(path)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            lock = os.open(
                os.path.join(path, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise DataDirectoryError(_unusable(path, error)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise DataDirectoryError(
                f"The data directory {path} is locked: another node is running on it."
            ) from error
        try:
            _check_holes(path)
        except DataDirectoryError:
            os.close(lock)
            raise
        return cls(path, lock, RealFileSystem())

    def close(self) -> None:
        os.close(self._lock)

    def directory(self, name: str) -> str:
        """The path of a subdirectory, made if need be."""
        path = os.path.join(self.path, name)
        self._filesystem.make_directory(path)
        return path

    def identity(self) -> Identity | None:
        """Whose directory this is; None where it is empty.

        Raises DataDirectoryError for a foreign, newer, damaged or left directory.
        """
        return read_identity(self.path, self._filesystem)

    def check_room(self) -> None:
        """Raises DataDirectoryError where a new node would wait for ever for space."""
        free = self._filesystem.free_bytes(self.path)
        if free < NEW_NODE_BYTES:
            raise DataDirectoryError(
                f"The data directory {self.path} is on a file system with {free // _MIB} MiB "
                f"free; a new node needs {NEW_NODE_BYTES // _MIB}."
            )

    def write_identity(self, identity: Identity) -> None:
        """Replace the identity file; durable on return."""
        write_file_atomically(
            self._filesystem,
            os.path.join(self.path, IDENTITY_NAME),
            msgspec.json.format(msgspec.json.encode(identity)) + b"\n",
        )

    def count_boot(self, identity: Identity) -> Identity:
        """Add one to the boot counter, durably; returns the identity of this run."""
        counted = msgspec.structs.replace(identity, boot_counter=identity.boot_counter + 1)
        self.write_identity(counted)
        return counted


def raft_directory_name(incarnation: int) -> str:
    """The Raft directory of an incarnation. The identity file names the incarnation, and with it
    in one atomic write the directory that counts."""
    return RAFT_PREFIX if incarnation == 1 else f"{RAFT_PREFIX}-{incarnation}"


def raft_directory_incarnation(name: str) -> int | None:
    """The incarnation whose Raft directory has this name; None for other names."""
    if name == RAFT_PREFIX:
        return 1
    prefix, _, number = name.partition("-")
    return int(number) if prefix == RAFT_PREFIX and number.isdecimal() else None


def read_identity(path: str, filesystem: FileSystem) -> Identity | None:
    """Read and judge the identity file of the data directory at `path`, without locking it."""
    try:
        data = read_file(filesystem, os.path.join(path, IDENTITY_NAME))
    except FileNotFoundError:
        foreign = sorted(
            name
            for name in set(filesystem.names(path)) - _OWN_NAMES
            # A restore that was cut off has made one, which counts for nothing yet.
            if (raft_directory_incarnation(name) or 1) == 1
        )
        if foreign:
            raise DataDirectoryError(
                f"The directory {path} is not empty and holds no {IDENTITY_NAME} (but "
                f"{foreign[0]}): it is not a data directory of Holdfast. Name an empty one."
            ) from None
        return None
    except OSError as error:
        raise DataDirectoryError(_unusable(path, error)) from error
    return decode_identity(data, path)


def decode_identity(data: bytes, path: str) -> Identity:
    """Judge the contents of an identity file; `path` is named in the DataDirectoryError."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version > FORMAT_VERSION:
            raise DataDirectoryError(
                f"The data directory {path} has format {version}; this Holdfast knows formats up "
                f"to {FORMAT_VERSION}. Start a newer one."
            )
        identity = msgspec.json.decode(data, type=Identity)
        uuid.UUID(identity.node_id)
        uuid.UUID(identity.cluster_id)
        bytes.fromhex(identity.cluster_secret)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataDirectoryError(
            f"{IDENTITY_NAME} in {path} is damaged ({error}): remove this node from its cluster "
            "and let it join again with an empty directory."
        ) from error
    if identity.stage == "left":
        raise DataDirectoryError(
            f"The data directory {path} belongs to node {identity.node_id}, which has left its "
            "cluster for good. Name an empty directory to join again as a new node."
        )
    return identity


def has_left(path: str) -> bool:
    """Whether the node of a data directory has left its cluster; False where nothing says so."""
    try:
        data = read_file(RealFileSystem(), os.path.join(path, IDENTITY_NAME))
        return msgspec.json.decode(data, type=Identity).stage == "left"
    except (OSError, msgspec.DecodeError):
        return False


class _Versioned(msgspec.Struct):
    format_version: int


def _check_holes(path: str) -> None:
    try:
        possible = can_punch_holes(RealFileSystem(), path)
    except OSError as error:
        raise DataDirectoryError(_unusable(path, error)) from error
    if not possible:
        raise DataDirectoryError(
            f"The file system of {path} can't give back parts of a file (fallocate with "
            "PUNCH_HOLE), which deleting needs. Use ext4, xfs, btrfs or tmpfs."
        )


def _unusable(path: str, error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"The data directory {path} can't be written: {error.strerror}."
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return f"The data directory {path} is not a directory."
    return f"The data directory {path} can't be used: {error.strerror or error}."
