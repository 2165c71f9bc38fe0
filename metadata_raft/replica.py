"""One member of the metadata group, complete but for threads and sockets.

`Replica` joins the engine, group commit, ReadIndex and membership into one synchronous object:
messages, commands, reads and the passing of time go in, messages and answers come out. The node
drives it from the raft thread (`raft_thread.py`), the tests from a simulated network in virtual
time, and both exercise the same code.

Order is what keeps promises here: what is sent as durable leaves only after the journal's sync, and
an answer is given only after the state machine's commit.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from metadata_raft.batching import Draft, GroupCommit, PendingProposals, encode_entry
from metadata_raft.commands import (
    AbortUpload,
    AdmitMember,
    AdvanceGeneration,
    ChangeRing,
    CreateJoinToken,
    DeleteBucket,
    DeleteFile,
    ForgetMember,
    Proposal,
    ReclaimStep,
    ReportSettled,
    SetMemberIntent,
    SetMemberStage,
    UpdateMember,
    decode_command,
    decode_entry,
    encode,
)
from metadata_raft.configuration import COMMAND, Configuration
from metadata_raft.engine import RaftEngine
from metadata_raft.errors import (
    MembershipChangeError,
    MetadataError,
    OverloadedError,
    StateMismatchError,
)
from metadata_raft.log import ReplicatedLog
from metadata_raft.membership import (
    ChangeConfiguration,
    HandOver,
    MemberView,
    Plan,
    RecordStage,
)
from metadata_raft.messages import (
    AppendReply,
    Confirm,
    Confirmed,
    Forward,
    ForwardRefused,
    Message,
    ReadReply,
    ReadRequest,
    StateNeeded,
)
from metadata_raft.read_index import (
    READER_LIMIT,
    LeaderRounds,
    PendingReads,
    Reader,
    request_is_majority,
)
from metadata_raft.records import AppliedState
from metadata_raft.settings import RaftTiming
from metadata_raft.state_time import StateTime
from metadata_raft.storage_errors import StorageFullError
from ring.members import NodeId

MEMBERSHIP_PERIOD_SECONDS = 0.1
MEMBERSHIP_TIMEOUT_SECONDS = 5.0
"""How long one recorded stage may take before the leader looks again."""

REROUTE_PERIOD_SECONDS = 0.1
"""How often what is pending is looked through for what takes too long; a new leader or connection
does not wait for it."""

HAND_OVER_PERIOD_SECONDS = 5.0
"""Between two attempts of a leaving leader to hand over: each stops proposals for a moment."""

TRANSFER_SECONDS_LIMIT = 0.5
"""After this long without success a leader that wanted to hand over goes on leading."""

_proposal_decoder = msgspec.msgpack.Decoder(Proposal)
_WAY_OUT = (
    *(DeleteFile, DeleteBucket, AbortUpload, AdvanceGeneration, ReclaimStep),
    *(CreateJoinToken, AdmitMember, UpdateMember, SetMemberStage, ChangeRing),
    *(SetMemberIntent, ForgetMember, ReportSettled),
)
"""What a full disk takes from its reserve: what frees space, and what brings nodes in and out, for
a new node is the other way to get room; a node that starts anew has to announce itself, too."""


class RaftStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How this member sees the group."""

    node_id: NodeId
    role: str
    """leader, candidate, follower or learner."""
    term: int
    leader_id: NodeId | None
    commit_index: int
    applied_index: int
    first_index: int
    last_index: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    removed: tuple[NodeId, ...] = ()
    """Who was removed for good, as far as that is committed; the last of them."""
    lag_entries: dict[NodeId, int]
    """On the leader: how far each member's journal is behind."""
    state_time_ms: int


class Links(Protocol):
    """The connections to other members, as far as a replica knows them."""

    def send(self, node_id: NodeId, message: Message) -> None:
        """Queue for sending; lost where the member can't be reached."""

    def can_send(self, node_id: NodeId) -> bool:
        """False while there is no connection, or too much is queued on it."""

    def flush(self) -> None:
        """Send what is queued."""


class ReplicatedState(Protocol):
    """The state machine, as far as a replica drives it (`state_machine.py`)."""

    applied: AppliedState

    def apply(self, index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]: ...

    def flush(self) -> None: ...


