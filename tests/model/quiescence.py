"""What is left once everybody has come to rest: nothing that should not be.

From a state the uploads in progress are given up, every node applies the whole log and learns its
floor. Then generations pass, in each of which every node collects, repairs and drops once, in any
order. After a few of them an unreferenced chunk must be nowhere, and a referenced one on its owners
and nowhere else, whatever the orders were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.model.steps import is_collectable, repaired_touch
from tests.model.world import ABSENT, GONE, KEEP, LONG_AGO, Cluster, Left, Node, Rules, Scenario
from tests.model.world import State as World

GENERATIONS = 5
"""One in which owners fetch what they lack, two until a touch of now is old, and two more."""

_NO_MORE = Left(0, 0, 0, 0, 0)


class _Rest(NamedTuple):
    """The touches of the copies, counted from the present generation."""

    epoch: int
    is_referenced: bool
    touches: tuple[int, ...]
    gone: tuple[bool, ...]


class Leaks:
    """Remembers what it has looked at: states that come to rest in the same way are the same."""

    def __init__(self, scenario: Scenario, rules: Rules) -> None:
        self._scenario = scenario
        self._rules = rules
        self._known: dict[_Rest, str | None] = {}

    def find(self, world: World) -> str | None:
        """What is left that should not be, in words; None if nothing is."""
        latest = world.prefixes[-1]
        rest = _Rest(
            latest.epoch,
            latest.is_referenced,
            tuple(_age(node.touch, latest.generation) for node in world.nodes),
            tuple(node.applied == GONE for node in world.nodes),
        )
        if rest not in self._known:
            self._known[rest] = self._look(rest)
        return self._known[rest]

    def _look(self, rest: _Rest) -> str | None:
        states = {rest}
        for _ in range(GENERATIONS):
            states = {_next_generation(each) for each in self._worked(states)}
        owners = self._scenario.owners[rest.epoch]
        for each in states:
            copies = [at for at, touch in enumerate(each.touches) if touch != ABSENT]
            if not each.is_referenced and copies:
                return f"an unreferenced chunk stays on nodes {copies}"
            if each.is_referenced and copies != sorted(owners):
                return f"nodes {copies} hold a copy in the end, nodes {list(owners)} should"
        return None

    def _worked(self, states: Iterable[_Rest]) -> set[_Rest]:
        """Where all orders of each node's three tasks lead."""
        count = self._scenario.nodes
        tasks = [
            (task, number) for task in ("collect", "repair", "drop") for number in range(count)
        ]
        layer = {(each, 0) for each in states}
        for _ in tasks:
            layer = {
                (self._perform(each, task, number), done | 1 << bit)
                for each, done in layer
                for bit, (task, number) in enumerate(tasks)
                if not done >> bit & 1
            }
        return {each for each, _ in layer}

    def _perform(self, rest: _Rest, task: str, number: int) -> _Rest:
        rules, owners = self._rules, self._scenario.owners[rest.epoch]
        touch = rest.touches[number]
        if rest.gone[number]:
            return rest
        here = Cluster(0, rest.epoch, 0, rest.is_referenced)
        nodes = tuple(
            Node(GONE if gone else 0, each, True, KEEP, -1, 0, -1)
            for each, gone in zip(rest.touches, rest.gone, strict=True)
        )
        if task == "collect":
            world = World((here,), nodes, (), _NO_MORE)
            if touch != ABSENT and is_collectable(world, number, self._scenario, rules):
                return _with(rest, number, ABSENT)
        elif task == "repair":
            if touch == ABSENT and number in owners:
                for source in nodes:
                    repaired = repaired_touch(source, here, rules)
                    if repaired is not None:
                        return _with(rest, number, repaired)
        elif (
            touch != ABSENT
            and number not in owners
            and rules.misplaced_copies_are_dropped
            and all(rest.touches[owner] != ABSENT for owner in owners)
        ):
            for owner in owners:
                rest = _with(rest, owner, max(rest.touches[owner], touch))
            return _with(rest, number, ABSENT)
        return rest


def _next_generation(rest: _Rest) -> _Rest:
    return rest._replace(touches=tuple(_age(touch, 1) for touch in rest.touches))


def _age(touch: int, generations: int) -> int:
    return touch if touch == ABSENT else max(touch - generations, LONG_AGO)


def _with(rest: _Rest, number: int, touch: int) -> _Rest:
    return rest._replace(touches=(*rest.touches[:number], touch, *rest.touches[number + 1 :]))
