"""One Raft member: pysyncobj's core, with our journal, our messages and our rules around it.

This is the only module that imports pysyncobj, and the version is pinned to the letter, because
about twenty of its private names are used or replaced here; `tests/metadata_raft/test_engine.py`
fails when one of them goes away. What is the library's: terms and votes, matching of logs, the
own-term commit rule, the no-op of a new leader. What is replaced:

- the decoding of entries: nothing is ever unpickled, and no method numbers exist (hazards 10, 11);
- the sender: windowed by the transport, no splitting by pickle, no dumps (hazards 1, 2, 19);
- application: in bounded steps, and an exception ends the process (hazards 9, 18);
- candidacy: only after a majority said yes to a pre-vote (hazard 13);
- membership: whole configurations in the log, see `configuration.py` (hazard 14);
- dumps and compaction: the state machine is durable by itself (hazards 4, 5, 6).

Everything is synchronous and runs on one thread. docs/decisions/0001-pysyncobj.md has the list.
"""

# ruff: noqa: N802 - methods that replace the library's keep its names.

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

_inet_ntop = socket.inet_ntop
from pysyncobj import SyncObj, SyncObjConf, syncobj  # noqa: E402
from pysyncobj.node import Node  # noqa: E402
from pysyncobj.transport import Transport  # noqa: E402

# The import replaces it for the whole process with one that raises (hazard 17).
socket.inet_ntop = _inet_ntop
# Its own is CLOCK_MONOTONIC_RAW, which drifts away from everybody else's; deadlines are set on both
# sides of this module.
syncobj.monotonicTime = time.monotonic
# Otherwise every instance keeps two descriptors of a pipe nobody reads, until it is full.
syncobj.PIPE_NOTIFIER_ENABLED = False

from metadata_raft.configuration import COMMAND, Configuration, encode_configuration  # noqa: E402
from metadata_raft.errors import MembershipChangeError  # noqa: E402
from metadata_raft.log import ReplicatedLog  # noqa: E402
from metadata_raft.message_filter import (  # noqa: E402
    KeepTail,
    ReplyVerdict,
    counts_as_vote,
    grants_pre_vote,
    heeds_request_vote,
    judge_reply,
    next_index_after,
    trim_append,
)
from metadata_raft.messages import (  # noqa: E402
    APPEND_SIZE_LIMIT,
    Append,
    AppendReply,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    StateNeeded,
    TimeoutNow,
    Vote,
)
from metadata_raft.settings import RaftTiming  # noqa: E402
from metadata_raft.storage_errors import StorageFullError  # noqa: E402
from ring.members import NodeId  # noqa: E402

LIBRARY_VERSION = "0.3.17"

APPLY_ENTRY_LIMIT = 64
"""Entries applied in one step; a node that catches up still answers in between (hazard 18)."""

APPLY_SECONDS_LIMIT = 0.05
"""After this long applying, other work gets its turn; far below an election timeout."""

SEND_ROUND_LIMIT = 8
"""Appends sent to one member at a time; the rest follows when its connection has taken them."""

_FOLLOWER, _CANDIDATE, _LEADER = 0, 1, 2
ROLES = {_FOLLOWER: "follower", _CANDIDATE: "candidate", _LEADER: "leader"}


class EngineHost(Protocol):
    """What the engine asks of the node around it."""

    def send(self, node_id: NodeId, message: Message) -> None: ...

    def can_send(self, node_id: NodeId) -> bool:
        """False while a member's connection is down or has enough to do."""

    def clock_ms(self) -> int:
        """This node's wall clock."""

    def state_time_ms(self) -> int:
        """State time for what the leader sends now."""

    def committed(self) -> None:
        """The commit index moved; called before anything is applied."""

    def apply(self, index: int, term: int, command: bytes) -> None:
        """Apply one committed entry. An exception is fatal."""

    def applied(self) -> None:
        """The end of a batch of applications."""

    def configuration_changed(self, configuration: Configuration) -> None: ...

    def entries_dropped(self) -> None:
        """A full disk took entries back: nothing that waits for a sync may be sent any more."""


