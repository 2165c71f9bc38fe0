"""ReadIndex: a read shows what was acknowledged before it, or fails within a second (rule M3)."""

from __future__ import annotations

import pytest

from metadata_raft.messages import (
    Append,
    AppendReply,
    Confirm,
    Confirmed,
    Message,
    ReadRequest,
)
from metadata_raft.read_index import LeaderRounds, PendingReads, Reader, request_is_majority
from ring.members import NodeId
from tests.fakes.network import Weather
from tests.metadata_raft.raft_world import Node, simulation, voters

THREE = ("a", "b", "c")


def test_a_reader_that_comes_after_the_question_joins_the_next_round() -> None:
    """An answer to an earlier question proves nothing for a later read."""
    rounds = LeaderRounds("a")
    rounds.join(Reader("a", 1))
    first = rounds.open(term=4, commit_index=10, now=0.0)
    assert first == Confirm(4, 1)
    rounds.join(Reader("b", 7))
    assert rounds.open(term=4, commit_index=12, now=0.0) is None
    answer = Confirmed(4, 1)
    assert rounds.confirmed("b", answer, voters=THREE, majority=2) == (10, [Reader("a", 1)])
    second = rounds.open(term=4, commit_index=12, now=0.0)
    assert second == Confirm(4, 2)
    assert rounds.confirmed("c", answer, voters=THREE, majority=2) is None
    done = rounds.confirmed("c", Confirmed(4, 2), voters=THREE, majority=2)
    assert done == (12, [Reader("b", 7)])


def test_only_voters_of_this_term_confirm_and_each_once() -> None:
    """A learner, an earlier term or a repeated answer make no majority."""
    five = ("a", "b", "c", "d", "e")
    rounds = LeaderRounds("a")
    rounds.join(Reader("a", 1))
    rounds.open(term=4, commit_index=10, now=0.0)

    def confirmed(sender: NodeId, term: int) -> bool:
        answer = Confirmed(term, 1)
        return rounds.confirmed(sender, answer, voters=five, majority=3) is not None

    assert not confirmed("learner", 4)
    assert not confirmed("b", 3)
    assert not confirmed("b", 4)
    assert not confirmed("b", 4)
    assert confirmed("c", 4)


@pytest.mark.parametrize(("count", "enough"), [(2, True), (3, True), (4, False), (5, False)])
def test_a_voters_request_is_a_majority_of_up_to_three(count: int, enough: bool) -> None:
    """Requester and leader are two; a learner's request is nothing."""
    names = tuple("abcde"[:count])
    majority = count // 2 + 1
    assert request_is_majority("b", voters=names, majority=majority) is enough
    assert not request_is_majority("learner", voters=names, majority=majority)


def test_waiting_readers_share_a_request_and_newcomers_wait_for_the_next() -> None:
    """One request is on its way at a time; who comes meanwhile is not answered by it."""
    reads = PendingReads()
    reads.add(1, 9.0)
    reads.add(2, 9.0)
    assert reads.ask("a", 1, now=0.0) == 1
    reads.add(3, 9.0)
    assert reads.ask("a", 1, now=0.01) is None
    reads.answered(1, 50)
    assert reads.release(49) == []
    assert reads.release(50) == [(1, 50), (2, 50)]
    assert reads.ask("a", 1, now=0.02) == 2
    reads.answered(1, 50)
    assert reads.release(60) == []


def test_a_lost_request_is_repeated_under_a_new_number() -> None:
    """Another leader, a new connection, or silence: the readers ask again."""
    reads = PendingReads()
    reads.add(1, 9.0)
    assert reads.ask("a", 1, now=0.0) == 1
    assert reads.ask("b", 2, now=0.01) == 2
    assert reads.ask("b", 2, now=0.02) is None
    assert reads.ask("b", 2, now=0.5) == 3
    reads.retry()
    assert reads.ask("b", 2, now=0.51) == 4
    assert reads.ask("b", 2, now=0.52) is None
    reads.answered(4, 50)
    assert reads.release(50) == [(1, 50)]
    assert reads.ask("b", 2, now=0.9) is None


