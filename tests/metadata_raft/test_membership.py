"""Membership: one change at a time, learners first, the last configuration in the log (M7)."""

from __future__ import annotations

import pytest

from metadata_raft.configuration import (
    Configuration,
    decode_configuration,
    encode_configuration,
)
from metadata_raft.errors import MembershipChangeError
from metadata_raft.membership import (
    ChangeConfiguration,
    HandOver,
    MemberView,
    Plan,
    RecordStage,
    Step,
    voters_wanted,
)
from tests.metadata_raft.raft_world import Node, World, simulation, voters


def step(
    configuration: Configuration,
    stages: dict[str, str],
    *,
    leader: str = "a",
    last_index: int = 100,
    **views: tuple[int, float],
) -> Step | None:
    """What the leader does; the other voters answer and have everything, unless `views` differs."""
    seen = {voter: (last_index, 0.0) for voter in configuration.voters if voter != leader}
    plan = Plan(
        leader=leader,
        configuration=configuration,
        stages=stages,
        members={name: MemberView(*view) for name, view in (seen | views).items()},
        last_index=last_index,
        voter_gone_seconds=300.0,
    )
    return plan.next_step()


@pytest.mark.parametrize(
    ("members", "wanted"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5), (9, 5)]
)
def test_how_many_vote(members: int, wanted: int) -> None:
    """The largest odd number up to five, but two of two."""
    assert voters_wanted(members) == wanted


def test_a_join_goes_step_by_step() -> None:
    """Admitted, then learner, then voter; the recorded stage follows the configuration."""
    alone = Configuration(("a",))
    with_learner = alone.with_learner("b")
    both = with_learner.with_voter("b")
    assert step(alone, {"a": "voter", "b": "joining"}) == ChangeConfiguration(with_learner)
    recorded = step(with_learner, {"a": "voter", "b": "joining"}, b=(0, 0.0))
    assert recorded == RecordStage("b", "learner", "joining")
    assert step(with_learner, {"a": "voter", "b": "learner"}, b=(99, 0.1)) == (
        ChangeConfiguration(both)
    )
    assert step(both, {"a": "voter", "b": "learner"}) == RecordStage("b", "voter", "learner")
    assert step(both, {"a": "voter", "b": "voter"}) is None


@pytest.mark.parametrize("view", [(0, 0.0), (50, 0.0), (100, 5.0)])
def test_a_learner_votes_only_when_caught_up_and_answering(view: tuple[int, float]) -> None:
    """Never heard of, far behind, or silent: it does not count yet (hazard 14)."""
    configuration = Configuration(("a",), ("b",))
    assert step(configuration, {"a": "voter", "b": "learner"}, b=view) is None


def test_a_learner_that_never_answered_does_not_vote() -> None:
    """In a short log, too, where everybody is close to its end."""
    configuration = Configuration(("a",), ("b",))
    stages = {"a": "voter", "b": "learner"}
    assert step(configuration, stages, last_index=5, b=(0, 0.0)) is None
    assert step(configuration, stages, last_index=5, b=(1, 0.0)) is not None


def test_a_fourth_node_follows_and_a_removed_one_stays_away() -> None:
    """Four voters tolerate no more than three; a removed id is not admitted again."""
    three = Configuration(("a", "b", "c"), ("d",))
    stages = {"a": "voter", "b": "voter", "c": "voter", "d": "learner"}
    assert step(three, stages, d=(100, 0.0)) is None
    removed = Configuration(("a",)).with_learner("b").without("b")
    assert removed.removed == ("b",)
    assert step(removed, {"a": "voter", "b": "joining"}) is None


THREE = Configuration(("a", "b", "c"))
VOTERS = {"a": "voter", "b": "voter", "c": "voter"}
SILENT = (100, 400.0)