class _Outlet(Transport):  # type: ignore[misc] # The library has no types.
    """The library's view of the network: its messages become ours."""

    def __init__(self, engine: RaftEngine, self_node: Node, other_nodes: list[Node]) -> None:
        super().__init__(engine, self_node, other_nodes)
        self._engine = engine

    ready = True

    def addNode(self, node: Node) -> None:
        """Connections follow the configuration, not the library."""

    def dropNode(self, node: Node) -> None:
        """Connections follow the configuration, not the library."""

    def destroy(self) -> None:
        """The transport is not the library's to close."""

    def send(self, node: Node, message: Mapping[str, Any]) -> bool:
        self._engine.send_for_library(node.id, message)
        return True


class _NoPoller:
    """The library waits for sockets of its own; it has none."""

    def poll(self, timeout: float) -> None:
        """Return at once."""


class RaftEngine(SyncObj):  # type: ignore[misc] # The library has no types.
    """A Raft member without sockets, threads or disk of its own.

    Drive it by `receive` for each message and `tick` after a batch of them and every 20 ms or so;
    it calls its host. `applied_index` is where the state machine stands at start.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        log: ReplicatedLog,
        applied_index: int,
        timing: RaftTiming,
        clock: Callable[[], float],
        generator: random.Random,
        host: EngineHost,
    ) -> None:
        self.node_id = node_id
        self.log = log
        self._timing = timing
        self._clock = clock
        self._generator = generator
        self._host = host
        self._nodes: dict[NodeId, Node] = {}
        self._votes: set[NodeId] = set()
        self._campaign_is_transfer = False
        self._leader_heard_at = float("-inf")
        self._leader_time_ms = 0
        self._pre_vote_term = 0
        self._pre_votes: set[NodeId] = set()
        self._pre_vote_at = 0.0
        super().__init__(
            self._node(node_id),
            [],
            SyncObjConf(
                autoTick=False,
                appendEntriesUseBatch=False,
                appendEntriesPeriod=timing.heartbeat,
                appendEntriesBatchSizeBytes=2 * APPEND_SIZE_LIMIT,
                raftMinTimeout=timing.election_min,
                raftMaxTimeout=timing.election_max,
                connectionTimeout=max(3.5, timing.election_max),
                leaderFallbackTimeout=timing.leader_fallback,
                commandsWaitLeader=False,
                dynamicMembershipChange=False,
                useFork=False,
                journalFile=None,
                fullDumpFile=None,
            ),
            nodeClass=Node,
            transportClass=_Outlet,
        )
        self._poller = _NoPoller()
        self._SyncObj__raftLog = log
        self._SyncObj__raftCurrentTerm = max(log.getCurrentTerm(), log.last_term)
        self._SyncObj__votedForNodeId = log.getVotedForNodeId()
        if self._SyncObj__raftCurrentTerm > log.getCurrentTerm():
            self._SyncObj__votedForNodeId = None
        # Not the journal's own note of it: what that covered may not have been durable here.
        self._SyncObj__raftCommitIndex = applied_index
        self._SyncObj__raftLastApplied = applied_index
        log.on_configuration = self._configure
        self._configure(log.configuration)
        if self.is_sole_voter:
            self._election_deadline = 0.0

    # --- what it is ---------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """leader, candidate, follower, or learner where this node does not vote."""
        if self.node_id not in self.configuration.voters:
            return "learner"
        return ROLES[self._SyncObj__raftState]

    @property
    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == _LEADER)

    @property
    def is_established(self) -> bool:
        """Whether this node leads and an entry of its own term is committed (M3, M7)."""
        return self.is_leader and self.commit_index >= (self._SyncObj__noopIDx or 0)

    @property
    def knows_state_time(self) -> bool:
        """Whether an entry of the current term is committed here: by then its leader has heard a
        majority, and with it what time it is (M5)."""
        return self.log.term_at(self.commit_index) == self.term

    @property
    def leader_id(self) -> NodeId | None:
        """The leader of the current term as far as this node knows."""
        leader = self._SyncObj__raftLeader
        return None if leader is None else leader.id

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def leader_time_ms(self) -> int:
        """State time as the leader told it last; 0 before the first word."""
        return self._leader_time_ms

    @property
    def configuration(self) -> Configuration:
        return self.log.configuration

    @property
    def is_sole_voter(self) -> bool:
        return self.configuration.voters == (self.node_id,)

    @property
    def hears_leader(self) -> bool:
        """Whether this node leads or heard a leader within the shortest election timeout."""
        return self.is_leader or self._clock() - self._leader_heard_at < self._timing.election_min

    def match_index(self, member: NodeId) -> int:
        """On the leader: up to where a member's journal is durably this one's."""
        return int(self._SyncObj__raftMatchIndex.get(self._node(member), 0))

    def heard_seconds_ago(self, member: NodeId) -> float:
        """On the leader: how long ago a member answered last."""
        heard = self._SyncObj__lastResponseTime.get(self._node(member))
        return float("inf") if heard is None else float(self._clock() - heard)

    # --- what drives it -----------------------------------------------------------------------

    def tick(self) -> None:
        """Elections, commitment, application, heartbeats: whatever is due.

        The journal is flushed first: a leader counts itself, and the state machine follows, only
        with what is durable here (M4). Raises FatalRaftError and whatever `apply` raises.
        """
        try:
            self.log.flush()
            self._ask_for_pre_votes()
            self.doTick(0.0)
        except StorageFullError:
            self._survive_full_disk()

    def receive(self, sender: NodeId, message: Message) -> None:
        """Take one message that belongs to Raft proper. Raises FatalRaftError."""
        try:
            match message:
                case Append():
                    self._on_append(sender, message)
                case AppendReply():
                    self._on_append_reply(sender, message)
                case RequestVote():
                    if heeds_request_vote(message, hears_leader=self.hears_leader):
                        self._deliver(
                            sender,
                            type="request_vote",
                            term=message.term,
                            last_log_index=message.last_index,
                            last_log_term=message.last_term,
                        )
                case Vote():
                    if message.term == self.term and counts_as_vote(
                        sender, voters=self.configuration.voters, counted=self._votes
                    ):
                        self._votes.add(sender)
                        self._deliver(sender, type="response_vote", term=message.term)
                case PreVote():
                    self._on_pre_vote(sender, message)
                case PreVoteReply():
                    self._on_pre_vote_reply(sender, message)
                case TimeoutNow():
                    if self.node_id in self.configuration.voters:
                        self._deliver(sender, type="timeout_now", term=message.term)
                case _:
                    raise AssertionError(f"{type(message).__name__} is not for the engine")
        except StorageFullError:
            self._survive_full_disk()

    def needs_state(self, sender: NodeId, message: StateNeeded) -> bool:
        """Take a leader's word that its log begins later; whether this node lacks what it says.

        The message vouches for no entry here, so it may commit nothing (hazard 2).
        """
        if message.term < self.term:
            self._reply(sender, 0, success=False, reset=False)
            return False
        self._hear_leader(message.time_ms)
        self._deliver(sender, type="append_entries", term=message.term, commit_index=0)
        shared_index = max(message.first_index, self.log.first_index)
        if (
            shared_index == message.first_index
            and self.log.term_at(shared_index) != message.first_term
        ):
            return True
        # What the log begins with is committed, so the leader has it too.
        self._reply(sender, shared_index + 1, success=False, reset=True)
        return False

    def disk_is_full(self) -> None:
        """What was appended last is gone again, unacknowledged: stop leading (rule M4)."""
        self._survive_full_disk()

    def peer_lost(self, node_id: NodeId) -> None:
        """A member's connection closed. The leader's is reason to doubt it soon, not at once."""
        if node_id == self.leader_id and not self.is_leader:
            self._leader_heard_at = float("-inf")
            soon = self._clock() + self._generator.uniform(0.1, 0.5) * self._timing.election_min
            self._election_deadline = min(self._election_deadline, soon)

    def propose(self, command: bytes) -> int | None:
        """Append a command entry and send it; its index, or None where this is no leader.

        Room for it is the caller's to ensure.
        """
        return self._append(COMMAND + command)

    def change_configuration(self, configuration: Configuration) -> int:
        """Append a new configuration; it is in force here at once. Returns the entry's index.

        Raises MembershipChangeError unless this node leads, an entry of its own term and the
        configuration in force are committed, and at most one voter changes (rule M7);
        StorageFullError where even the reserve has no room.
        """
        current = self.configuration
        if not self.is_established:
            raise MembershipChangeError("this node does not lead, or not for long enough")
        if self.log.configuration_index > self.commit_index:
            raise MembershipChangeError("the previous change is not committed yet")
        if len(set(current.voters) ^ set(configuration.voters)) > 1:
            raise MembershipChangeError("only one voter may change at a time")
        if self.node_id not in configuration.voters:
            raise MembershipChangeError("the leader must hand over before it leaves")
        entry = encode_configuration(configuration)
        self.log.ensure_room(len(entry), privileged=True)
        index = self._append(entry)
        assert index is not None
        return index

    def transfer_leadership(self, target: NodeId | None = None) -> NodeId | None:
        """Ask the voter that has most of the log, or `target`, to take over.

        Returns whom, or None where nobody is up to date; try again after the next replies.
        """
        candidates = [
            voter
            for voter in self.configuration.voters
            if voter != self.node_id
            and target in (None, voter)
            and self._host.can_send(voter)
            and self.match_index(voter) == self.log.last_index
        ]
        if not self.is_leader or not candidates:
            return None
        chosen = min(candidates, key=self.heard_seconds_ago)
        self.transferLeadership(self._node(chosen))
        return chosen

    def install(self, index: int, term: int, configuration: Configuration) -> None:
        """Go on behind a downloaded state that covers `index`, which is not applied yet (M6).

        Entries behind it stay where the log agrees with it: they may have been acknowledged.
        """
        assert index > self.applied_index
        if term > self.term:
            self.adopt_term(term)
        self.log.install(index, term, configuration)
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._SyncObj__raftLastApplied = index

    def adopt_term(self, term: int) -> None:
        """Another node is in a later term: follow, and forget the leader."""
        self._SyncObj__setCurrentTerm(term, None)
        self._follow()

    # --- messages -----------------------------------------------------------------------------

    def send_for_library(self, node_id: NodeId, message: Mapping[str, Any]) -> None:
        """Translate what the library sends; kinds that should never occur are an assertion."""
        match message["type"]:
            case "next_node_idx":
                self._reply(node_id, message["next_node_idx"], message["success"], message["reset"])
            case "request_vote":
                self._host.send(
                    node_id,
                    RequestVote(
                        message["term"],
                        message["last_log_index"],
                        message["last_log_term"],
                        self._campaign_is_transfer,
                    ),
                )
            case "response_vote":
                self._host.send(node_id, Vote(message["term"]))
            case "timeout_now":
                self._host.send(node_id, TimeoutNow(message["term"]))
            case other:
                raise AssertionError(f"the library sends {other}")

    def _deliver(self, sender: NodeId, **message: object) -> None:
        self._SyncObj__onMessageReceived(self._node(sender), message)

    def _reply(self, node_id: NodeId, next_index: int, success: bool, reset: bool) -> None:
        self._host.send(
            node_id, AppendReply(self.term, next_index, success, reset, self._host.clock_ms())
        )

    def _hear_leader(self, time_ms: int) -> None:
        self._leader_heard_at = self._clock()
        self._leader_time_ms = max(self._leader_time_ms, time_ms)
        self._pre_votes.clear()

    def _on_append(self, sender: NodeId, message: Append) -> None:
        if message.term < self.term:
            self._reply(sender, 0, success=False, reset=False)
            return
        self._hear_leader(message.time_ms)
        trimmed = trim_append(message, self.log, self.commit_index)
        if message.entries:
            self.log.ensure_room(sum(len(each[0]) for each in message.entries), privileged=True)
        if isinstance(trimmed, KeepTail):
            self._deliver(
                sender,
                type="append_entries",
                term=message.term,
                commit_index=trimmed.commit_index,
            )
            self._reply(sender, trimmed.match_index + 1, success=True, reset=False)
            return
        self._deliver(
            sender,
            type="append_entries",
            term=trimmed.term,
            commit_index=trimmed.commit_index,
            prevLogIdx=trimmed.previous_index,
            prevLogTerm=trimmed.previous_term,
            entries=trimmed.entries,
        )

    def _on_append_reply(self, sender: NodeId, reply: AppendReply) -> None:
        node = self._node(sender)
        verdict = judge_reply(
            reply,
            current_term=self.term,
            is_leader=self.is_leader,
            is_member=sender in self.configuration.members,
        )
        if verdict is ReplyVerdict.STEP_DOWN:
            self.adopt_term(reply.term)
        if verdict is not ReplyVerdict.DELIVER:
            return
        before = self._SyncObj__raftNextIndex[node]
        self._deliver(
            sender,
            type="next_node_idx",
            next_node_idx=reply.next_index,
            success=reply.success,
            reset=reply.reset,
        )
        self._SyncObj__raftNextIndex[node] = next_index_after(
            reply,
            before=before,
            after=self._SyncObj__raftNextIndex[node],
            match_index=self.match_index(sender),
        )
        if self._SyncObj__raftNextIndex[node] <= self.log.last_index:
            self._SyncObj__newAppendEntriesTime = 0.0

    # --- candidacy ----------------------------------------------------------------------------

    def _ask_for_pre_votes(self) -> None:
        """Start a round of pre-votes when the leader has been silent for an election timeout."""
        now = self._clock()
        if (
            self.is_leader
            or self.node_id not in self.configuration.voters
            or self.is_sole_voter
            or now <= self._election_deadline
            or now < self._pre_vote_at
            or self._pre_votes_suffice()
            or self._SyncObj__transferInProgress
        ):
            return
        self._pre_vote_at = now + self._generator.uniform(0.3, 0.9) * self._timing.election_min
        self._pre_vote_term = self.term + 1
        self._pre_votes = {self.node_id}
        question = PreVote(self._pre_vote_term, self.log.last_index, self.log.last_term)
        for voter in self.configuration.voters:
            if voter != self.node_id:
                self._host.send(voter, question)

    def _on_pre_vote(self, sender: NodeId, question: PreVote) -> None:
        granted = grants_pre_vote(
            question,
            current_term=self.term,
            last_index=self.log.last_index,
            last_term=self.log.last_term,
            hears_leader=self.hears_leader,
        )
        if granted:
            # Two candidates at once take each other's votes: let the sender be the first.
            delay = self._generator.uniform(0.3, 0.9) * self._timing.election_min
            self._pre_vote_at = max(self._pre_vote_at, self._clock() + delay)
        answer = PreVoteReply(question.term if granted else self.term, granted)
        self._host.send(sender, answer)

    def _on_pre_vote_reply(self, sender: NodeId, answer: PreVoteReply) -> None:
        if not answer.granted:
            if answer.term > self.term and not self.hears_leader:
                self.adopt_term(answer.term)
        elif answer.term == self._pre_vote_term and counts_as_vote(
            sender, voters=self.configuration.voters, counted=self._pre_votes
        ):
            self._pre_votes.add(sender)

    def _SyncObj__connectedToAnyone(self) -> bool:
        """The library asks this, and only this, before it stands for election."""
        if self.node_id not in self.configuration.voters:
            return False
        self._campaign_is_transfer = bool(self._SyncObj__transferInProgress)
        elected = self._campaign_is_transfer or self.is_sole_voter or self._pre_votes_suffice()
        if elected:
            self._pre_votes.clear()
            self._votes = {self.node_id}
        return elected

    def _pre_votes_suffice(self) -> bool:
        return (
            self._pre_vote_term == self.term + 1
            and len(self._pre_votes) >= self.configuration.majority()
        )

    @property
    def _election_deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @_election_deadline.setter
    def _election_deadline(self, deadline: float) -> None:
        self._SyncObj__raftElectionDeadline = deadline

    def _SyncObj__onBecomeLeader(self) -> None:
        """The no-op must be durable before the rest of this very tick can count it."""
        super()._SyncObj__onBecomeLeader()
        self.log.flush()

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self._generator.uniform(self._timing.election_min, self._timing.election_max)

    # --- replication --------------------------------------------------------------------------

    def _SyncObj__sendAppendEntries(self) -> None:
        """Send every member what it lacks, or a heartbeat; bounded by what its connection takes."""
        self._SyncObj__newAppendEntriesTime = self._clock() + self._timing.heartbeat
        time_ms = self._host.state_time_ms()
        previous: Append | None = None
        for member in self.configuration.members:
            if member != self.node_id and self._host.can_send(member):
                previous = self._send_entries(member, time_ms, previous)

    def _send_entries(self, member: NodeId, time_ms: int, previous: Append | None) -> Append | None:
        """Send to one member; an equal message made for another (`previous`) is used again, so
        that it is encoded once."""
        log = self.log
        node = self._node(member)
        for _ in range(SEND_ROUND_LIMIT):
            next_index: int = self._SyncObj__raftNextIndex[node]
            previous_term = log.term_at(next_index - 1)
            if previous_term is None:
                needed = StateNeeded(self.term, log.first_index, log.first_term, time_ms)
                self._host.send(member, needed)
                break
            if previous is None or previous.previous_index != next_index - 1:
                previous = Append(
                    self.term,
                    self.commit_index,
                    next_index - 1,
                    previous_term,
                    time_ms,
                    log.entries_within(next_index, APPEND_SIZE_LIMIT),
                )
            self._host.send(member, previous)
            if not previous.entries:
                break
            next_index = previous.entries[-1][1] + 1
            self._SyncObj__raftNextIndex[node] = next_index
            if next_index > log.last_index or not self._host.can_send(member):
                break
        return previous

    def _SyncObj__applyLogEntries(self) -> bool:
        """Apply what is committed; an exception passes on and ends the process (hazard 9)."""
        commit_index, applied_index = self.commit_index, self.applied_index
        if commit_index <= applied_index:
            return False
        self._host.committed()
        started = self._clock()
        last = min(commit_index, applied_index + APPLY_ENTRY_LIMIT)
        for command, index, term in self.log.entries(applied_index + 1, last):
            self._host.apply(index, term, command)
            self._SyncObj__raftLastApplied = index
            if self._clock() - started > APPLY_SECONDS_LIMIT:
                break
        self._host.applied()
        return False

    def announce_commit(self) -> None:
        """On the leader: tell the members at once what is committed, so that they apply it."""
        self._SyncObj__sendAppendEntries()

    def _SyncObj__tryLogCompaction(self) -> None:
        """Compaction is `ReplicatedLog.compact`, after the state machine's own checkpoint (M4)."""

    def _append(self, entry: bytes) -> int | None:
        """Append and send at once; the library's queue of commands stays empty for ever."""
        if not self.is_leader:
            return None
        index = self.log.last_index + 1
        self.log.add(entry, index, self.term)
        self._SyncObj__sendAppendEntries()
        return index

    # --- state --------------------------------------------------------------------------------

    def _configure(self, configuration: Configuration) -> None:
        """Bring the library's sets of nodes in line with the configuration in force."""
        others = {self._node(voter) for voter in configuration.voters if voter != self.node_id}
        learners = {self._node(name) for name in configuration.learners if name != self.node_id}
        now = self._clock()
        for node in others | learners:
            self._SyncObj__raftNextIndex.setdefault(node, self.log.last_index + 1)
            self._SyncObj__raftMatchIndex.setdefault(node, 0)
            self._SyncObj__lastResponseTime.setdefault(node, now)
        for node in list(self._SyncObj__raftMatchIndex):
            if node not in others and node not in learners:
                self._SyncObj__raftNextIndex.pop(node, None)
                self._SyncObj__raftMatchIndex.pop(node, None)
                self._SyncObj__lastResponseTime.pop(node, None)
        self._SyncObj__otherNodes = others
        self._SyncObj__readonlyNodes = learners
        if self.node_id not in configuration.voters:
            self._follow()
        self._host.configuration_changed(configuration)

    def _follow(self) -> None:
        self._SyncObj__setState(_FOLLOWER)
        self._SyncObj__raftLeader = None

    def _survive_full_disk(self) -> None:
        """What was not durable is gone, from the log too: stop leading, acknowledge nothing."""
        self._host.entries_dropped()
        self._SyncObj__raftCommitIndex = min(self.commit_index, self.log.last_index)
        if self.is_leader:
            self._follow()

    def _node(self, node_id: NodeId) -> Node:
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = Node(node_id)
        return node
