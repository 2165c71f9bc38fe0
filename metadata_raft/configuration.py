"""Who votes and who follows: the Raft configuration, as it stands in the log.

Every change is one log entry that holds the *whole* new configuration. A node uses the last one
in its log, committed or not (Ongaro's thesis, §4.1), and goes back to the one before it where that
entry is truncated. Two configurations in a row differ by at most one voter, so that their
majorities overlap. Node ids that were removed stay listed, bounded, so that a member can tell such
a node to stop.

This module also knows how a log entry's bytes begin: one byte of type, then the payload
(docs/format.md, "Log entries").
"""

from __future__ import annotations

import msgspec

from ring.members import NodeId

COMMAND = b"\x00"
"""Followed by an encoded `Entry` of proposals."""
NO_OP = b"\x01"
"""Alone: a new leader's first entry, and the entry every log begins with."""
CONFIGURATION = b"\x02"
"""Followed by an encoded `Configuration`."""

VOTER_LIMIT = 5
"""More voters would make every commit wait for more disks and tolerate nothing that matters."""

REMOVED_LIMIT = 256
"""Removed ids remembered here; the replicated state remembers far more of them (`departed`)."""


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Voters count in majorities; learners receive the log and count for nothing."""

    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    removed: tuple[NodeId, ...] = ()

    @property
    def members(self) -> tuple[NodeId, ...]:
        return self.voters + self.learners

    def majority(self) -> int:
        """How many voters decide; 1 where there are none, so that nothing is decided by nobody."""
        return len(self.voters) // 2 + 1

    def with_learner(self, node_id: NodeId) -> Configuration:
        if node_id in self.members:
            return self
        return Configuration(self.voters, (*self.learners, node_id), self.removed)

    def with_voter(self, node_id: NodeId) -> Configuration:
        """Promote a learner."""
        if node_id in self.voters:
            return self
        learners = tuple(learner for learner in self.learners if learner != node_id)
        return Configuration((*self.voters, node_id), learners, self.removed)

    def with_demoted(self, node_id: NodeId) -> Configuration:
        """Make a voter a learner again."""
        if node_id not in self.voters:
            return self
        voters = tuple(voter for voter in self.voters if voter != node_id)
        return Configuration(voters, (*self.learners, node_id), self.removed)

    def without(self, node_id: NodeId) -> Configuration:
        """Remove a node for good, also one that was never in it; it can't come back."""
        if node_id in self.removed and node_id not in self.members:
            return self
        return Configuration(
            tuple(voter for voter in self.voters if voter != node_id),
            tuple(learner for learner in self.learners if learner != node_id),
            (*(each for each in self.removed if each != node_id), node_id)[-REMOVED_LIMIT:],
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Configuration)


def encode_configuration(configuration: Configuration) -> bytes:
    """The bytes of the log entry."""
    return CONFIGURATION + _encoder.encode(configuration)


def decode_configuration(entry: bytes) -> Configuration | None:
    """The configuration in a log entry, None for entries of other types.

    Raises msgspec.DecodeError or msgspec.ValidationError where the payload is damaged.
    """
    return _decoder.decode(entry[1:]) if entry[:1] == CONFIGURATION else None
