"""The engine against the library's hazards: each scenario on the product's own classes."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import itertools
import re
import subprocess
import sys
import time

import pytest

import metadata_raft.engine
from metadata_raft.configuration import COMMAND, NO_OP, Configuration
from metadata_raft.engine import LIBRARY_VERSION
from metadata_raft.errors import StateMismatchError
from metadata_raft.log import ReplicatedLog
from metadata_raft.messages import (
    Append,
    AppendReply,
    Message,
    PreVote,
    RequestVote,
    StateNeeded,
    Vote,
)
from metadata_raft.replica import Replica
from metadata_raft.settings import RaftTiming
from ring.members import NodeId
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.fakes.network import SimulatedLinks, Weather
from tests.metadata_raft.raft_world import FakeState, Node, World, simulation, voters


def log_of(node: Node) -> list[tuple[bytes, int, int]]:
    assert node.journal is not None
    return node.journal.entries


def test_the_library_is_the_one_this_was_built_on() -> None:
    """The exact version, and every private name that is used or replaced, is there."""
    assert importlib.metadata.version("pysyncobj") == LIBRARY_VERSION
    ours = inspect.getsource(metadata_raft.engine)
    # Imported here, after the engine, which puts right what the import breaks (hazard 17).
    module = importlib.import_module("pysyncobj.syncobj")
    library = inspect.getsource(module)
    names = set(re.findall(r"_SyncObj(__\w+)", ours))
    assert len(names) >= 20
    for name in names:
        assert f"self.{name}" in library, f"the library has no {name} any more"
    for name in re.findall(r"def _SyncObj(__\w+)", ours):
        assert hasattr(module.SyncObj, f"_SyncObj{name}"), f"{name} replaces nothing"


def test_the_library_reads_the_same_clock() -> None:
    """Its deadlines and ours are compared: a clock that is slewed differently would hold elections
    back, or bring them on, by the difference."""
    assert importlib.import_module("pysyncobj.syncobj").monotonicTime is time.monotonic


def test_names_of_addresses_still_work() -> None:
    """The library's import leaves the process with a working inet_ntop (hazard 17)."""
    code = (
        "import socket, metadata_raft.engine;"
        "print(socket.inet_ntop(socket.AF_INET, bytes([127, 0, 0, 1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "127.0.0.1\n", done.stderr


def test_an_overtaken_message_removes_nothing_acknowledged() -> None:
    """A follower that gets an earlier Append again keeps what it has acknowledged since, so that
    a leader's death in that instant loses nothing (hazard 1)."""
    with simulation(1) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)
        world.network.keep_delivered = True
        for _ in range(5):
            world.submit(leader)
            world.network.run(0.1)
        assert len(world.acknowledged) == 5
        first = next(
            message
            for _, target, message in world.network.delivered
            if target == follower.node_id and isinstance(message, Append) and message.entries
        )
        before = list(log_of(follower))
        assert follower.replica is not None
        follower.replica.receive(leader.node_id, first)
        assert log_of(follower) == before
        assert follower.journal is not None
        assert follower.journal.disk.entries == before


def test_an_acknowledgement_follows_the_sync() -> None:
    """At the moment a follower says that it has entries, its disk has them (hazard 4)."""
    with simulation(2, Weather(drop=0.02, slow=0.05)) as world:
        voters(world, "a", "b", "c")
        checked = 0

        def check(source: NodeId, target: NodeId, message: Message) -> None:
            nonlocal checked
            if isinstance(message, AppendReply) and message.success:
                assert world.nodes[source].disk.entries[-1][1] >= message.next_index - 1
                checked += 1

        world.network.on_transmit = check
        leader = world.wait_leader()
        for _ in range(20):
            world.submit(leader)
            world.network.run(0.01)
        assert checked > 20


def test_what_found_no_room_is_not_acknowledged() -> None:
    """A follower whose disk is full at the sync takes back the entries and their acknowledgement
    with them; the commit index, which had covered them, follows (rule M4)."""
    with simulation(2) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        follower = next(node for node in world.nodes.values() if node is not leader)
        replica = follower.replica
        assert replica is not None
        assert follower.journal is not None
        wrong: list[int] = []

        def check(source: NodeId, target: NodeId, message: Message) -> None:
            disk = world.nodes[source].disk.entries
            if isinstance(message, AppendReply) and message.success:
                wrong.extend(range(disk[-1][1] + 1, message.next_index))

        world.network.on_transmit = check
        engine, log = replica.engine, replica.log
        entries = [(NO_OP, log.last_index + 1, engine.term)]
        append = Append(engine.term, log.last_index + 1, log.last_index, log.last_term, 0, entries)
        replica.receive(leader.node_id, append)
        follower.journal.fail_next_flush = True
        is_busy = replica.advance()
        assert not wrong, "an entry that is gone was acknowledged"
        assert engine.commit_index == log.last_index
        assert not is_busy


