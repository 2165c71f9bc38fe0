"""The whole group in virtual time: nothing acknowledged is lost, whatever network and power do."""

from __future__ import annotations

import pytest

from tests.fakes.network import Weather
from tests.metadata_raft.raft_world import World, simulation, voters

STORMY = Weather(drop=0.05, duplicate=0.05, slow=0.05)
SEEDS = range(12)


def live_through(world: World, *, steps: int) -> None:
    """A seeded life: commands, reads, crashes, partitions, compactions, in random order."""
    generator = world.generator
    for _ in range(steps):
        running = world.running()
        action = generator.random()
        if running and action < 0.70:
            world.submit(generator.choice(running))
        elif running and action < 0.85:
            world.read(generator.choice(running))
        elif action < 0.88 and len(running) > 1:
            world.crash(generator.choice(running))
        elif action < 0.93:
            for node in world.nodes.values():
                if node.replica is None:
                    world.start(node)
        elif action < 0.95:
            names = sorted(world.nodes)
            alone = generator.choice(names)
            rest = [name for name in names if name != alone]
            world.network.partition([alone], rest, noticed=generator.random() < 0.5)
        elif action < 0.98:
            world.network.heal()
        elif running:
            world.checkpoint(generator.choice(running))
        world.network.run(generator.uniform(0, 0.05))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stormy_life(seed: int) -> None:
    """Drops, duplicates, overtaking, partitions, power cuts: what was acknowledged stays, once;
    what was refused never happens; reads miss nothing; all states end equal."""
    with simulation(seed, STORMY) as world:
        voters(world, "a", "b", "c")
        live_through(world, steps=600)
        world.settle()
        world.check_final()
        assert len(world.acknowledged) > 50
        assert world.reads_answered > 5


@pytest.mark.parametrize("seed", range(100, 104))
def test_a_stormy_life_of_five(seed: int) -> None:
    """The same with five voters, of which two may be away, and reads need a round."""
    with simulation(seed, STORMY) as world:
        voters(world, "a", "b", "c", "d", "e")
        live_through(world, steps=500)
        world.settle()
        world.check_final()
        assert len(world.acknowledged) > 50
        assert world.reads_answered > 5


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same life, to the last byte of every entry."""

    def life() -> tuple[dict[int, tuple[int, bytes]], dict[int, int]]:
        with simulation(7, STORMY) as world:
            voters(world, "a", "b", "c")
            live_through(world, steps=300)
            world.settle()
            return world.history, world.acknowledged

    assert life() == life()
