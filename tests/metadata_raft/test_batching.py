"""Group commit and forwarding: bounded, repeated under the same id, honest about failure."""

from __future__ import annotations

import msgspec
import pytest

from metadata_raft import batching
from metadata_raft.batching import (
    PROPOSAL_SIZE_LIMIT,
    Draft,
    GroupCommit,
    PendingProposals,
    encode_entry,
)
from metadata_raft.commands import (
    ENTRY_SIZE_LIMIT,
    AdvanceGeneration,
    Proposal,
    RevokeKey,
    decode_entry,
    encode,
)
from metadata_raft.configuration import COMMAND as COMMAND_ENTRY
from metadata_raft.errors import NoQuorumError, OutcomeUnknownError, OverloadedError
from metadata_raft.messages import Forward, ForwardRefused, Message
from metadata_raft.state_time import StateTime
from tests.metadata_raft.membership_world import MembershipWorld
from tests.metadata_raft.raft_world import FakeState, simulation, voters

COMMAND = encode(AdvanceGeneration(expected=1))


def draft(number: int) -> Draft:
    return Draft(number.to_bytes(16, "big"), COMMAND, lifetime_ms=1000)


def test_an_entry_holds_the_proposals_as_they_are() -> None:
    """Encoded proposals are put together without decoding, and read back the same."""
    proposals = [encode(Proposal(bytes([i]) * 16, i, msgspec.Raw(COMMAND))) for i in range(3)]
    entry = decode_entry(encode_entry(77, proposals))
    assert (entry.version, entry.time_ms) == (1, 77)
    assert [encode(each) for each in entry.proposals] == proposals


def test_a_batch_fits_one_entry() -> None:
    """The queue is taken in order, and no batch makes an entry larger than the bound."""
    group = GroupCommit()
    for number in range(100):
        assert group.add(bytes([number]), bytes(10_000))
    taken = []
    while batch := group.take():
        assert len(encode_entry(1 << 60, [each for _, each in batch])) <= ENTRY_SIZE_LIMIT
        taken += [name for name, _ in batch]
    assert taken == [bytes([number]) for number in range(100)]
    group.add(b"x", bytes(PROPOSAL_SIZE_LIMIT))
    assert len(encode_entry(1 << 60, [each for _, each in group.take()])) <= ENTRY_SIZE_LIMIT


