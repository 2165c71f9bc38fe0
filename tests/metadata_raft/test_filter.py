"""The message filter's decisions, each on values alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_raft.errors import CommittedConflictError
from metadata_raft.message_filter import (
    KeepTail,
    ReplyVerdict,
    counts_as_vote,
    grants_pre_vote,
    heeds_request_vote,
    judge_reply,
    next_index_after,
    trim_append,
)
from metadata_raft.messages import Append, AppendReply, LogEntry, PreVote, RequestVote


class Log:
    """A log by the terms of its entries, from index 1 on."""

    def __init__(self, *terms: int) -> None:
        self.terms = terms

    @property
    def last_index(self) -> int:
        return len(self.terms)

    def term_at(self, index: int) -> int | None:
        return self.terms[index - 1] if 1 <= index <= len(self.terms) else None


def entry(index: int, term: int) -> LogEntry:
    return (b"\x01", index, term)


def append(previous: LogEntry, *entries: LogEntry, commit_index: int = 0) -> Append:
    return Append(9, commit_index, previous[1], previous[2], 0, list(entries))


def test_entries_already_here_are_not_appended_again() -> None:
    """The matching beginning of a message is cut off; only the rest reaches the library."""
    message = append(entry(1, 1), entry(2, 1), entry(3, 2), entry(4, 2))
    trimmed = trim_append(message, Log(1, 1, 2), commit_index=1)
    assert isinstance(trimmed, Append)
    assert (trimmed.previous_index, trimmed.previous_term) == (3, 2)
    assert trimmed.entries == [entry(4, 2)]


def test_a_repeated_message_truncates_nothing() -> None:
    """All its entries are here, and later ones too: the later ones stay (hazard 1)."""
    message = append(entry(1, 1), entry(2, 1), commit_index=9)
    assert trim_append(message, Log(1, 1, 1, 1), commit_index=2) == KeepTail(2, 2)


def test_a_heartbeat_behind_the_tail_commits_only_what_it_vouches_for() -> None:
    """The tail behind a heartbeat's entry may be another leader's: it is not committed by it."""
    assert trim_append(append(entry(2, 1), commit_index=4), Log(1, 1, 1, 1), 1) == KeepTail(2, 2)


def test_a_real_conflict_truncates() -> None:
    """An uncommitted entry of another term gives way, as Raft wants it."""
    message = append(entry(1, 1), entry(2, 2))
    assert trim_append(message, Log(1, 1, 1), commit_index=1) == message


def test_a_committed_entry_never_gives_way() -> None:
    """To truncate below the commit index ends the process rather than lose a committed entry."""
    with pytest.raises(CommittedConflictError):
        trim_append(append(entry(1, 1), entry(2, 2)), Log(1, 1, 1), commit_index=2)
    with pytest.raises(CommittedConflictError):
        trim_append(append(entry(2, 2), entry(3, 2)), Log(1, 1, 1), commit_index=2)


def test_an_unknown_previous_entry_is_left_to_the_library() -> None:
    """The library answers with what it needs; an uncommitted conflict likewise."""
    ahead = append(entry(7, 2), entry(8, 2))
    assert trim_append(ahead, Log(1, 1), commit_index=2) == ahead
    conflicting = append(entry(3, 2), entry(4, 2))
    assert trim_append(conflicting, Log(1, 1, 1), commit_index=2) == conflicting


@given(data=st.data())
def test_what_a_message_leaves_is_the_leaders_log(data: st.DataObject) -> None:
    """For any log that shares a beginning with the leader's, appending what is left of a message
    the library's way gives a log that is the leader's up to the message's end, and loses nothing
    that was the leader's already."""
    leader = sorted(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=12)))
    shared = data.draw(st.integers(1, len(leader)))
    own_tail = sorted(data.draw(st.lists(st.integers(5, 7), max_size=4)))
    mine = leader[:shared] + own_tail
    previous = data.draw(st.integers(1, shared))
    end = data.draw(st.integers(previous, len(leader)))
    entries = [entry(i, leader[i - 1]) for i in range(previous + 1, end + 1)]
    commit_index = data.draw(st.integers(0, shared))
    trimmed = trim_append(append(entry(previous, leader[previous - 1]), *entries), Log(*mine), 0)
    after = list(mine)
    if isinstance(trimmed, Append):
        after = mine[: trimmed.previous_index] + [term for _, _, term in trimmed.entries]
        assert [index for _, index, _ in trimmed.entries] == list(
            range(trimmed.previous_index + 1, trimmed.previous_index + 1 + len(trimmed.entries))
        )
    assert after[:end] == leader[:end]
    assert after[: min(shared, len(after))] == leader[: min(shared, len(after))]
    assert len(after) >= shared or commit_index <= len(after)
    assert all(one <= other for one, other in pairwise(after))