def test_a_leaving_member_is_removed_and_stays_so() -> None:
    """Whether it votes, follows, or was never taken in; a repetition has nothing to do."""
    learning = Configuration(("a", "b"), ("c",))
    for configuration in (THREE, learning, Configuration(("a", "b"))):
        stages = {"a": "voter", "b": "voter", "c": "leaving"}
        removed = step(configuration, stages, c=(100, 0.0))
        assert removed == ChangeConfiguration(Configuration(("a", "b"), (), ("c",)))
        assert step(removed.configuration, stages) is None


def test_a_leaving_leader_hands_over_after_the_others_have_gone() -> None:
    """To one that stays and is up to date; it can't take itself out (rule M7)."""
    stages = {"a": "leaving", "b": "leaving", "c": "voter"}
    assert step(THREE, stages) == ChangeConfiguration(THREE.without("b"))
    without_b = THREE.without("b")
    assert step(without_b, stages) == HandOver("c")
    assert step(without_b, stages, c=(10, 0.0)) is None
    assert step(without_b, stages, leader="c") == ChangeConfiguration(without_b.without("a"))


def test_a_last_voter_that_leaves_is_replaced_first() -> None:
    """A learner becomes a voter, leads, and removes the old one."""
    alone = Configuration(("a",), ("b",))
    stages = {"a": "leaving", "b": "learner"}
    both = step(alone, stages, b=(100, 0.0))
    assert both == ChangeConfiguration(alone.with_voter("b"))
    assert step(both.configuration, {"a": "leaving", "b": "voter"}) == HandOver("b")


def test_no_removal_takes_the_majority() -> None:
    """With one voter dead, a live one has to wait until two that answer are left."""
    stages = VOTERS | {"b": "leaving"}
    assert step(THREE, stages, c=SILENT) is None
    assert step(THREE, VOTERS | {"c": "leaving"}, c=SILENT) == (
        ChangeConfiguration(THREE.without("c"))
    )


def test_a_new_leader_counts_on_nobody_it_has_not_heard() -> None:
    """It has just begun to lead, so nobody has been silent for long; a voter that has acknowledged
    nothing to it may be dead all the same, and would be half of the voters."""
    assert step(THREE, VOTERS | {"b": "leaving"}, c=(0, 0.1)) is None
    assert step(THREE, VOTERS | {"b": "leaving"}, c=(1, 0.1)) == (
        ChangeConfiguration(THREE.without("b"))
    )


def test_a_removed_voter_is_replaced_by_a_learner_that_answers() -> None:
    """Removal first, then promotion (rule M7)."""
    four = Configuration(("a", "b", "c"), ("d",))
    stages = VOTERS | {"c": "leaving", "d": "learner"}
    removed = step(four, stages, c=SILENT, d=(100, 0.0))
    assert removed == ChangeConfiguration(Configuration(("a", "b"), ("d",), ("c",)))
    del stages["c"]
    five = {**stages, "e": "learner"}
    after = removed.configuration.with_learner("e")
    assert step(after, five, d=SILENT, e=(100, 0.0)) == (ChangeConfiguration(after.with_voter("e")))


def test_a_silent_voter_gives_its_vote_to_a_learner_after_minutes() -> None:
    """So that a dead voter does not cost fault tolerance for ever; a restart changes nothing."""
    four = Configuration(("a", "b", "c"), ("d",))
    stages = VOTERS | {"d": "learner"}
    assert step(four, stages, c=(100, 299.0), d=(100, 0.0)) is None
    assert step(four, stages, c=SILENT, d=(100, 5.0)) is None
    demoted = step(four, stages, c=SILENT, d=(100, 0.0))
    assert demoted == ChangeConfiguration(Configuration(("a", "b"), ("d", "c")))
    stages["c"] = "learner"
    promoted = step(demoted.configuration, stages, c=SILENT, d=(100, 0.0))
    assert promoted == ChangeConfiguration(Configuration(("a", "b", "d"), ("c",)))
    stages["d"] = "voter"
    assert step(promoted.configuration, stages, c=(100, 0.0)) is None