def test_the_leaders_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By count and by size; what is refused is not kept (hazard 16)."""
    monkeypatch.setattr(batching, "QUEUE_COUNT_LIMIT", 2)
    group = GroupCommit()
    assert [group.add(bytes([each]), b"") for each in range(3)] == [True, True, False]
    assert len(group) == 2
    monkeypatch.setattr(batching, "QUEUE_SIZE_LIMIT", 10)
    group = GroupCommit()
    assert [group.add(bytes([each]), bytes(11)) for each in range(2)] == [True, False]


def route(pending: PendingProposals, leader: str, term: int, now: float) -> list[bytes]:
    return [each for each, _ in pending.route(leader, term, time_ms=5000, now=now)]


def test_a_new_leader_gets_the_same_bytes_again() -> None:
    """The id and the time after which it is refused never change (rule M1)."""
    pending = PendingProposals()
    pending.add(draft(1), deadline=10, submit_before=1)
    ((_, first),) = pending.route("a", 1, time_ms=5000, now=0)
    assert route(pending, "a", 1, now=0) == []
    pending.reroute(leader="b", term=2, now=0, connection_new=False)
    ((_, second),) = pending.route("b", 2, time_ms=9000, now=0)
    assert first == second
    assert msgspec.msgpack.decode(first, type=Proposal).not_after_ms == 6000


def test_a_lost_connection_or_long_silence_sends_again() -> None:
    """What may have been lost goes out again to the same leader."""
    pending = PendingProposals()
    pending.add(draft(1), deadline=10, submit_before=1)
    assert len(route(pending, "a", 1, now=0)) == 1
    pending.reroute(leader="a", term=1, now=0.5, connection_new=False)
    assert route(pending, "a", 1, now=0.5) == []
    pending.reroute(leader="a", term=1, now=0.5, connection_new=True)
    assert len(route(pending, "a", 1, now=0.5)) == 1
    pending.reroute(leader="a", term=1, now=1.6, connection_new=False)
    assert len(route(pending, "a", 1, now=1.6)) == 1


def test_what_was_never_sent_failed_for_sure() -> None:
    """No leader for a second: nothing happened. Sent once: unknown, at the deadline."""
    pending = PendingProposals()
    pending.add(draft(1), deadline=10, submit_before=1)
    pending.add(draft(2), deadline=10, submit_before=1)
    pending._unrouted.remove(draft(2).request_id)
    assert len(route(pending, "a", 1, now=0)) == 1
    (only,) = pending.expire(1.5)
    assert only[0] == draft(2).request_id
    assert isinstance(only[1], NoQuorumError)
    assert pending.expire(9) == []
    ((_, error),) = pending.expire(10)
    assert isinstance(error, OutcomeUnknownError)
    assert error.request_id == draft(1).request_id


def test_without_a_leader_nothing_piles_up() -> None:
    """Hours of commands that no leader took leave nothing behind (hazard 16)."""
    pending = PendingProposals()
    for number in range(100):
        pending.add(draft(number), deadline=number + 10, submit_before=number + 1)
        assert len(pending.expire(number + 1)) == 1
    assert len(pending) == 0
    assert len(pending._unrouted) == 0


def test_a_refusal_takes_the_submission_back() -> None:
    """Refused by the only one who had it: overloaded is final, no leader means try again; but what
    another may still have is never called refused."""
    pending = PendingProposals()
    for number in (1, 2, 3):
        pending.add(draft(number), deadline=10, submit_before=1)
    one, two, three = route(pending, "a", 1, now=0)
    ((name, error),) = pending.refused([one], 0, overloaded=True)
    assert (name, type(error)) == (one, OverloadedError)
    assert pending.refused([two], 0, overloaded=False) == []
    assert route(pending, "a", 1, now=0) == []
    assert route(pending, "a", 1, now=0.1) == [two]
    pending.reroute(leader="b", term=2, now=0.2, connection_new=False)
    route(pending, "b", 2, now=0.2)
    assert pending.refused([three], 0.2, overloaded=True) == []
    assert three in pending


def test_one_entry_is_in_flight_and_the_rest_shares_the_next() -> None:
    """A hundred commands at once take few entries (group commit)."""
    with simulation(1) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        assert leader.replica is not None
        before = leader.replica.log.last_index
        for _ in range(100):
            world.submit(leader)
        world.network.run(1)
        assert len(world.acknowledged) == 100
        assert leader.replica.log.last_index - before <= 3


def test_commands_through_a_follower_survive_their_leader() -> None:
    """A command that a dead leader had is brought to the next one, and takes effect once."""
    with simulation(2) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        follower = next(node for node in world.nodes.values() if node is not leader)
        world.network.on_deliver = lambda source, *_: source != leader.node_id
        for _ in range(5):
            world.submit(follower)
        world.network.run(0.01)
        world.crash(leader)
        world.network.on_deliver = lambda *_: True
        world.network.run_until(lambda: len(world.acknowledged) == 5, limit=2)
        world.settle()
        world.check_final()


def test_without_a_majority_a_command_is_refused_within_a_second() -> None:
    """A node that knows no leader says for sure that nothing happened."""
    with simulation(3) as world:
        a, *_ = voters(world, "a", "b", "c")
        world.network.partition(["a"], ["b"], ["c"], noticed=True)
        number = world.submit(a)
        world.network.run(1.05)
        assert world.refused == {number}


def test_a_full_disk_refuses_commands_but_not_what_frees_space() -> None:
    """The leader's full disk is an overload to clients, not a failure; advancing a generation goes
    on, and with room again everything does (rule M4)."""
    with simulation(4) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        assert node.journal is not None
        assert node.replica is not None
        node.journal.is_full = True
        freeing = world.submit(node)
        world.network.run(0.5)
        assert set(world.acknowledged) == {freeing}
        key = encode(RevokeKey(key_id="a" * 16, actor="system"))
        deadline = world.network.now + 1
        node.replica.submit(Draft(b"k" * 16, key, 1000), deadline=deadline, submit_before=deadline)
        node.replica.advance()
        ((name, error),) = node.replica.results
        assert name == b"k" * 16
        assert isinstance(error, OverloadedError)
        node.replica.results.clear()
        node.journal.is_full = False
        world.submit(node)
        world.network.run(0.5)
        assert len(world.acknowledged) == 2


def test_nodes_come_and_go_while_the_disk_is_full() -> None:
    """A new node is the other way to get room: it is admitted, and becomes a voter (rule M4)."""
    with simulation(5) as world:
        members = MembershipWorld(world, "a")
        node = world.wait_leader()
        assert node.journal is not None
        node.journal.is_full = True
        members.join("b")
        world.network.run_until(lambda: members.is_at_rest("ab"), limit=30)


def test_entries_that_found_no_room_are_never_replaced_in_their_term() -> None:
    """A leader whose journal drops entries it has sent already stops leading at once: the next
    entry of the same index has another term, so nothing diverges."""
    with simulation(6) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        assert leader.journal is not None
        assert leader.replica is not None
        term = leader.replica.engine.term
        leader.journal.fail_next_flush = True
        world.submit(leader)
        world.network.run(3)
        assert leader.replica.engine.term > term
        world.submit(world.wait_leader())
        world.network.run(1)
        world.settle()
        world.check_final()


def test_state_time_is_the_lower_median_and_never_goes_back() -> None:
    """One wrong clock among three moves nothing, in either direction (rule M5)."""
    time = StateTime(1000)
    names = ("a", "b", "c")
    for name, clock_ms in (("a", 50_000), ("b", 50_010), ("c", 9_999_999)):
        time.observe(name, clock_ms, now_seconds=10.0)
    assert time.now_ms(10.0, names) == 50_010
    assert time.now_ms(11.0, names) == 51_010
    time.observe("b", 0, now_seconds=11.0)
    assert time.now_ms(11.0, names) == 51_010
    assert time.now_ms(12.5, names) == 52_500
    assert StateTime(77).now_ms(1.0, names) == 77


def test_a_clock_of_tomorrow_expires_nothing_today() -> None:
    """With one node's clock a day ahead, entries carry the time of the other two."""
    with simulation(5) as world:
        nodes = voters(world, "a", "b", "c")
        leader = world.wait_leader()
        nodes[0].clock_skew_ms = 86_400_000
        world.network.run(0.5)
        world.submit(leader)
        world.network.run(0.5)
        assert leader.state is not None
        assert leader.state.applied.time_ms < world.network.now * 1000 + 1000