def reply(term: int, next_index: int = 5, *, reset: bool = False) -> AppendReply:
    return AppendReply(term, next_index, not reset, reset, 0)


@pytest.mark.parametrize(
    ("term", "leads", "member", "verdict"),
    [
        (3, True, True, ReplyVerdict.DELIVER),
        (2, True, True, ReplyVerdict.IGNORE),
        (3, False, True, ReplyVerdict.IGNORE),
        (3, True, False, ReplyVerdict.IGNORE),
        (4, True, True, ReplyVerdict.STEP_DOWN),
        (4, True, False, ReplyVerdict.IGNORE),
    ],
)
def test_only_acknowledgements_of_this_term_count(
    term: int, leads: bool, member: bool, verdict: ReplyVerdict
) -> None:
    """One of an earlier term, or of a stranger, is nothing; a member's later term is heard."""
    judged = judge_reply(reply(term), current_term=3, is_leader=leads, is_member=member)
    assert judged is verdict


def test_an_acknowledgement_never_moves_the_leader_back() -> None:
    """What was sent meanwhile is not sent again because of an ack for what came before it."""
    assert next_index_after(reply(3, 5), before=9, after=5, match_index=4) == 9


def test_a_reset_goes_back_but_not_behind_what_is_durable_there() -> None:
    """A member that lacks entries gets them; what it acknowledged it has."""
    assert next_index_after(reply(3, 5, reset=True), before=9, after=5, match_index=2) == 5
    assert next_index_after(reply(3, 1, reset=True), before=9, after=1, match_index=6) == 7


def test_votes_count_once_and_only_from_voters() -> None:
    """A repeated vote, or one of a learner, elects nobody."""
    assert counts_as_vote("b", voters=("a", "b"), counted={"a"})
    assert not counts_as_vote("b", voters=("a", "b"), counted={"a", "b"})
    assert not counts_as_vote("learner", voters=("a", "b"), counted={"a"})


def test_a_pre_vote_needs_a_silent_leader_a_later_term_and_a_log_as_good() -> None:
    """Who hears its leader, or has more of the log, does not want an election."""
    question = PreVote(5, last_index=10, last_term=4)

    def asks(current_term: int, last_index: int, last_term: int, *, hears_leader: bool) -> bool:
        return grants_pre_vote(
            question,
            current_term=current_term,
            last_index=last_index,
            last_term=last_term,
            hears_leader=hears_leader,
        )

    assert asks(4, 10, 4, hears_leader=False)
    assert not asks(4, 10, 4, hears_leader=True)
    assert not asks(5, 10, 4, hears_leader=False)
    assert not asks(4, 11, 4, hears_leader=False)
    assert asks(4, 99, 3, hears_leader=False)


def test_a_request_for_votes_is_not_heard_beside_a_leader() -> None:
    """Unless the leader itself hands over."""
    assert not heeds_request_vote(RequestVote(9, 1, 1, transfer=False), hears_leader=True)
    assert heeds_request_vote(RequestVote(9, 1, 1, transfer=True), hears_leader=True)
    assert heeds_request_vote(RequestVote(9, 1, 1, transfer=False), hears_leader=False)
