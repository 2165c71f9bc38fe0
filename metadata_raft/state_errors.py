"""What can go wrong with the state machine and its queries.

FatalRaftError
├── StateCorruptError       damaged, foreign, or not written: this node must stop
└── UnknownVersionError     newer than this software: applying it would make replicas differ

MetadataError
├── OverloadedError
│   └── ReadersBusyError    every read connection is in use; retry later
└── SnapshotExpiredError    a read transaction reached its second; retry with smaller pages

A refusal by the state machine is none of these: it is a `Failure`, a value.
"""

from __future__ import annotations

from metadata_raft.errors import FatalRaftError, MetadataError, OverloadedError


class StateCorruptError(FatalRaftError):
    """The SQLite state is damaged or foreign, or a write to it failed."""


class UnknownVersionError(FatalRaftError):
    """An entry, a cluster version or a file that only newer software understands."""


class ReadersBusyError(OverloadedError):
    """Every connection of the reader pool is in use; nothing was read."""


class SnapshotExpiredError(MetadataError):
    """A read transaction was about to outlive its bound; what it returned so far holds."""
