"""Why a node's Raft directory can't be used, or can't be used any longer.

FatalRaftError
├── StorageUnusableError         found at start; the sentence says what the operator can do
│   ├── StorageDamagedError      acknowledged data may be missing: remove the node, wipe, join
│   └── StorageForeignError      the directory belongs to another node or cluster
└── StorageFailedError           a write or sync failed; the process must end (rule M4)

StorageFullError                 no space; nothing was changed, the batch failed, go on
"""

from __future__ import annotations

from metadata_raft.errors import FatalRaftError


class StorageUnusableError(FatalRaftError):
    """The node must not start on this directory. The message is one sentence for the operator."""


class StorageDamagedError(StorageUnusableError):
    """Acknowledged entries, a vote or the identity may be missing (rule M4).

    A node that forgot what it promised breaks Raft silently, so it may not start: remove it from
    the cluster, wipe its directory, let it join again.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path}: {reason}; this node may have forgotten what it promised. "
            "Remove it from the cluster, wipe its data directory, and let it join again"
        )
        self.path = path


class StorageForeignError(StorageUnusableError):
    """The directory was written by another node, or for another cluster."""


class StorageFailedError(FatalRaftError):
    """The operating system failed to write or sync; what is on the disk is unknown."""


class StorageFullError(Exception):
    """The disk has no room for these entries; nothing was appended."""