def test_two_silent_voters_of_five_are_replaced_one_by_one() -> None:
    """Each step leaves a majority that answers."""
    configuration = Configuration(("a", "b", "c", "d", "e"), ("f", "g"))
    stages = dict.fromkeys("abcde", "voter") | {"f": "learner", "g": "learner"}
    made = []
    for _ in range(20):
        change = step(configuration, stages, d=SILENT, e=(100, 500.0), f=(100, 0.0), g=(100, 0.0))
        match change:
            case ChangeConfiguration(configuration):
                made.append(configuration.voters)
            case RecordStage(node_id, stage, _):
                stages[node_id] = stage
            case _:
                break
    assert made == [
        ("a", "b", "c", "d"),
        ("a", "b", "c", "d", "f"),
        ("a", "b", "c", "f"),
        ("a", "b", "c", "f", "g"),
    ]


def test_an_even_number_of_voters_loses_one() -> None:
    """Four tolerate no more than three, and wait for more disks; the most silent one goes."""
    four = Configuration(("a", "b", "c", "d"))
    stages = VOTERS | {"d": "voter"}
    assert step(four, stages, b=(100, 0.5)) == ChangeConfiguration(four.with_demoted("b"))


def test_configurations_are_entries() -> None:
    """The whole configuration survives the log; other entries are none."""
    configuration = Configuration(("a", "b"), ("c",), ("d",))
    assert decode_configuration(encode_configuration(configuration)) == configuration
    assert decode_configuration(b"\x00abc") is None
    assert decode_configuration(b"\x01") is None


def configuration_of(node: Node) -> Configuration:
    assert node.replica is not None
    return node.replica.engine.configuration


def test_one_change_at_a_time() -> None:
    """A second change is refused while the first is not committed, and so are a change of two
    voters at once and one by a node that does not lead (hazard 14)."""
    with simulation(1) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        assert leader.replica is not None
        engine = leader.replica.engine
        follower = next(node for node in world.nodes.values() if node is not leader)
        assert follower.replica is not None
        with pytest.raises(MembershipChangeError, match="does not lead"):
            follower.replica.engine.change_configuration(engine.configuration.with_learner("d"))
        with pytest.raises(MembershipChangeError, match="one voter"):
            engine.change_configuration(Configuration(("a", "b", "c", "d", "e")))
        with pytest.raises(MembershipChangeError, match="hand over"):
            engine.change_configuration(engine.configuration.without(leader.node_id))
        engine.change_configuration(engine.configuration.with_learner("d"))
        with pytest.raises(MembershipChangeError, match="not committed"):
            engine.change_configuration(engine.configuration.with_learner("e"))


def test_no_change_before_the_own_terms_no_op() -> None:
    """A new leader changes nothing before an entry of its own term is committed."""
    with simulation(2) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        others = [node for node in world.nodes.values() if node is not leader]
        world.crash(leader)
        world.network.run_until(
            lambda: any(node.replica and node.replica.engine.is_leader for node in others)
        )
        new = next(node for node in others if node.replica and node.replica.engine.is_leader)
        assert new.replica is not None
        assert not new.replica.engine.is_established
        with pytest.raises(MembershipChangeError, match="not for long enough"):
            new.replica.engine.change_configuration(configuration_of(new).with_learner("d"))


def test_an_uncommitted_configuration_is_in_force_after_a_restart() -> None:
    """The last configuration in the journal counts, committed or not (hazard 14)."""
    with simulation(3) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        world.network.partition(["a"], ["b"], ["c"], noticed=False)
        assert leader.replica is not None
        wanted = configuration_of(leader).with_learner("d")
        leader.replica.engine.change_configuration(wanted)
        leader.replica.advance()
        world.crash(leader)
        world.start(leader)
        assert configuration_of(leader) == wanted


def test_a_truncated_configuration_is_no_longer_in_force() -> None:
    """When its entry gives way to another leader's, so does the configuration."""
    with simulation(4) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        before = configuration_of(leader)
        others = [node.node_id for node in world.nodes.values() if node is not leader]
        world.network.partition([leader.node_id], others, noticed=True)
        assert leader.replica is not None
        leader.replica.engine.change_configuration(before.with_learner("d"))
        world.network.run_until(lambda: world.leader() not in (None, leader), limit=5)
        world.settle()
        assert configuration_of(leader) == before