def test_a_leader_counts_itself_only_when_synced() -> None:
    """What a leader calls committed is on its own disk: also its first entry, and a change of
    members, where it is its own majority."""
    with simulation(3) as world:
        (a,) = voters(world, "a")
        world.add("b")
        for node in world.running():
            assert node.state is not None
            node.state.stages["b"] = "joining"
        checked = 0

        def check(source: NodeId, target: NodeId, message: Message) -> None:
            nonlocal checked
            if isinstance(message, Append):
                disk = world.nodes[source].disk.entries
                assert message.commit_index <= disk[-1][1]
                checked += 1

        world.network.on_transmit = check
        world.wait_leader()
        assert a.replica is not None
        assert a.state is not None
        apply = a.state.apply

        def apply_checked(index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
            assert index <= a.disk.entries[-1][1]
            return apply(index, term, entry)

        a.state.apply = apply_checked  # type: ignore[method-assign]
        learner = a.replica.engine.configuration.with_learner("b")
        a.replica.engine.change_configuration(learner)
        for _ in range(20):
            world.submit(a)
            world.network.run(0.01)
        assert checked > 20


def test_an_acknowledgement_waits_for_the_sync_whoever_flushes_the_connections() -> None:
    """A download that writes to the same connections does not carry it out early."""
    with simulation(18) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert follower.replica is not None
        follower.replica.advance()
        log = follower.replica.log
        sent: list[Message] = []
        world.network.on_transmit = lambda source, target, message: sent.append(message)
        entries = [(NO_OP, log.last_index + 1, log.last_term)]
        term = follower.replica.engine.term
        append = Append(term, 0, log.last_index, log.last_term, 0, entries)
        follower.replica.receive(leader.node_id, append)
        follower.replica._links.flush()
        assert sent == []
        follower.replica.drain()
        assert [type(message) for message in sent] == [AppendReply]
        assert follower.disk.entries[-1] == entries[0]


def test_a_new_leaders_no_op_is_synced_before_it_counts() -> None:
    """A sole voter elects itself, appends and commits in one step: the sync comes in between."""
    with simulation(15) as world:
        journal = FakeJournal(JournalDisk())
        state = FakeState(world)
        replica = Replica(
            node_id="a",
            log=ReplicatedLog(journal, Configuration(("a",))),
            state=state,
            links=SimulatedLinks(world.network, "a"),
            stages=dict,
            timing=RaftTiming(),
            clock=world.network.clock,
            wall_clock_ms=lambda: 0,
            generator=world.generator,
        )

        def check(index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
            assert index <= journal.disk.entries[-1][1]
            return []

        state.apply = check  # type: ignore[method-assign]
        replica.committed = lambda: None  # type: ignore[method-assign] # It syncs as well.
        replica.advance()
        assert replica.engine.is_established


def test_a_word_without_entries_commits_nothing() -> None:
    """A leader that offers its state vouches for nothing in this log: a tail that was never
    committed is not applied because of it (hazard 2)."""
    with simulation(4) as world:
        nodes = voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.submit(leader)
        world.network.run(0.5)
        others = [node for node in nodes if node is not leader]
        world.network.partition([leader.node_id], [o.node_id for o in others], noticed=False)
        for _ in range(3):
            world.submit(leader)
        world.network.run(0.01)
        assert leader.replica is not None
        assert leader.state is not None
        numbers = list(leader.state.numbers)
        assert leader.replica.log.last_index > leader.replica.engine.commit_index
        offer = StateNeeded(leader.replica.engine.term + 1, 10_000, 1, 0)
        leader.replica.receive(others[0].node_id, offer)
        leader.replica.advance()
        assert leader.state.numbers == numbers
        assert leader.replica.state_needed_from == others[0].node_id


def test_an_acknowledgement_of_an_earlier_term_does_not_count() -> None:
    """What was acknowledged to an earlier leadership commits nothing in a later one (hazard 3)."""
    with simulation(5) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert leader.replica is not None
        engine = leader.replica.engine
        world.network.partition(["a"], ["b"], ["c"], noticed=False)
        world.submit(leader)
        world.network.run(0.01)
        commit_index = engine.commit_index
        assert leader.replica.log.last_index > commit_index
        stale = AppendReply(engine.term - 1, leader.replica.log.last_index + 1, True, False, 0)
        leader.replica.receive(follower.node_id, stale)
        leader.replica.advance()
        assert engine.commit_index == commit_index


def test_repeated_votes_elect_nobody() -> None:
    """A candidate of five with one other vote, told three times, does not lead."""
    with simulation(6) as world:
        a, *_ = voters(world, "a", "b", "c", "d", "e")
        assert a.replica is not None
        world.network.partition(["a"], ["b", "c", "d", "e"], noticed=False)
        engine = a.replica.engine
        engine.peer_lost("b")
        for voter in ("b", "c"):
            # Enough pre-votes to stand for election.
            world.network.run_until(lambda: engine._pre_vote_term == engine.term + 1)
            engine._pre_votes.add(voter)
        a.replica.advance()
        assert engine.role == "candidate"
        for _ in range(3):
            a.replica.receive("b", Vote(engine.term))
        assert not engine.is_leader
        a.replica.receive("c", Vote(engine.term))
        assert engine.is_leader


def test_a_partitioned_node_does_not_depose_the_leader() -> None:
    """Nodes that can't win do not raise the term; after healing the leader leads on (hazard 13)."""
    with simulation(7) as world:
        voters(world, "a", "b", "c", "d", "e")
        leader = world.wait_leader()
        assert leader.replica is not None
        term = leader.replica.engine.term
        away = [node.node_id for node in world.nodes.values() if node is not leader][:2]
        rest = [name for name in world.nodes if name not in away]
        world.network.partition(away, rest, noticed=True)
        world.network.run(10)
        for name in away:
            replica = world.nodes[name].replica
            assert replica is not None
            assert replica.engine.term == term
        world.network.heal()
        world.network.run(3)
        assert world.leader() is leader
        assert leader.replica.engine.term == term


def test_who_hears_its_leader_helps_nobody_against_it() -> None:
    """Neither pre-votes nor votes are given beside a leader that is heard."""
    with simulation(8) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        one, other = (node for node in world.nodes.values() if node is not leader)
        assert one.replica is not None
        term = one.replica.engine.term
        world.network.keep_delivered = True
        one.replica.receive(other.node_id, PreVote(term + 1, 10_000, term))
        one.replica.receive(other.node_id, RequestVote(term + 1, 10_000, term, transfer=False))
        one.replica.advance()
        world.network.run(0.1)
        assert not any(isinstance(message, Vote) for _, _, message in world.network.delivered)
        assert one.replica.engine.term == term


def test_an_entry_that_cannot_be_applied_ends_the_node() -> None:
    """An exception from the state machine reaches the driver instead of being tried for ever
    (hazard 9)."""
    with simulation(9) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        assert node.state is not None
        assert node.replica is not None

        def fail(index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
            raise RuntimeError("the disk is gone")

        node.state.apply = fail  # type: ignore[method-assign]
        world.submit(node)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            world.network.run(1)


def test_a_proposal_is_in_the_log_however_slow_the_machine() -> None:
    """The library stops taking commands after a heartbeat's time, which a thread may well lose
    between two lines: it would keep the entry for later, when it may not lead any more."""
    with simulation(11) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        assert leader.replica is not None
        before = leader.replica.log.last_index
        jumps = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "pysyncobj.syncobj.monotonicTime", lambda: world.network.now + next(jumps)
            )
            assert leader.replica.engine.propose(b"") == before + 1
        assert leader.replica.log.last_index == before + 1


def test_leadership_moves_on_request() -> None:
    """A leader that hands over is followed by another within half a second, nothing is lost, and
    nobody else has to wait for its silence."""
    with simulation(10) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        for _ in range(10):
            world.submit(leader)
        world.network.run(0.1)
        assert leader.replica is not None
        leader.replica.begin_transfer()
        world.submit(leader)
        world.network.run_until(lambda: world.leader() not in (None, leader), limit=0.5)
        world.network.run_until(lambda: len(world.acknowledged) == 11)
        world.settle()
        world.check_final()


def test_a_silent_leader_steps_down() -> None:
    """A leader that no majority answers leads no longer than its fallback time."""
    with simulation(11) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        assert leader.replica is not None
        engine = leader.replica.engine
        world.network.partition(["a"], ["b"], ["c"], noticed=False)
        world.network.run_until(lambda: not engine.is_leader, limit=1.2)


def test_a_member_of_a_later_term_is_not_locked_out() -> None:
    """A node that went to a later term in vain rejoins the group within a few elections."""
    with simulation(12) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        stray = next(node for node in world.nodes.values() if node is not leader)
        assert stray.replica is not None
        stray.replica.engine.adopt_term(stray.replica.engine.term + 7)
        world.network.run(2)
        world.submit(world.wait_leader())
        world.network.run_until(lambda: len(world.acknowledged) == 1)
        world.settle()
        world.check_final()
        assert stray.state is not None
        assert stray.state.numbers


def test_a_learner_never_stands_for_election() -> None:
    """Not even with pre-votes from when it was a voter (hazard 14)."""
    with simulation(16) as world:
        node = world.add("x", Configuration(("a", "b"), ("x",)))
        assert node.replica is not None
        engine = node.replica.engine
        world.network.run(3)
        engine._pre_vote_term = engine.term + 1
        engine._pre_votes = {"a", "b"}
        node.replica.advance()
        assert (engine.role, engine.term) == ("learner", 0)


def test_a_state_beyond_the_log_is_refused() -> None:
    """A journal that ends before the state does not belong to it (hazard 6)."""
    with simulation(17) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        world.submit(node)
        world.network.run(0.5)
        assert node.journal is not None
        node.journal.disk.entries = node.journal.disk.entries[:1]
        world.network.leave("a")
        with pytest.raises(StateMismatchError, match="the journal holds 1 to 1"):
            world.start(node)


def test_an_installed_state_takes_nothing_that_was_acknowledged() -> None:
    """Where the log agrees with a downloaded state, entries behind it stay; else all goes (M6)."""
    journal = FakeJournal(JournalDisk())
    log = ReplicatedLog(journal, Configuration(("a",)))
    for index in range(2, 6):
        log.add(NO_OP, index, 1)
    log.install(3, 1, Configuration(("a",)))
    assert log.last_index == 5
    log.install(4, 2, Configuration(("a", "b")))
    assert (log.first_index, log.last_index, log.last_term) == (4, 4, 2)
    assert log.configuration.voters == ("a", "b")


def test_an_installed_state_brings_its_term() -> None:
    """A state can be of a term its receiver has not heard of; a leader of an earlier one is heard
    no more, rather than taken at its word about what is committed here."""
    with simulation(12) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert follower.replica is not None
        engine, log = follower.replica.engine, follower.replica.log
        index, term = log.last_index + 2, engine.term
        engine.install(index, term + 1, log.configuration)
        assert engine.term == term + 1
        follower.replica.receive(leader.node_id, Append(term, index, index, term, 0, []))
        assert (log.last_index, log.last_term) == (index, term + 1)


def restart(world: World, node: Node) -> None:
    world.crash(node)
    world.start(node)


def test_a_restart_replays_the_journal_and_keeps_it() -> None:
    """A node whose state fell behind its journal applies the rest again, each entry once, and
    never clears the journal (hazards 5, 6)."""
    with simulation(13) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        for _ in range(30):
            world.submit(node)
            world.network.run(0.05)
        assert node.journal is not None
        entries = list(node.journal.disk.entries)
        restart(world, node)
        assert node.journal.entries[: len(entries)] == entries
        world.wait_leader()
        world.settle()
        world.check_final()


def test_entries_are_never_unpickled() -> None:
    """Bytes that would be a call to the library's pickle are just bytes here, handed to the state
    machine as they are (hazards 10, 11)."""
    with simulation(14) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        assert node.replica is not None
        assert node.state is not None
        seen: list[bytes] = []

        def record(index: int, term: int, entry: bytes) -> list[tuple[bytes, bytes]]:
            seen.append(entry)
            return []

        node.state.apply = record  # type: ignore[method-assign]
        pickled = b"cos\n_exit\n(I1\ntR."
        assert node.replica.engine.propose(pickled) is not None
        world.network.run(0.1)
        assert log_of(node)[-1][0] == COMMAND + pickled
        assert seen == [pickled]
