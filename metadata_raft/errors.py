"""What can go wrong in the metadata plane.

    MetadataError
    ├── NoQuorumError          not submitted or not readable now; nothing happened; retry
    ├── OverloadedError        a bounded queue is full; nothing happened; retry later
    │   └── ReadersBusyError   every read connection is in use
    ├── OutcomeUnknownError    submitted, fate unknown; repeat with the same request id
    ├── SnapshotExpiredError   a read transaction reached its second; retry with smaller pages
    ├── StateCorruptError      the SQLite state can't be what this node wrote; the process ends
    └── UnknownVersionError    an entry, command or file newer than this software; the process ends

A refusal by the state machine is none of these: it is a `Failure`, a value.
"""

from __future__ import annotations


class MetadataError(Exception):
    """The root; `retryable` says whether the same request may succeed a little later."""

    retryable = False


class NoQuorumError(MetadataError):
    """No leader with a majority can be reached; nothing happened."""

    retryable = True


class OverloadedError(MetadataError):
    """A bounded queue is full; nothing happened."""

    retryable = True


class ReadersBusyError(OverloadedError):
    """Every connection of the reader pool is in use."""


class OutcomeUnknownError(MetadataError):
    """The command was submitted and its fate is unknown (rule M1)."""

    retryable = True


class SnapshotExpiredError(MetadataError):
    """A read transaction was about to outlive its bound."""

    retryable = True


class StateCorruptError(MetadataError):
    """The state on disk is damaged, foreign, or failed to be written; this node must stop."""


class UnknownVersionError(MetadataError):
    """Something newer than this software was met; applying it would make replicas differ."""