class Replica:
    """Drive with `receive`, `submit`, `read`, then `advance`; take `results` and `reads_done`."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        log: ReplicatedLog,
        state: ReplicatedState,
        links: Links,
        stages: Callable[[], Mapping[NodeId, str]],
        timing: RaftTiming,
        clock: Callable[[], float],
        wall_clock_ms: Callable[[], int],
        generator: random.Random,
    ) -> None:
        """`stages` reads the members' stages from the committed state.

        Raises StateMismatchError where the log does not reach the state.
        """
        applied_index = state.applied.index
        if not log.first_index - 1 <= applied_index <= log.last_index:
            raise StateMismatchError(
                f"the state is at index {applied_index}, "
                f"the journal holds {log.first_index} to {log.last_index}"
            )
        self.node_id = node_id
        self.log = log
        self.results: list[tuple[bytes, bytes | MetadataError]] = []
        """Encoded Results, or errors, of this node's own requests; the driver empties it."""
        self.reads_done: list[tuple[int, int | MetadataError]] = []
        """Applied index, or the error, for each token; the driver empties it."""
        self.state_needed_from: NodeId | None = None
        """A leader whose log no longer holds what this node needs; the driver downloads."""
        self.on_configuration: Callable[[Configuration], None] = lambda _: None
        self._state = state
        self._links = links
        self._stages = stages
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._generator = generator
        self._state_time = StateTime(state.applied.time_ms)
        self._pending = PendingProposals()
        self._group = GroupCommit()
        self._in_flight = 0
        self._reads = PendingReads(generator.getrandbits(62))
        self._rounds = LeaderRounds(node_id)
        self._after_flush: list[tuple[NodeId, Message]] = []
        self._answers: list[tuple[bytes, bytes]] = []
        self._route: tuple[NodeId | None, int] = (None, 0)
        self._route_is_new = False
        self._reroute_at = 0.0
        self._leading_term = 0
        self._membership_at = 0.0
        self._hand_over_at = 0.0
        self._stage_request: bytes | None = None
        self._transfer_until = float("-inf")
        self._transfer_to: NodeId | None = None
        self._voter_gone_seconds = timing.voter_gone
        self.engine = RaftEngine(
            node_id=node_id,
            log=log,
            applied_index=applied_index,
            timing=timing,
            clock=clock,
            generator=generator,
            host=self,
        )

    # --- what comes in ------------------------------------------------------------------------

    def submit(self, draft: Draft, *, deadline: float, submit_before: float) -> None:
        """Have a command applied; its answer appears in `results` by `deadline`.

        Where no leader takes it before `submit_before` it fails as never submitted.
        """
        self._pending.add(draft, deadline=deadline, submit_before=submit_before)

    def read(self, token: int, deadline: float) -> None:
        """Ask for a linearizable index to be applied here; `reads_done` has the token then."""
        if len(self._reads) >= READER_LIMIT:
            self.reads_done.append((token, OverloadedError("too many reads wait")))
        else:
            self._reads.add(token, deadline)

    def receive(self, sender: NodeId, message: Message) -> None:
        """Take a message from an authenticated peer. Raises FatalRaftError."""
        match message:
            case Forward(proposals):
                self._on_forward(sender, proposals)
            case ForwardRefused(request_ids, overloaded):
                self.results += self._pending.refused(
                    request_ids, self._clock(), overloaded=overloaded
                )
            case Confirm(term, number):
                if term == self.engine.term:
                    self._links.send(sender, Confirmed(term, number))
            case Confirmed():
                self._on_confirmed(sender, message)
            case ReadRequest(term, number):
                self._on_read_request(sender, term, number)
            case ReadReply(number, 0):
                self._reads.refused(number, self._clock())
            case ReadReply(number, index):
                self._reads.answered(number, index)
            case StateNeeded():
                if self.engine.needs_state(sender, message):
                    self.state_needed_from = sender
            case _:
                if isinstance(message, AppendReply) and self.engine.is_leader:
                    self._state_time.observe(sender, message.clock_ms, self._clock())
                self.engine.receive(sender, message)

    def peer_connected(self, node_id: NodeId) -> None:
        """What was on its way over an earlier connection may be lost: send it again."""
        if node_id == self.engine.leader_id:
            self._route_is_new = True
            self._reads.retry()

    def peer_lost(self, node_id: NodeId) -> None:
        self.engine.peer_lost(node_id)

    # --- the step -----------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do all that is due; returns whether there is more to do at once.

        Call after every batch of input, and every 20 ms. Raises FatalRaftError and whatever the
        journal or the state machine raise: the process must end then.
        """
        self.engine.tick()
        now = self._clock()
        self._route_pending(now)
        self._propose()
        self._ask_for_reads(now)
        self.reads_done += self._reads.release(self._state.applied.index)
        self.drain()
        return self.engine.applied_index < self.engine.commit_index or (
            self.engine.is_sole_voter and self.engine.commit_index < self.log.last_index
        )

    def housekeep(self) -> None:
        """Give up on what waited too long, and do the leader's membership work; every 20 ms."""
        now = self._clock()
        self.results += self._pending.expire(now)
        self.reads_done += self._reads.expire(now)
        again = self._rounds.ask_again(now)
        if again is not None and self.engine.is_leader:
            question, confirmed_by = again
            for voter in self.engine.configuration.voters:
                if voter not in confirmed_by:
                    self._links.send(voter, question)
        if now < self._transfer_until:
            self.engine.transfer_leadership(self._transfer_to)
        elif now >= self._membership_at:
            self._membership_at = now + MEMBERSHIP_PERIOD_SECONDS
            self._tend_membership(now)

    def drain(self) -> None:
        """Send what is queued: at once what claims nothing, after a sync what does."""
        self._links.flush()
        try:
            self.log.flush()
        except StorageFullError:
            self.engine.disk_is_full()
            return
        if self._after_flush:
            for node_id, message in self._after_flush:
                self._links.send(node_id, message)
            self._after_flush.clear()
            self._links.flush()

    def committed_configuration(self) -> Configuration:
        """The last configuration that no other leader can take back any more."""
        return self.log.configuration_at(self.engine.commit_index)

    def begin_transfer(self, target: NodeId | None = None) -> None:
        """Stop proposing and hand leadership to another voter (any, or `target`), within half a
        second."""
        if self.engine.is_leader and len(self.engine.configuration.voters) > 1:
            self._transfer_until = self._clock() + TRANSFER_SECONDS_LIMIT
            self._transfer_to = target

    def fail_all(self, reason: str) -> None:
        """Answer everybody who waits: this node stops."""
        self.results += self._pending.fail_all(reason)
        self.reads_done += self._reads.fail_all(reason)

    def installed(self, configuration: Configuration, state: ReplicatedState) -> None:
        """Go on with a downloaded state that is ahead of this node's (rule M6).

        `configuration` is the one in force at its index. The caller answers what was pending from
        the state's request results.
        """
        self._state = state
        self.state_needed_from = None
        self.engine.install(state.applied.index, state.applied.term, configuration)

    def status(self) -> RaftStatus:
        engine = self.engine
        others = [each for each in engine.configuration.members if each != self.node_id]
        last_index = self.log.last_index
        return RaftStatus(
            node_id=self.node_id,
            role=engine.role,
            term=engine.term,
            leader_id=engine.leader_id,
            commit_index=engine.commit_index,
            applied_index=engine.applied_index,
            first_index=self.log.first_index,
            last_index=last_index,
            voters=engine.configuration.voters,
            learners=engine.configuration.learners,
            removed=self.committed_configuration().removed,
            lag_entries=(
                {each: last_index - engine.match_index(each) for each in others}
                if engine.is_leader
                else {}
            ),
            state_time_ms=self.state_time_ms(),
        )

    def pending_request_ids(self) -> list[bytes]:
        return self._pending.request_ids()

    def answer(self, request_id: bytes, result: bytes) -> None:
        """Answer a pending request from the remembered results."""
        if self._pending.complete(request_id):
            self.results.append((request_id, result))

    # --- EngineHost ---------------------------------------------------------------------------

    def send(self, node_id: NodeId, message: Message) -> None:
        if isinstance(message, AppendReply) and message.success:
            self._after_flush.append((node_id, message))
        else:
            self._links.send(node_id, message)

    def can_send(self, node_id: NodeId) -> bool:
        return self._links.can_send(node_id)

    def clock_ms(self) -> int:
        return self._wall_clock_ms()

    def state_time_ms(self) -> int:
        """State time now: by the voters' clocks on the leader, else as last heard."""
        if not self.engine.is_leader:
            return max(self._state.applied.time_ms, self.engine.leader_time_ms)
        self._begin_leading()
        now = self._clock()
        self._state_time.observe(self.node_id, self._wall_clock_ms(), now)
        return self._state_time.now_ms(now, self.engine.configuration.voters)

    def committed(self) -> None:
        """Before this node applies, the others get the next entry, or at least the commit index;
        and acknowledgements leave."""
        if self.engine.is_leader and not self._propose():
            self.engine.announce_commit()
        self.drain()

    def apply(self, index: int, term: int, command: bytes) -> None:
        entry = command[1:] if command[:1] == COMMAND else b""
        self._answers += self._state.apply(index, term, entry)

    def applied(self) -> None:
        self._state.flush()
        self.results += [answer for answer in self._answers if self._pending.complete(answer[0])]
        self._answers.clear()

    def configuration_changed(self, configuration: Configuration) -> None:
        self.on_configuration(configuration)

    def entries_dropped(self) -> None:
        self._after_flush.clear()

    # --- commands -----------------------------------------------------------------------------

    def _route_pending(self, now: float) -> None:
        """Bring this node's own proposals to the leader of the moment."""
        leader, term = self.engine.leader_id, self.engine.term
        if self._route != (leader, term):
            if self._route[0] == self.node_id:
                self._lose_leadership(now)
            self._route = (leader, term)
            self._reroute_at = now
        if leader is None or not self._pending or not self.engine.knows_state_time:
            return
        if self._route_is_new or now >= self._reroute_at:
            self._reroute_at = now + REROUTE_PERIOD_SECONDS
            self._pending.reroute(
                leader=leader, term=term, now=now, connection_new=self._route_is_new
            )
            self._route_is_new = False
        time_ms = self.state_time_ms()
        if leader == self.node_id:
            while batch := self._pending.route(leader, term, time_ms=time_ms, now=now):
                refused = [each for each, proposal in batch if not self._group.add(each, proposal)]
                self.results += self._pending.refused(refused, now, overloaded=True)
            return
        while self._links.can_send(leader):
            batch = self._pending.route(leader, term, time_ms=time_ms, now=now)
            if not batch:
                break
            self._links.send(leader, Forward([proposal for _, proposal in batch]))

    def _lose_leadership(self, now: float) -> None:
        self._pending.refused(self._group.drop(), now, overloaded=False)
        self._in_flight = 0
        for reader in self._rounds.abandon():
            if reader.node_id == self.node_id:
                self._reads.refused(reader.round, now)
            else:
                self._links.send(reader.node_id, ReadReply(reader.round, 0))

    def _on_forward(self, sender: NodeId, proposals: list[bytes]) -> None:
        refused: list[bytes] = []
        leads = self.engine.is_leader and self._clock() >= self._transfer_until
        for encoded in proposals:
            request_id = _proposal_decoder.decode(encoded).request_id
            if not leads or not self._group.add(request_id, encoded):
                refused.append(request_id)
        if refused:
            self._links.send(sender, ForwardRefused(refused, overloaded=leads))

    def _propose(self) -> bool:
        """Append the next entry unless one is in flight; whether one was appended."""
        engine = self.engine
        if (
            not self._group
            or not engine.is_leader
            or engine.commit_index < self._in_flight
            or self._clock() < self._transfer_until
        ):
            return False
        batch = self._make_room(self._group.take())
        if not batch:
            return False
        entry = encode_entry(self.state_time_ms(), [proposal for _, proposal in batch])
        index = engine.propose(entry)
        assert index is not None
        self._in_flight = index
        return True

    def _make_room(self, batch: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What of a batch the disk has room for: on a full one only the way out (M4)."""
        size = sum(len(proposal) for _, proposal in batch)
        try:
            self.log.ensure_room(size, privileged=False)
        except StorageFullError:
            kept = [each for each in batch if _is_way_out(each[1])]
            self._refuse([each for each, _ in batch if each not in {name for name, _ in kept}])
            try:
                self.log.ensure_room(sum(len(each) for _, each in kept), privileged=True)
            except StorageFullError:
                self._refuse([each for each, _ in kept])
                return []
            return kept
        return batch

    def _refuse(self, request_ids: list[bytes]) -> None:
        now = self._clock()
        own = [each for each in request_ids if each in self._pending]
        self.results += self._pending.refused(own, now, overloaded=True)
        others = [each for each in request_ids if each not in set(own)]
        for member in self.engine.configuration.members:
            if others and member != self.node_id:
                self._links.send(member, ForwardRefused(others, overloaded=True))

    def _begin_leading(self) -> None:
        """Once per term: never stamp less than any entry that may become committed (M5)."""
        if self._leading_term == self.engine.term:
            return
        self._leading_term = self.engine.term
        last_ms = max(self._state.applied.time_ms, self.engine.leader_time_ms)
        unapplied = self.log.entries(self.engine.applied_index + 1, self.log.last_index)
        for command, _, _ in reversed(unapplied):
            # One that can't be read tells no time, and will be skipped by every replica.
            with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                if command[:1] == COMMAND:
                    last_ms = max(last_ms, decode_entry(command[1:]).time_ms)
                    break
        self._state_time = StateTime(last_ms)
        self._in_flight = 0

    # --- reads --------------------------------------------------------------------------------

    def _ask_for_reads(self, now: float) -> None:
        leader, term = self.engine.leader_id, self.engine.term
        if leader is not None:
            number = self._reads.ask(leader, term, now)
            if number is not None and leader == self.node_id:
                self._rounds.join(Reader(self.node_id, number))
            elif number is not None:
                self._links.send(leader, ReadRequest(term, number))
        self._open_round(now)

    def _open_round(self, now: float) -> None:
        engine = self.engine
        if not engine.is_established:
            return
        question = self._rounds.open(term=engine.term, commit_index=engine.commit_index, now=now)
        if question is None:
            return
        for voter in engine.configuration.voters:
            if voter != self.node_id:
                self._links.send(voter, question)
        # Alone, a leader is its own majority.
        self._on_confirmed(self.node_id, Confirmed(question.term, question.round))

    def _on_confirmed(self, sender: NodeId, answer: Confirmed) -> None:
        configuration = self.engine.configuration
        done = self._rounds.confirmed(
            sender, answer, voters=configuration.voters, majority=configuration.majority()
        )
        if done is None or not self.engine.is_leader:
            return
        index, readers = done
        for reader in readers:
            if reader.node_id == self.node_id:
                self._reads.answered(reader.round, index)
            else:
                self._links.send(reader.node_id, ReadReply(reader.round, index))

    def _on_read_request(self, sender: NodeId, term: int, number: int) -> None:
        configuration = self.engine.configuration
        if not self.engine.is_established:
            self._links.send(sender, ReadReply(number, 0))
        elif term == self.engine.term and request_is_majority(
            sender, voters=configuration.voters, majority=configuration.majority()
        ):
            self._links.send(sender, ReadReply(number, self.engine.commit_index))
        else:
            self._rounds.join(Reader(sender, number))

    # --- membership ---------------------------------------------------------------------------

    def change_configuration(self, configuration: Configuration) -> int:
        """See `RaftEngine.change_configuration`; returns the index to wait for."""
        return self.engine.change_configuration(configuration)

    def _tend_membership(self, now: float) -> None:
        """Take the next step of M7 where this node leads and the last one is committed."""
        engine = self.engine
        if not engine.is_established or self.log.configuration_index > engine.applied_index:
            return
        if self._stage_request is not None and self._stage_request in self._pending:
            return
        configuration = engine.configuration
        plan = Plan(
            leader=self.node_id,
            configuration=configuration,
            stages=self._stages(),
            members={
                member: MemberView(engine.match_index(member), engine.heard_seconds_ago(member))
                for member in configuration.members
                if member != self.node_id
            },
            last_index=self.log.last_index,
            voter_gone_seconds=self._voter_gone_seconds,
        )
        match plan.next_step():
            case ChangeConfiguration(changed):
                try:
                    engine.change_configuration(changed)
                except (MembershipChangeError, StorageFullError):
                    return
            case RecordStage(node_id, stage, expected_stage):
                self._record_stage(node_id, stage, expected_stage, now)
            case HandOver(node_id):
                if now >= self._hand_over_at:
                    self._hand_over_at = now + HAND_OVER_PERIOD_SECONDS
                    self.begin_transfer(node_id)

    def _record_stage(self, node_id: NodeId, stage: str, expected_stage: str, now: float) -> None:
        command = SetMemberStage(node_id=node_id, stage=stage, expected_stage=expected_stage)
        request_id = self._generator.randbytes(16)
        lifetime_ms = int(MEMBERSHIP_TIMEOUT_SECONDS * 2000)
        self._stage_request = request_id
        deadline = now + MEMBERSHIP_TIMEOUT_SECONDS
        draft = Draft(request_id, encode(command), lifetime_ms)
        self.submit(draft, deadline=deadline, submit_before=deadline)


def _is_way_out(proposal: bytes) -> bool:
    try:
        command = decode_command(_proposal_decoder.decode(proposal).command)
    except msgspec.DecodeError:
        return False
    return isinstance(command, _WAY_OUT)
