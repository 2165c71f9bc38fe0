"""Joins, departures and removals in virtual time, with any node crashing at any point (rule M7)."""

from __future__ import annotations

import pytest

from metadata_raft.settings import RaftTiming
from tests.fakes.network import Weather
from tests.metadata_raft.membership_world import MembershipWorld
from tests.metadata_raft.raft_world import World, simulation

ROUGH = Weather(drop=0.02, duplicate=0.02, slow=0.03)


def live_through(world: World, members: MembershipWorld, *, seconds: float) -> None:
    """Writes, and one node down at a time besides the dead; who, when and how long is seeded."""
    generator = world.generator
    end = world.network.now + seconds
    while world.network.now < end:
        running = world.running()
        if running and generator.random() < 0.7:
            world.submit(generator.choice(running))
        down = [node for node in world.nodes.values() if node.replica is None]
        away = [node for node in down if node.node_id not in members.dead]
        chance = generator.random()
        if away and chance < 0.15:
            world.start(away[0])
        elif not away and chance < 0.06:
            world.crash(generator.choice(running))
        elif running and chance > 0.97:
            world.checkpoint(generator.choice(running))
        world.network.run(generator.uniform(0, 0.1))


def come_to_rest(world: World, members: MembershipWorld, *expected: str) -> None:
    """Calm weather, everybody back who can be: the end is (one of) what was asked for."""
    world.network.weather = Weather()
    for node in world.nodes.values():
        if node.replica is None and node.node_id not in members.dead:
            world.start(node)
    world.network.run_until(lambda: any(map(members.is_at_rest, expected)), limit=120)
    world.check_final()


@pytest.mark.parametrize("seed", range(10))
def test_comings_and_goings_end_as_they_were_meant(seed: int) -> None:
    """Two nodes join, one leaves and a dead one is removed, all at once and under load, while any
    node may lose its power at any point: exactly the right ones are left, with the right votes, in
    the ring; no acknowledged write is lost and all states are equal."""
    with simulation(seed, ROUGH) as world:
        generator = world.generator
        members = MembershipWorld(world, "abc")
        leaver, victim = generator.sample("abc", 2)
        live_through(world, members, seconds=1)
        steps = ["d joins", "e joins", "one leaves", "one dies"]
        generator.shuffle(steps)
        for step in steps:
            if step == "one leaves":
                members.want(leaver, "leave")
            elif step == "one dies":
                members.kill(victim)
                members.want(victim, "remove")
            else:
                members.join(step[0])
            live_through(world, members, seconds=generator.choice([0, 0, 0.5, 3]))
        live_through(world, members, seconds=6)
        come_to_rest(world, members, "".join(sorted(set("abcde") - {leaver, victim})))
        assert members.model.departed == {leaver, victim}
        assert members.model.epoch_floor > 1
        assert len(world.acknowledged) > 20


@pytest.mark.parametrize("seed", range(100, 105))
def test_a_wish_taken_back_is_carried_out_whole_or_not_at_all(seed: int) -> None:
    """A member is told to leave and to stay again at a random moment, with crashes in between: it
    ends as a full member, or gone, and never as something in between."""
    with simulation(seed, ROUGH) as world:
        members = MembershipWorld(world, "abcd")
        live_through(world, members, seconds=0.5)
        members.want("a", "leave")
        live_through(world, members, seconds=world.generator.uniform(0, 5))
        members.want("a", "stay")
        live_through(world, members, seconds=4)
        come_to_rest(world, members, "abcd", "bcd")
        assert members.model.departed == set("abcd") - set(members.model.members)


@pytest.mark.parametrize("seed", range(200, 204))
def test_the_whole_group_is_replaced(seed: int) -> None:
    """Three new nodes come, all three old ones leave: the leadership moves on, and what was
    acknowledged moves along."""
    with simulation(seed, ROUGH) as world:
        members = MembershipWorld(world, "abc")
        live_through(world, members, seconds=0.5)
        for name in "def":
            members.join(name)
        for name in "abc":
            members.want(name, "leave")
        live_through(world, members, seconds=6)
        come_to_rest(world, members, "def")
        assert members.model.departed == set("abc")


@pytest.mark.parametrize("seed", range(250, 253))
def test_a_cluster_shrinks_to_one_and_grows_again(seed: int) -> None:
    """Two voters are one more than needed, and each of them is: the last step down and the first
    one up hold as well."""
    with simulation(seed, ROUGH) as world:
        members = MembershipWorld(world, "abc")
        live_through(world, members, seconds=0.5)
        for name in "ab":
            members.want(name, "leave", reduce_copies=True)
            live_through(world, members, seconds=world.generator.uniform(0, 3))
        come_to_rest(world, members, "c")
        for name in "de":
            members.join(name)
        world.network.weather = ROUGH
        live_through(world, members, seconds=4)
        come_to_rest(world, members, "cde")


@pytest.mark.parametrize("seed", range(270, 276))
def test_a_leaving_leader_waits_for_a_majority_without_it(seed: int) -> None:
    """Of three voters one is dead when the leader is to go. Whoever leads next must not remove it:
    the two that were left could never commit that. Writing goes on until the dead one is removed as
    well, and then they both go."""
    with simulation(seed) as world:
        members = MembershipWorld(world, "abc")
        leader = world.wait_leader()
        dead = world.generator.choice(sorted(set("abc") - {leader.node_id}))
        (last,) = set("abc") - {leader.node_id, dead}
        members.kill(dead)
        members.want(leader.node_id, "remove")
        world.network.run(12)
        replica = world.wait_leader().replica
        assert replica is not None
        assert leader.node_id in replica.engine.configuration.voters
        members.want(dead, "remove")
        come_to_rest(world, members, last)
        assert members.model.departed == {leader.node_id, dead}


def test_a_dead_voter_is_replaced_without_being_told() -> None:
    """After minutes a learner votes in its place; when it comes back it follows, and keeps its
    place in the ring."""
    with simulation(300) as world:
        world.timing = RaftTiming(voter_gone=5.0)
        members = MembershipWorld(world, "abc")
        world.wait_leader()
        members.join("d")
        world.network.run_until(lambda: members.is_at_rest("abcd"), limit=60)
        leader = world.wait_leader()
        assert leader.replica is not None
        dead = next(name for name in "abc" if name != leader.node_id)
        world.crash(world.nodes[dead])
        replica = leader.replica
        world.network.run(4)
        assert dead in replica.engine.configuration.voters
        world.network.run_until(lambda: "d" in replica.engine.configuration.voters, limit=10)
        assert dead in replica.engine.configuration.learners
        assert members.model.ring == set("abcd")
        world.start(world.nodes[dead])
        world.network.run_until(lambda: members.is_at_rest("abcd"), limit=60)
        world.network.run(10)
        assert dead in replica.engine.configuration.learners
        world.check_final()


def test_the_leader_of_an_idle_group_proposes_nothing() -> None:
    """Once everything is as it should be, the log stands still."""
    with simulation(301) as world:
        members = MembershipWorld(world, "abc")
        members.join("d")
        members.want("a", "leave")
        world.network.run_until(lambda: members.is_at_rest("bcd"), limit=60)
        leader = world.wait_leader()
        assert leader.replica is not None
        last = leader.replica.log.last_index
        world.network.run(20)
        assert leader.replica.log.last_index == last