def test_a_late_answer_serves_those_who_waited_when_its_request_was_sent() -> None:
    """However often was asked again meanwhile; who came later, it proves nothing for."""
    reads = PendingReads(10)
    reads.add(1, 9.0)
    assert reads.ask("a", 1, now=0.0) == 11
    reads.add(2, 9.0)
    assert reads.ask("a", 1, now=0.15) == 12
    reads.add(3, 9.0)
    assert reads.ask("a", 1, now=0.3) == 13
    reads.answered(12, 50)
    assert reads.release(50) == [(1, 50), (2, 50)]
    reads.answered(11, 40)
    assert reads.release(99) == []
    reads.answered(13, 60)
    assert reads.release(99) == [(3, 99)]
    assert len(reads) == 0


def test_an_answer_to_no_request_of_this_start_serves_nobody() -> None:
    """Neither a number from before nor one that was never asked under."""
    reads = PendingReads(10)
    reads.add(1, 9.0)
    assert reads.ask("a", 1, now=0.0) == 11
    for number in (1, 10, 12, 99):
        reads.answered(number, 50)
    assert reads.release(99) == []


def test_reads_are_answered_however_slow_the_leader_is() -> None:
    """Where every answer takes longer than the patience of who asks, reads through followers still
    get through, all of them."""
    with simulation(9, Weather(delay_min=0.035, delay_max=0.045)) as world:
        voters(world, *"abcde")
        leader = world.wait_leader()
        world.network.run(0.5)
        followers = [node for node in world.nodes.values() if node is not leader]
        for _ in range(60):
            for node in followers:
                world.read(node)
            world.network.run(0.05)
        world.network.run(1)
        assert (world.reads_answered, world.reads_failed) == (240, 0)


def test_an_answer_from_before_a_restart_answers_nothing() -> None:
    """A node that starts again does not number its requests as before: an answer that was for its
    former self, and is older than its present reads, fits none of them."""
    numbers: list[int] = []

    def note(source: NodeId, target: NodeId, message: Message) -> None:
        if isinstance(message, ReadRequest):
            numbers.append(message.round)

    with simulation(7) as world:
        voters(world, *THREE)
        leader = world.wait_leader()
        world.network.on_transmit = note
        follower = next(node for node in world.nodes.values() if node is not leader)
        for _ in range(2):
            world.network.run(0.5)
            world.read(follower)
            world.network.run(0.01)
            world.crash(follower)
            world.start(follower)
    first, second = numbers
    assert abs(first - second) > 1000


def test_a_refused_read_pauses() -> None:
    """A node that is no leader any more is not asked as fast as the network carries it."""
    asked = 0

    def count(source: NodeId, target: NodeId, message: Message) -> None:
        nonlocal asked
        asked += isinstance(message, ReadRequest)

    with simulation(8) as world:
        voters(world, *THREE)
        leader = world.wait_leader()
        world.network.run(0.5)
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert leader.replica is not None
        leader.replica.engine.disk_is_full()
        world.network.on_transmit = count
        world.read(follower)
        world.network.run(0.1)
        assert 2 <= asked <= 10
        world.network.run(1)
        assert world.reads_answered == 1


def test_without_a_majority_a_read_fails_within_a_second() -> None:
    """A leader cut off from the others, and a follower without a leader, answer no read."""
    with simulation(1) as world:
        voters(world, *THREE)
        world.wait_leader()
        world.network.partition(["a"], ["b"], ["c"], noticed=False)
        for node in world.nodes.values():
            world.read(node)
        world.network.run(1.05)
        assert (world.reads_answered, world.reads_failed) == (0, 3)


