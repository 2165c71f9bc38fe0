"""What can go wrong with the replicated metadata, as one tree.

    MetadataError
    ├── NotSubmittedError           nothing happened; safe to repeat with any id
    │   ├── NoQuorumError           no leader, or no majority answered in time
    │   ├── OverloadedError         a bounded queue is full, or the leader's disk is
    │   ├── CommandTooLargeError    the command does not fit into an entry
    │   ├── RemovedError            this node is no member any more
    │   └── RestoredDiskError       this node's disk is an older copy
    ├── OutcomeUnknownError         submitted, fate unknown; repeat with the same request id
    └── MembershipChangeError       a change of voters was refused

    FatalRaftError                  the process must end; going on could lose acknowledged data
    ├── CommittedConflictError      a leader asks to truncate what is committed here
    ├── StateMismatchError          journal, manifest and state do not belong together
    └── (the disk's)                storage_errors.py

    PeerError                       a connection was closed; the transport dials again
    ├── HandshakeError              wrong key, cluster, incarnation or node
    └── FrameError                  a frame is too large, forged, or no message

`FatalRaftError` is no `MetadataError` on purpose: no request handler may catch it.
"""

from __future__ import annotations


class MetadataError(Exception):
    """A request to the metadata group failed. `retryable`: a repetition may succeed."""

    retryable = True


class NotSubmittedError(MetadataError):
    """The command never reached a log; nothing happened."""


class NoQuorumError(NotSubmittedError):
    """No leader is known, or no majority of voters answered in time."""


class OverloadedError(NotSubmittedError):
    """A bounded queue of this node or of the leader is full."""


class CommandTooLargeError(NotSubmittedError):
    """The encoded command does not fit into one Raft entry (rule M2)."""

    retryable = False


class RemovedError(NotSubmittedError):
    """This node was removed from the cluster for good; it has to join again under a new id."""

    retryable = False


class RestoredDiskError(NotSubmittedError):
    """The others know a later start of this node: its disk was restored from an older copy."""

    retryable = False


class OutcomeUnknownError(MetadataError):
    """The command may or may not take effect; only the same request id may repeat it (rule M1)."""

    def __init__(self, request_id: bytes, reason: str) -> None:
        super().__init__(f"request {request_id.hex()}: {reason}; repeat it with the same id")
        self.request_id = request_id


class MembershipChangeError(MetadataError):
    """The leader refused to change the voters now (rule M7)."""


class FatalRaftError(Exception):
    """The process must end rather than go on: an invariant of replication does not hold."""


class CommittedConflictError(FatalRaftError):
    """An entry at or below this node's commit index differs from the leader's."""


class StateMismatchError(FatalRaftError):
    """The journal, the manifest and the state machine on this disk do not belong together."""


class PeerError(Exception):
    """A connection between nodes had to be closed."""


class HandshakeError(PeerError):
    """The other side could not prove that it is the wanted node of this cluster."""


class FrameError(PeerError):
    """A frame exceeds the bound, fails its authentication, or holds no message."""
