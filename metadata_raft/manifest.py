"""What a node's Raft directory is: whose it is, where its journal begins, who was in the group.

The manifest is the root of the directory. It changes atomically, so it is what makes compaction
and the installation of a downloaded state single steps: the journal's segments before
`first_segment` do not count any more, whether or not they could be removed yet, and a `pending`
installation is finished at the next start. Layout: docs/format.md, "Manifest".
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metadata_raft.configuration import Configuration
from metadata_raft.sealed import SealedFile, no_room, read_sealed
from metadata_raft.storage_errors import StorageDamagedError, StorageForeignError
from ring.filesystem import FileSystem
from ring.members import NodeId

_KIND = b"mani"
_VERSION = 1


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Whose directory this is. A recovery from a lost majority mints a new incarnation (M7)."""

    cluster_id: str
    node_id: NodeId
    incarnation: int = 1

    def __str__(self) -> str:
        return f"node {self.node_id}, cluster {self.cluster_id}, incarnation {self.incarnation}"


class Base(msgspec.Struct, frozen=True, array_like=True):
    """The oldest entry a journal still knows: what came before it is in the state only."""

    index: int
    term: int


class PendingInstall(msgspec.Struct, frozen=True, array_like=True):
    """A verified download that is to become the state; the journal begins anew at `base`."""

    source: str
    """Absolute path of the verified file."""
    target: str
    """Absolute path of the state's database."""
    base: Base


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of the manifest; changed with `ManifestFile.update`."""

    identity: Identity
    base: Base
    first_segment: int
    """Number of the first journal segment that counts."""
    configuration: Configuration = Configuration()
    """The Raft configuration in force when it was last stored; the log's last one supersedes it."""
    addresses: dict[NodeId, str] = {}
    """Raft addresses (`host:port`) of members, as last known; hints for the first contact."""
    pending: PendingInstall | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


class ManifestFile:
    """The durable manifest; `current` is what is on the disk. Raft thread only."""

    def __init__(
        self, filesystem: FileSystem, path: str, current: Manifest, make_room: Callable[[], bool]
    ) -> None:
        self._file = SealedFile(filesystem, path, _KIND, _VERSION, make_room)
        self.current = current

    @classmethod
    def create(
        cls,
        filesystem: FileSystem,
        path: str,
        manifest: Manifest,
        *,
        make_room: Callable[[], bool] = no_room,
    ) -> ManifestFile:
        """Durable on return; `make_room` as for `SealedFile`. Raises StorageFailedError."""
        manifest_file = cls(filesystem, path, manifest, make_room)
        manifest_file._write(manifest)
        return manifest_file

    @classmethod
    def load(
        cls,
        filesystem: FileSystem,
        path: str,
        identity: Identity,
        *,
        make_room: Callable[[], bool] = no_room,
    ) -> ManifestFile | None:
        """None where there is no file. Raises StorageDamagedError, StorageForeignError."""
        body = read_sealed(filesystem, path, _KIND, _VERSION)
        if body is None:
            return None
        try:
            manifest = _decoder.decode(body)
        except msgspec.DecodeError as error:
            raise StorageDamagedError(path, f"unreadable: {error}") from error
        if manifest.identity != identity:
            raise StorageForeignError(
                f"{path} belongs to {manifest.identity}; this is {identity}. "
                "Use the directory that belongs to this node"
            )
        return cls(filesystem, path, manifest, make_room)

    def update(
        self,
        *,
        base: Base | msgspec.UnsetType = msgspec.UNSET,
        first_segment: int | msgspec.UnsetType = msgspec.UNSET,
        configuration: Configuration | msgspec.UnsetType = msgspec.UNSET,
        addresses: dict[NodeId, str] | msgspec.UnsetType = msgspec.UNSET,
        pending: PendingInstall | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> None:
        """Replace the named fields in one step; durable on return. Nothing is written where
        nothing changes. Raises StorageFailedError."""
        now = self.current
        changed = Manifest(
            identity=now.identity,
            base=now.base if base is msgspec.UNSET else base,
            first_segment=now.first_segment if first_segment is msgspec.UNSET else first_segment,
            configuration=now.configuration if configuration is msgspec.UNSET else configuration,
            addresses=now.addresses if addresses is msgspec.UNSET else addresses,
            pending=now.pending if pending is msgspec.UNSET else pending,
        )
        if changed != now:
            self._write(changed)

    def _write(self, manifest: Manifest) -> None:
        self._file.write(_encoder.encode(manifest))
        self.current = manifest
