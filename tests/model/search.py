"""Goes through every state that a scenario can come to, and tells what was found."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.model.quiescence import Leaks
from tests.model.steps import steps
from tests.model.world import Rules, Scenario, State, simplified


@dataclass(frozen=True)
class Finding:
    verdict: str
    """"safe", "lost", "leaked", or "unfinished" where the limit of states was reached."""
    states: int
    story: tuple[str, ...] = ()
    """The steps that led there, shortest way."""


def search(
    scenario: Scenario, rules: Rules, *, states_max: int = 10_000_000, leaks: bool = True
) -> Finding:
    """Breadth first, so that the story is a shortest one."""
    first = scenario.start()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    waiting = deque([first])
    quiescence = Leaks(scenario, rules) if leaks else None
    while waiting:
        state = waiting.popleft()
        for what, unsimplified in steps(state, scenario, rules):
            after = simplified(unsimplified)
            if after in came_from:
                continue
            came_from[after] = (state, what)
            if scenario.is_lost(after):
                return Finding("lost", len(came_from), _story(came_from, after))
            if quiescence is not None:
                leak = quiescence.find(after)
                if leak is not None:
                    story = (*_story(came_from, after), leak)
                    return Finding("leaked", len(came_from), story)
            waiting.append(after)
        if len(came_from) > states_max:
            return Finding("unfinished", len(came_from))
    return Finding("safe", len(came_from))


def _story(came_from: dict[State, tuple[State, str] | None], end: State) -> tuple[str, ...]:
    story: list[str] = []
    step = came_from[end]
    while step is not None:
        end, what = step
        story.append(what)
        step = came_from[end]
    return tuple(reversed(story))