def test_a_deposed_leader_answers_no_read() -> None:
    """While another leader commits, one that was cut off but still believes in itself must not
    answer: its commit index is old."""
    with simulation(2) as world:
        voters(world, *THREE)
        old = world.wait_leader()
        others = [node for node in world.nodes.values() if node is not old]
        world.network.partition([old.node_id], [node.node_id for node in others], noticed=False)
        for node in others:
            assert node.replica is not None
            node.replica.peer_lost(old.node_id)
        world.network.run_until(lambda: world.leader() in others, limit=0.9)
        new = world.leader()
        assert new is not None
        world.submit(new)
        world.network.run_until(lambda: len(world.acknowledged) == 1, limit=0.1)
        assert old.replica is not None
        assert old.replica.engine.is_leader
        world.read(old)
        world.network.run(1.05)
        assert (world.reads_answered, world.reads_failed) == (0, 1)


def test_a_new_leader_answers_no_read_before_its_own_entry_is_committed() -> None:
    """It has what its predecessor acknowledged in its log, but does not know that it is committed
    (Ongaro's thesis, §6.4, step 1)."""
    with simulation(5) as world:
        nodes = voters(world, *THREE)
        old = world.wait_leader()
        others = [node for node in nodes if node is not old]

        def lose(source: NodeId, target: NodeId, message: Message) -> bool:
            # The others never hear that the command is committed, nor do they commit later.
            if source == old.node_id and isinstance(message, Append):
                return bool(message.entries)
            return not (target != old.node_id and isinstance(message, AppendReply))

        world.network.run(0.2)
        world.network.on_deliver = lose
        world.submit(old)
        world.network.run_until(lambda: len(world.acknowledged) == 1, limit=0.2)
        world.crash(old)

        def new_leader() -> Node | None:
            leading = [node for node in others if node.replica and node.replica.engine.is_leader]
            return leading[0] if leading else None

        world.network.run_until(lambda: new_leader() is not None, limit=5)
        new = new_leader()
        assert new is not None
        for node in others:
            world.read(node)
        world.network.run(0.3)
        assert world.reads_answered == 0
        world.network.on_deliver = lambda *_: True
        world.network.run_until(lambda: world.reads_answered == 2, limit=0.6)


def test_a_node_of_another_term_confirms_nothing() -> None:
    """Who has moved on to a later term does not vouch for an earlier one."""
    with simulation(6) as world:
        voters(world, *THREE)
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert follower.replica is not None
        follower.replica.advance()
        sent: list[Message] = []
        world.network.on_transmit = lambda source, target, message: sent.append(message)
        follower.replica.receive(leader.node_id, Confirm(follower.replica.engine.term - 1, 1))
        follower.replica.drain()
        assert sent == []
        follower.replica.receive(leader.node_id, Confirm(follower.replica.engine.term, 1))
        follower.replica.drain()
        assert sent == [Confirmed(follower.replica.engine.term, 1)]


def test_a_read_waits_until_the_index_is_applied_here() -> None:
    """A follower that has heard the index but not the entries does not answer before it has them
    in its state."""
    with simulation(3) as world:
        voters(world, *THREE)
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)

        def lose_entries(source: NodeId, target: NodeId, message: Message) -> bool:
            return target != follower.node_id or type(message).__name__ != "Append"

        world.network.on_deliver = lose_entries
        world.submit(leader)
        world.network.run_until(lambda: len(world.acknowledged) == 1, limit=0.2)
        world.read(follower)
        world.network.run(0.2)
        assert world.reads_answered == 0
        world.network.on_deliver = lambda *_: True
        world.network.run_until(lambda: world.reads_answered == 1, limit=0.5)


def test_reads_work_on_every_node() -> None:
    """Leader, follower, and a learner that nobody counts."""
    with simulation(4) as world:
        voters(world, *THREE)
        leader = world.wait_leader()
        world.add("d")
        for node in world.running():
            assert node.state is not None
            node.state.stages["d"] = "joining"
        replica = leader.replica
        assert replica is not None
        replica.engine.change_configuration(replica.engine.configuration.with_learner("d"))
        world.submit(leader)
        world.network.run(1)
        for node in world.nodes.values():
            world.read(node)
        world.network.run(0.2)
        assert (world.reads_answered, world.reads_failed) == (4, 0)