def test_a_new_leader_does_not_go_by_its_own_clock_alone() -> None:
    """Until a majority has told its clocks state time stands still: a leader whose own is a day
    ahead, elected a moment ago, expires nothing either (rule M5)."""
    time = StateTime(1000)
    time.observe("a", 9_999_999, now_seconds=10.0)
    assert time.now_ms(10.0, ("a", "b", "c")) == 1000
    assert time.now_ms(10.0, ("a", "b")) == 1000
    time.observe("b", 50_000, now_seconds=10.0)
    assert time.now_ms(10.0, ("a", "b", "c")) == 50_000
    with simulation(9) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.submit(leader)
        world.network.run(0.5)
        follower = next(node for node in world.nodes.values() if node is not leader)
        follower.clock_skew_ms = 86_400_000
        assert leader.replica is not None
        leader.replica.engine.transfer_leadership(follower.node_id)
        number = world.submit(follower)
        world.network.run_until(lambda: number in world.acknowledged, limit=5)
        assert follower.replica is not None
        assert follower.replica.engine.is_leader
        assert follower.state is not None
        assert follower.state.applied.time_ms < world.network.now * 1000 + 1000


def test_a_long_night_expires_nothing_in_the_morning() -> None:
    """Commands that wait for the first leader after hours without power live on its state time,
    not on that of the evening before."""
    with simulation(10) as world:
        nodes = voters(world, "a", "b", "c")
        world.submit(world.wait_leader())
        world.network.run(0.5)
        for node in nodes:
            world.checkpoint(node)
            world.crash(node)
        world.network.run(3600)
        for node in nodes:
            world.start(node)
        for _ in range(20):
            for node in nodes:
                world.submit(node)
            world.network.run(0.05)
        world.settle()
        assert len(world.acknowledged) == 61
        world.check_final()


def test_state_time_survives_a_restart_with_clocks_set_back() -> None:
    """A leader that finds entries in its journal, not yet applied, stamps nothing earlier."""
    with simulation(7) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        for _ in range(3):
            world.submit(node)
            world.network.run(0.1)
        assert node.state is not None
        before = node.state.applied.time_ms
        del node.saved[1:]
        world.crash(node)
        node.clock_skew_ms = -100_000
        world.start(node)
        world.submit(node)
        world.network.run(2)
        assert node.state.applied.time_ms >= before
        assert len(world.acknowledged) == 4


def test_an_entry_that_cannot_be_read_stops_no_leader() -> None:
    """Every replica skips such an entry, so a new leader that finds one goes by the ones before."""
    with simulation(13) as world:
        (node,) = voters(world, "a")
        world.wait_leader()
        world.crash(node)
        _, index, term = node.disk.entries[-1]
        known_ms = int(world.network.now * 1000) + 50_000
        node.disk.entries.append((COMMAND_ENTRY + encode_entry(known_ms, []), index + 1, term))
        node.disk.entries.append((COMMAND_ENTRY + b"\xc1", index + 2, term))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeState, "apply", lambda *_: [])
            world.start(node)
            world.wait_leader()
            assert node.replica is not None
            assert node.replica.state_time_ms() >= known_ms


def test_who_does_not_lead_takes_no_commands() -> None:
    """A forward that reaches a follower is refused at once, so that its sender tries again."""
    with simulation(8) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        one, other = (node for node in world.nodes.values() if node is not leader)
        assert one.replica is not None
        one.replica.advance()
        sent: list[Message] = []
        world.network.on_transmit = lambda source, target, message: sent.append(message)
        one.replica.receive(other.node_id, Forward([draft(1).propose(0)]))
        one.replica.drain()
        assert sent == [ForwardRefused([draft(1).request_id], overloaded=False)]