def admit(world: World, name: str) -> Node:
    """Let a new, empty node join: as the replicated state would record it."""
    node = world.add(name)
    for member in world.nodes.values():
        for state in [*member.saved, member.state]:
            if state is not None:
                state.stages[name] = "joining"
    return node


def test_one_two_three_under_load() -> None:
    """A cluster grows from one node to three while it is written to: learner, caught up, voter,
    in this order, and nothing acknowledged is lost."""
    with simulation(5) as world:
        voters(world, "a")
        world.wait_leader()
        roles: dict[str, list[str]] = {"b": [], "c": []}
        for name in ("b", "c"):
            node = admit(world, name)

            def joined(node: Node = node, name: str = name) -> bool:
                assert node.replica is not None
                role = node.replica.engine.role
                if role not in roles[name]:
                    roles[name].append(role)
                world.submit(world.wait_leader())
                return bool(role in ("follower", "leader"))

            while not joined():
                world.network.run(0.01)
        world.settle()
        world.check_final()
        assert roles == {"b": ["learner", "follower"], "c": ["learner", "follower"]}
        assert len(world.acknowledged) > 10
        state = world.wait_leader().state
        assert state is not None
        world.network.run_until(lambda: set(state.stages.values()) == {"voter"})


def test_a_joiner_far_behind_gets_the_state() -> None:
    """Where the log no longer begins at the beginning, the state is installed, then the log goes
    on, and the node votes (rule M6)."""
    with simulation(6) as world:
        (a,) = voters(world, "a")
        world.wait_leader()
        for _ in range(50):
            world.submit(a)
            world.network.run(0.02)
        world.checkpoint(a)
        assert a.replica is not None
        assert a.replica.log.first_index > 10
        b = admit(world, "b")
        world.network.run_until(lambda: "b" in configuration_of(a).voters, limit=10)
        assert world.downloads == 1
        world.settle()
        world.check_final()
        assert b.state is not None
        assert len(b.state.numbers) == 50


@pytest.mark.parametrize("seed", range(8))
def test_a_joining_node_may_crash_at_any_moment(seed: int) -> None:
    """It comes back and joins."""
    with simulation(100 + seed) as world:
        (a,) = voters(world, "a")
        world.wait_leader()
        b = admit(world, "b")
        for _ in range(world.generator.randint(0, 30)):
            world.submit(a)
            world.network.run(0.01)
        world.crash(b)
        world.network.run(0.5)
        world.start(b)
        world.network.run_until(lambda: len(configuration_of(a).voters) == 2, limit=10)
        world.settle()
        world.check_final()


def test_a_removed_voter_counts_no_longer() -> None:
    """After its removal two of two decide, and it can't disturb them."""
    with simulation(7) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        gone = next(node for node in world.nodes.values() if node is not leader)
        assert leader.replica is not None
        leader.replica.change_configuration(configuration_of(leader).without(gone.node_id))
        world.network.run(0.5)
        term = leader.replica.engine.term
        assert gone.node_id in configuration_of(leader).removed
        assert gone.node_id not in configuration_of(leader).members
        world.network.run(5)
        assert leader.replica.engine.term == term
        assert world.leader() is leader
        world.submit(leader)
        world.network.run(0.5)
        assert len(world.acknowledged) == 1


def test_a_removal_counts_when_committed() -> None:
    """Before that another leader may take it back, so nobody is told that it was removed."""
    with simulation(8) as world:
        voters(world, "a", "b", "c")
        leader = world.wait_leader()
        world.network.run(0.2)
        gone = next(node.node_id for node in world.nodes.values() if node is not leader)
        world.network.partition(["a"], ["b"], ["c"], noticed=False)
        assert leader.replica is not None
        leader.replica.change_configuration(configuration_of(leader).without(gone))
        leader.replica.advance()
        assert leader.replica.committed_configuration().removed == ()
        world.network.heal()
        world.network.run(2)
        assert leader.replica.committed_configuration().removed == (gone,)
