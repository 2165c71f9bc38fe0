"""What a Raft message may do here: pure decisions, taken before the library sees the message.

pysyncobj's core is sound but believes its messages too much (docs/decisions/0001-pysyncobj.md).
These functions decide, from values alone, which part of a message it gets to see:

- a follower never truncates what already matches, and never what is committed (hazard 1);
- its commit index only covers what the leader of this term has vouched for (hazard 2);
- a leader hears only acknowledgements of its own term, and none moves it backwards (hazards 1, 3);
- a vote counts once, and only from a voter;
- nobody stands for election whom a majority would not prefer to its leader (hazard 13).

No clock, no randomness, no I/O; nothing here knows the library.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from metadata_raft.errors import CommittedConflictError
from metadata_raft.messages import Append, AppendReply, PreVote, RequestVote
from ring.members import NodeId


class LogView(Protocol):
    """What the decisions need to know of a log."""

    @property
    def last_index(self) -> int: ...

    def term_at(self, index: int) -> int | None:
        """The term of an entry, None where the log has no such index."""


@dataclass(frozen=True, slots=True)
class KeepTail:
    """All entries of a message are here already, and more: append nothing, truncate nothing."""

    match_index: int
    """Up to here the log is the leader's."""
    commit_index: int
    """What may be committed here by this message."""


def trim_append(message: Append, log: LogView, commit_index: int) -> Append | KeepTail:
    """Return the part of `message` that is new here.

    The library deletes everything behind `previous_index` before it appends, so that a repeated or
    overtaken message would remove entries already acknowledged, for an instant or, if the leader
    dies in it, for ever. Only a real conflict of terms may truncate (Raft, figure 2, rule 3).

    A message whose previous entry is unknown, or conflicts above the commit index, is returned
    whole: the library answers it with what it needs instead.

    Raises CommittedConflictError where a committed entry differs.
    """
    previous_index = message.previous_index
    term_here = log.term_at(previous_index)
    if term_here is None:
        return message
    if term_here != message.previous_term:
        if previous_index <= commit_index:
            raise CommittedConflictError(
                f"entry {previous_index} is committed here in term {term_here}, "
                f"the leader of term {message.term} has it in term {message.previous_term}"
            )
        return message

    entries = message.entries
    matching = 0
    match_index = previous_index
    while matching < len(entries) and log.term_at(entries[matching][1]) == entries[matching][2]:
        match_index = entries[matching][1]
        matching += 1
    remaining = entries[matching:]

    if not remaining and match_index < log.last_index:
        return KeepTail(match_index, min(message.commit_index, match_index))
    if remaining and match_index < log.last_index and match_index < commit_index:
        raise CommittedConflictError(
            f"the leader of term {message.term} replaces entry {match_index + 1}, "
            f"but everything up to {commit_index} is committed here"
        )
    if matching == 0:
        return message
    matched_term = entries[matching - 1][2]
    return Append(
        term=message.term,
        commit_index=message.commit_index,
        previous_index=match_index,
        previous_term=matched_term,
        time_ms=message.time_ms,
        entries=remaining,
    )


class ReplyVerdict(Enum):
    DELIVER = 1
    IGNORE = 2
    STEP_DOWN = 3


def judge_reply(
    reply: AppendReply, *, current_term: int, is_leader: bool, is_member: bool
) -> ReplyVerdict:
    """What a leader does with an acknowledgement.

    One of an earlier term proves nothing about this one (hazard 3). A member in a later term must
    be heard, or it could never follow this leader again; a stranger's term is its own affair.
    """
    if not is_member:
        return ReplyVerdict.IGNORE
    if reply.term > current_term:
        return ReplyVerdict.STEP_DOWN
    if reply.term < current_term or not is_leader:
        return ReplyVerdict.IGNORE
    return ReplyVerdict.DELIVER


def next_index_after(reply: AppendReply, *, before: int, after: int, match_index: int) -> int:
    """Where the leader goes on sending to a member, given the library's idea `after` the reply.

    A success is about the past and never moves it back from what was sent meanwhile; a reset does,
    but not below what the member is known to hold durably.
    """
    if reply.reset:
        return max(reply.next_index, match_index + 1)
    return max(before, after)


def counts_as_vote(
    sender: NodeId, *, voters: Collection[NodeId], counted: Collection[NodeId]
) -> bool:
    """Whether a granted vote counts: the library counts messages, elections count voters."""
    return sender in voters and sender not in counted


def grants_pre_vote(
    message: PreVote, *, current_term: int, last_index: int, last_term: int, hears_leader: bool
) -> bool:
    """Whether this node would vote for the sender in a later term (Ongaro's thesis, §9.6)."""
    return (
        not hears_leader
        and message.term > current_term
        and (message.last_term, message.last_index) >= (last_term, last_index)
    )


def heeds_request_vote(message: RequestVote, *, hears_leader: bool) -> bool:
    """Whether a request for votes is looked at: not while a leader is heard (thesis, §4.2.3).

    In a transfer the leader itself asked for the election.
    """
    return message.transfer or not hears_leader
