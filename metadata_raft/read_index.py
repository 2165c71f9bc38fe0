"""Linearizable reads without writing: ReadIndex (Ongaro's thesis, §6.4; rule M3).

`LeaderRounds` is the leader's side. It notes its commit index, then asks the voters whether its
term is still theirs; when a majority has said so, no later leader can have committed anything
before the round began, so the index covers every write completed before it. A reader that comes
after the question was sent joins the next round. A voter's own request says the same as an answer
would, since it was sent after its read began: together with the leader that is a majority of up to
three voters, and is answered at once.

`PendingReads` is every node's side: its waiting readers share one request to the leader at a time,
and are released when the index is applied here. A late answer counts: for those who waited already
when its request was sent. Plain data, without clock or I/O.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from metadata_raft.errors import NoQuorumError
from metadata_raft.messages import Confirm, Confirmed
from ring.members import NodeId

READER_LIMIT = 16 * 1024
"""Readers that may wait at one node; beyond it they are refused."""

ASK_AGAIN_SECONDS = 0.1
"""A request or question without an answer for this long is taken for lost."""

REFUSED_PAUSE_SECONDS = 0.02
"""After a refusal by a node that does not lead, or not yet for long enough."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that waits for an index, and the number of its request."""

    node_id: NodeId
    round: int


@dataclass(slots=True)
class _Round:
    question: Confirm
    index: int
    readers: list[Reader]
    sent_at: float
    confirmed_by: set[NodeId] = field(default_factory=set)


class LeaderRounds:
    """One round of confirmation at a time; who comes meanwhile waits for the next."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._waiting: list[Reader] = []
        self._round: _Round | None = None
        self._number = 0

    def join(self, reader: Reader) -> None:
        """Wait for the next round."""
        self._waiting.append(reader)

    def open(self, *, term: int, commit_index: int, now: float) -> Confirm | None:
        """Begin a round for all who wait; returns the question for the other voters.

        None while a round is open or nobody waits.
        """
        if self._round is not None or not self._waiting:
            return None
        self._number += 1
        question = Confirm(term, self._number)
        self._round = _Round(question, commit_index, self._waiting, now, {self._node_id})
        self._waiting = []
        return question

    def confirmed(
        self, sender: NodeId, answer: Confirmed, *, voters: Collection[NodeId], majority: int
    ) -> tuple[int, list[Reader]] | None:
        """Count an answer; returns the index and its readers once a majority has confirmed."""
        current = self._round
        if (
            current is None
            or sender not in voters
            or (answer.term, answer.round) != (current.question.term, current.question.round)
        ):
            return None
        current.confirmed_by.add(sender)
        if len(current.confirmed_by) < majority:
            return None
        self._round = None
        return current.index, current.readers

    def ask_again(self, now: float) -> tuple[Confirm, set[NodeId]] | None:
        """The open question and who has answered it, where it is open for too long."""
        current = self._round
        if current is None or now - current.sent_at < ASK_AGAIN_SECONDS:
            return None
        current.sent_at = now
        return current.question, current.confirmed_by

    def abandon(self) -> list[Reader]:
        """Forget all, on losing leadership; returns the readers."""
        readers = self._waiting + (self._round.readers if self._round else [])
        self._waiting = []
        self._round = None
        return readers


def request_is_majority(requester: NodeId, *, voters: Collection[NodeId], majority: int) -> bool:
    """Whether a request of this voter and the leader that receives it are a majority already."""
    return requester in voters and majority <= 2


@dataclass(frozen=True, slots=True)
class _Waiter:
    token: int
    deadline: float
    covered_from: int
    """The first request that was sent after this reader began to wait: an answer to it or to a
    later one is an answer to this reader."""


class PendingReads:
    """The readers of one node, named by tokens of the caller's.

    Requests are numbered from `last_number` on. A node that restarts takes another one: what was
    an answer to its former self must not answer a later read. An answer serves all readers that
    waited when its request was sent, however late it comes and whatever was asked meanwhile: else a
    leader that takes longer than `ASK_AGAIN_SECONDS` would never serve anybody.
    """

    def __init__(self, last_number: int = 0) -> None:
        self._waiting: list[tuple[int, float]] = []
        self._asked: list[_Waiter] = []
        self._asked_at = 0.0
        self._asked_whom: tuple[NodeId, int] | None = None
        self._first_number = last_number + 1
        self._number = last_number
        self._known: list[tuple[int, list[_Waiter]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked) + sum(len(each) for _, each in self._known)

    def add(self, token: int, deadline: float) -> None:
        self._waiting.append((token, deadline))

    def ask(self, leader: NodeId, term: int, now: float) -> int | None:
        """The number of a new request for all who wait, None where none is due.

        One is on its way at a time; another one follows where it went to another leader, or has no
        answer for long.
        """
        if not self._asked and not self._waiting:
            return None
        on_its_way = (
            bool(self._asked)
            and self._asked_whom == (leader, term)
            and now - self._asked_at < ASK_AGAIN_SECONDS
        )
        if on_its_way:
            return None
        self._number += 1
        self._asked += [_Waiter(*reader, self._number) for reader in self._waiting]
        self._waiting = []
        self._asked_at = now
        self._asked_whom = (leader, term)
        return self._number

    def retry(self) -> None:
        """The last request may be lost: ask again at the next occasion."""
        self._asked_whom = None

    def answered(self, number: int, index: int) -> None:
        """The leader has named the index for request `number`."""
        if not self._first_number <= number <= self._number:
            return
        served = [each for each in self._asked if each.covered_from <= number]
        if served:
            self._asked = [each for each in self._asked if each.covered_from > number]
            self._known.append((index, served))

    def refused(self, number: int, now: float) -> None:
        """The leader could not answer yet; its readers ask again after a pause."""
        if number == self._number:
            self._asked_at = now - ASK_AGAIN_SECONDS + REFUSED_PAUSE_SECONDS

    def release(self, applied_index: int) -> list[tuple[int, int]]:
        """Remove and return the tokens whose index is applied, each with that index."""
        if not self._known:
            return []
        released = [
            (each.token, applied_index)
            for index, readers in self._known
            if index <= applied_index
            for each in readers
        ]
        self._known = [each for each in self._known if each[0] > applied_index]
        return released

    def expire(self, now: float) -> list[tuple[int, NoQuorumError]]:
        """Remove and return who waited too long."""
        expired: list[tuple[int, NoQuorumError]] = []

        def keep(readers: list[_Waiter], error: NoQuorumError) -> list[_Waiter]:
            expired.extend((each.token, error) for each in readers if now >= each.deadline)
            return [each for each in readers if now < each.deadline]

        unconfirmed = NoQuorumError("no majority confirmed the read in time")
        expired.extend((token, unconfirmed) for token, deadline in self._waiting if now >= deadline)
        self._waiting = [each for each in self._waiting if now < each[1]]
        self._asked = keep(self._asked, unconfirmed)
        behind = NoQuorumError("this node did not catch up with the read's index in time")
        self._known = [
            (index, kept) for index, readers in self._known if (kept := keep(readers, behind))
        ]
        return expired

    def fail_all(self, reason: str) -> list[tuple[int, NoQuorumError]]:
        """Give up on all: this node stops."""
        error = NoQuorumError(reason)
        tokens = [token for token, _ in self._waiting]
        tokens += [each.token for each in self._asked]
        tokens += [each.token for _, group in self._known for each in group]
        self._waiting, self._asked, self._known = [], [], []
        return [(token, error) for token in tokens]
